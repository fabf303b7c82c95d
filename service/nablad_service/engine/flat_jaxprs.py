"""A traced computation as one list of steps, calls written out, to be evaluated with changes on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

Read: TypeAlias = int | Literal
"""A value by its number, or a literal as it stands."""

WRITTEN_OUT = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    # Its steps are kept for the way back then: who takes a computation apart has no use for forgetting it.
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
"""Calls without a rule of their own, and where they keep their computation."""


@dataclass(frozen=True)
class Step:
    """One operation on numbered values."""

    equation: JaxprEqn
    reads: tuple[Read, ...]
    makes: tuple[int, ...]

    def run(self, operands: Sequence[Any]) -> list[Any]:
        """The values that it makes of `operands`."""
        primitive = self.equation.primitive
        with self.equation.ctx.manager:
            made = primitive.bind(*operands, **primitive.get_bind_params(self.equation.params))
        return list(made) if primitive.multiple_results else [made]


Change: TypeAlias = Callable[[Step, list[Any]], list[Any]]
"""What a step makes of its operands in place of what it says."""


@dataclass(frozen=True)
class FlatJaxpr:
    """A computation with one result, its values numbered in the order in which they are made."""

    arguments: tuple[int, ...]
    steps: tuple[Step, ...]
    result: Read
    constants: Mapping[int, Any]

    def evaluate(self, arguments: Sequence[Any], changes: Mapping[int, Change]) -> Any:
        """The result for `arguments`; `changes` are by the position of the step."""
        known = {**self.constants, **dict(zip(self.arguments, arguments, strict=True))}

        def value(read: Read) -> Any:
            return known[read] if isinstance(read, int) else read.val

        for position, step in enumerate(self.steps):
            operands = [value(read) for read in step.reads]
            change = changes.get(position)
            made = change(step, operands) if change else step.run(operands)
            known.update(zip(step.makes, made, strict=True))
        return value(self.result)

    def readers(self) -> dict[int, list[tuple[int, int]]]:
        """For each value the (position of step, number of operand) that read it."""
        found: dict[int, list[tuple[int, int]]] = {}
        for position, step in enumerate(self.steps):
            for number, read in enumerate(step.reads):
                if isinstance(read, int):
                    found.setdefault(read, []).append((position, number))
        return found


@dataclass
class _Flattening:
    count: int = 0
    steps: list[Step] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)

    def number(self) -> int:
        self.count += 1
        return self.count - 1

    def walk(self, jaxpr: Jaxpr, constants: Sequence[Any], reads: Sequence[Read]) -> list[Read]:
        known: dict[Any, Read] = dict(zip(jaxpr.invars, reads, strict=True))
        for var, constant in zip(jaxpr.constvars, constants, strict=True):
            number = self.number()
            known[var] = number
            self.constants[number] = constant
        for equation in jaxpr.eqns:
            operands = tuple(atom if isinstance(atom, Literal) else known[atom] for atom in equation.invars)
            if equation.primitive.name in WRITTEN_OUT:
                inner = equation.params[WRITTEN_OUT[equation.primitive.name]]
                results = self.walk(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
                known.update(zip(equation.outvars, results, strict=True))
            else:
                made = tuple(self.number() for _ in equation.outvars)
                self.steps.append(Step(equation, operands, made))
                known.update(zip(equation.outvars, made, strict=True))
        return [atom if isinstance(atom, Literal) else known[atom] for atom in jaxpr.outvars]


def flattened(closed: ClosedJaxpr) -> FlatJaxpr:
    """The steps of a computation with one result."""
    flattening = _Flattening()
    arguments = tuple(flattening.number() for _ in closed.jaxpr.invars)
    (result,) = flattening.walk(closed.jaxpr, closed.consts, list(arguments))
    return FlatJaxpr(arguments, tuple(flattening.steps), result, flattening.constants)
