"""What an evaluation knows: what fixes its meaning, and the values found so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nablad_models import Model
from nablad_service.engine.derivatives import Choice, Shapes
from nablad_service.engine.towers import Group
from nablad_service.engine.values import Value
from nablad_service.language import Limits, graph

if TYPE_CHECKING:
    from nablad_service.engine.registered import Registered

BEFORE_ALL = -1
"""The call that left the state which the request gives."""


@dataclass(frozen=True)
class Learned:
    """What tracing a derivative once taught: its shapes and the strategy chosen for it."""

    shapes: Shapes
    choice: Choice
    leader: int
    """The derivative whose strategy it follows: itself, or the first of those that it is computed with."""
    inner: tuple[int, ...] = ()
    """Derivatives inside it that are not computed by themselves."""


@dataclass(frozen=True)
class Meaning:
    """Everything that fixes what a program computes, apart from its values."""

    program: graph.Program
    models: Mapping[str, Model]
    modes: Mapping[str, str]
    dtype: Any
    """The float type of the program: the widest among inputs and parameters."""
    nesting: str
    differentiated: bool
    """Whether the result will be differentiated in reverse."""
    limits: Limits
    functions: Mapping[str, Registered] = field(default_factory=dict)
    """What the operator of the server registered, by name."""
    strategies: Mapping[str, str] = field(default_factory=dict)
    """Strategies that the caller pinned, by operator."""
    choices: Mapping[int, str] = field(default_factory=dict)
    """Strategies that the planner chose, by derivative."""
    why: str = "fastest when timed"
    """Why it chose them."""
    reverse_only: bool = False
    """Whether something in the program has no forward mode."""


@dataclass
class Environment:
    """The values known so far, by node. A derivative or a map evaluates its part in a child of its own."""

    values: dict[int, Value]
    states: dict[str, list[tuple[int, Mapping[str, Any]]]]
    """Running states by model, each with the call that left it; shared with all children.

    A call starts from what the calls before it left, in order of the text: also when a derivative
    evaluates it again, later.
    """
    key: Any
    """The request's random key."""
    outermost: bool = True
    runs: tuple[Any, ...] = ()
    """The number of the example, or of the iteration, in each map and loop around it."""
    examples: int = 1
    """How many examples the maps around it hold: each array here stands for so many."""

    iterations: int = 1
    """How often the loops around it run it."""
    maps: int = 0
    """How many maps are around it."""
    groups: Mapping[int, Group] | None = None
    """Derivatives that can be computed together here, by member; None where nothing pulls them back."""
    together: dict[int, Value] = field(default_factory=dict)
    """What was computed so, until it is asked for."""

    def state_before(self, model: str, call: int) -> Mapping[str, Any]:
        """The state that a call starts from."""
        return next(state for index, state in reversed(self.states[model]) if index < call)

    def last_state(self, model: str) -> Mapping[str, Any]:
        """The state after all calls."""
        return self.states[model][-1][1]

    def inside(self, body: graph.Body, arguments: Iterable[Value], run: Any) -> Environment:
        """The environment of the body of a map or a loop, its arguments in place, for the run of that number.

        It is no derivative: gradients directly inside it are still the outermost ones.
        """
        inner = self.child(dict(zip(body.parameters, arguments, strict=True)))
        inner.outermost = self.outermost
        inner.runs = (*self.runs, run)
        # Evaluated anew in every run: what an enclosing body left behind must not pass for it.
        for index in body.nodes:
            inner.values.pop(index, None)
        return inner

    def child(self, known: Mapping[int, Value]) -> Environment:
        """The same, with `known` in place; what the child computes or updates stays in the child."""
        values = {**self.values, **known}
        return replace(self, values=values, outermost=False, groups=None, together={})
