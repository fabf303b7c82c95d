"""A traced computation as one flat list of steps: calls inlined, equal steps merged, unused ones dropped.

XLA merges equal subexpressions before it runs anything, and a gradient of a gradient is full of them: as
written, one nesting can look twice as dear as another that compiles to the same code. Inside a loop XLA
merges less, and what reverse mode makes of equal steps is not equal any more: so what goes into a loop, or
will be differentiated, is better merged before. As a list, a computation can also be evaluated with changes
on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from nablad_service.engine.jaxprs import equations
from nablad_service.engine.modes import need_no_pushed_rule

CALLS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Primitives that stand for a computation, with the parameter that holds it."""
PLAIN = frozenset({"pjit", "jit", "closed_call", "core_call"})
"""Calls that are nothing but that."""
WITHOUT_RULE = PLAIN | {"remat", "remat2", "checkpoint"}
"""Calls without a derivative of their own."""
RULE = "custom_jvp_call"
JAX_FOLDER = str(Path(jax.__file__).parent)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on values, which are numbered."""

    equation: JaxprEqn
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    def run(self, operands: Sequence[Any]) -> list[Any]:
        """The values that it makes of `operands`."""
        return bind(self.equation, operands)


Change: TypeAlias = Callable[[Step, list[Any]], list[Any]]
"""What a step makes of its operands in place of what it says."""


@dataclass(slots=True)
class Merged:
    """The steps in order, each after what it reads."""

    avals: list[Any] = field(default_factory=list)
    """Shape and dtype of each value."""
    fixed: dict[int, Any] = field(default_factory=dict)
    """Values that are numbers of the computation itself: literals and constants."""
    arguments: tuple[int, ...] = ()
    steps: list[Step] = field(default_factory=list)
    results: tuple[int, ...] = ()

    def bytes(self, value: int) -> int:
        """Size of a value; numbers of the text take no room."""
        aval = self.avals[value]
        if value in self.fixed and not getattr(aval, "shape", ()):
            return 0
        return aval.size * aval.dtype.itemsize if hasattr(aval, "shape") else 0

    def evaluate(self, arguments: Sequence[Any], changes: Mapping[int, Change] | None = None) -> list[Any]:
        """The results for `arguments`; `changes` are by the position of the step."""
        known = {**self.fixed, **dict(zip(self.arguments, arguments, strict=True))}
        for position, step in enumerate(self.steps):
            operands = [known[read] for read in step.reads]
            change = changes.get(position) if changes else None
            made = change(step, operands) if change else step.run(operands)
            known.update(zip(step.makes, made, strict=True))
        return [known[value] for value in self.results]

    def readers(self) -> dict[int, list[tuple[int, int]]]:
        """For each value the (position of step, number of operand) that read it."""
        found: dict[int, list[tuple[int, int]]] = {}
        for position, step in enumerate(self.steps):
            for number, read in enumerate(step.reads):
                found.setdefault(read, []).append((position, number))
        return found


def bind(equation: JaxprEqn, operands: Sequence[Any], params: Mapping[str, Any] | None = None) -> list[Any]:
    """What an equation makes of `operands`, as it stands or with other settings."""
    primitive = equation.primitive
    settings = primitive.get_bind_params(equation.params if params is None else params)
    # Where it was traced is told too: a report of memory names the piece of text.
    with equation.ctx.manager, jax.named_scope(str(equation.source_info.name_stack) or "_"):
        made = primitive.bind(*operands, **settings)
    return list(made) if primitive.multiple_results else [made]


def merged(closed: ClosedJaxpr, calls: Collection[str] = frozenset(CALLS), *, merge: bool = True) -> Merged:
    """The computation of `closed`, without what its results do not need; `calls` are inlined.

    Where those with a derivative of their own (relu, softplus) are not, two of one are not known to be equal,
    and are not merged. Without `merge` equal steps, and equal numbers of the text, stay apart.
    """
    flat = Merged()
    walk = _Walk(flat, calls, {}, merge)
    flat.arguments = tuple(walk.value(var.aval) for var in closed.jaxpr.invars)
    flat.results = tuple(walk.through(closed.jaxpr, closed.consts, flat.arguments))
    needed, kept = set(flat.results), []
    for step in reversed(flat.steps):
        if needed.intersection(step.makes) or step.equation.effects:
            needed.update(step.reads)
            kept.append(step)
    flat.steps = kept[::-1]
    return flat


def without_repetition(function: Callable[..., Any], *, differentiable: bool) -> Callable[..., Any]:
    """`function` of trees of arrays, every equal step computed once.

    Nested derivatives along one direction are full of equal steps: k nested jvp write down 2ᵏ tangents, of
    which k + 1 differ. Where the result is `differentiable`, functions with a derivative of their own stay
    whole. Figures are in `derivatives/tower.py`.
    """

    def evaluate(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        closed, result = jax.make_jaxpr(
            lambda *leaves: function(*jax.tree.unflatten(structure, leaves)), return_shape=True
        )(*leaves)
        need_no_pushed_rule(closed)
        flat = merged(closed, PLAIN if differentiable else PLAIN | {RULE})
        return jax.tree.unflatten(jax.tree.structure(result), flat.evaluate(leaves))

    return evaluate


@dataclass(slots=True)
class _Walk:
    flat: Merged
    calls: Collection[str]
    known: dict[Hashable, tuple[int, ...]]
    merge: bool = True

    def value(self, aval: Any) -> int:
        self.flat.avals.append(aval)
        return len(self.flat.avals) - 1

    def through(self, jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[int]) -> list[int]:
        known: dict[Any, int] = {}
        for var, constant in zip(jaxpr.constvars, constants, strict=True):
            known[var] = self._fixed(("constant", id(constant)), var.aval, constant)
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def number(atom: Any) -> int:
            if isinstance(atom, Literal):
                aval: Any = atom.aval
                number_of_text = np.asarray(atom.val, aval.dtype)
                return self._fixed(("literal", str(aval), repr(atom.val)), aval, number_of_text)
            return known[atom]

        for equation in jaxpr.eqns:
            reads = tuple(number(atom) for atom in equation.invars)
            known.update(zip(equation.outvars, self._equation(equation, reads), strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: JaxprEqn, reads: tuple[int, ...]) -> Sequence[int]:
        name = equation.primitive.name
        inner = equation.params.get(CALLS[name]) if name in self.calls else None
        if inner is not None:
            jaxpr = getattr(inner, "jaxpr", inner)
            if len(jaxpr.invars) == len(reads):
                return self.through(jaxpr, getattr(inner, "consts", ()), reads)
        settings = tuple((name, self._key(value)) for name, value in sorted(equation.params.items()))
        key = (name, reads, settings)
        if key not in self.known or equation.effects or not self.merge:
            self.known[key] = tuple(self.value(var.aval) for var in equation.outvars)
            self.flat.steps += _apart(Step(equation, reads, self.known[key]))
        return self.known[key]

    def _fixed(self, key: Hashable, aval: Any, value: Any) -> int:
        if key not in self.known or not self.merge:
            self.known[key] = (self.value(aval),)
            self.flat.fixed[self.known[key][0]] = value
        return self.known[key][0]

    def _key(self, setting: Any) -> Hashable:
        """What equal settings share; others never do."""
        if isinstance(setting, Jaxpr | ClosedJaxpr):
            if RULE not in self.calls and any(_has_rule(one) for one in equations(setting)):
                return id(setting)
            # Variables are named in order: equal text, equal computation.
            return str(setting), tuple(id(constant) for constant in getattr(setting, "consts", ()))
        if isinstance(setting, tuple | list):
            return tuple(self._key(one) for one in setting)
        if rule := _rule_of_jax(setting):
            return rule
        try:
            hash(setting)
        except TypeError:
            return id(setting)
        return setting


def _rule_of_jax(setting: Any) -> str | None:
    """Where JAX itself defines a derivative that a step carries; None for anything else.

    A rule is an object of its own at every trace. Those of JAX's functions are top-level functions: equal
    places, equal rules. A caller's may be closures, whose place does not tell what they hold, and so may
    those that `custom_derivatives` puts together.
    """
    debug = getattr(setting, "debug_info", None)
    _, at, place = (getattr(debug, "func_src_info", None) or "").rpartition(" at ")
    ours = at and place.startswith(JAX_FOLDER) and "custom_derivatives" not in place
    return f"rule at {place}" if ours else None


def _has_rule(equation: JaxprEqn) -> bool:
    """Whether it has a derivative of its own, which its text does not tell."""
    return equation.primitive.name.startswith("custom_")


def _apart(step: Step) -> list[Step]:
    """A barrier of several values as one of each: they have nothing else to do with one another."""
    if step.equation.primitive.name != "optimization_barrier":
        return [step]
    variables = zip(step.equation.invars, step.equation.outvars, step.reads, step.makes, strict=True)
    return [
        Step(step.equation.replace(invars=[before], outvars=[after]), (read,), (made,))
        for before, after, read, made in variables
    ]
