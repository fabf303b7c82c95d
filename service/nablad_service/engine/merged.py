"""A traced computation as one flat list of steps: calls inlined, equal steps merged, unused ones dropped.

XLA merges equal subexpressions before it runs anything, and a gradient of a gradient is full of them: as
written, one nesting can look twice as dear as another that compiles to the same code. Inside a loop XLA
merges less, so what goes into one is better merged before.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

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


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on values, which are numbered."""

    equation: JaxprEqn
    reads: tuple[int, ...]
    makes: tuple[int, ...]


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


def merged(closed: ClosedJaxpr) -> Merged:
    """The computation of `closed`, without what its results do not need."""
    flat = Merged()
    known: dict[Hashable, tuple[int, ...]] = {}
    walk = _Walk(flat, known)
    flat.arguments = tuple(walk.value(var.aval) for var in closed.jaxpr.invars)
    flat.results = tuple(walk.through(closed.jaxpr, closed.consts, flat.arguments))
    needed, kept = set(flat.results), []
    for step in reversed(flat.steps):
        if needed.intersection(step.makes) or step.equation.effects:
            needed.update(step.reads)
            kept.append(step)
    flat.steps = kept[::-1]
    return flat


@dataclass(slots=True)
class _Walk:
    flat: Merged
    known: dict[Hashable, tuple[int, ...]]

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
                return self._fixed(("literal", str(atom.aval), repr(atom.val)), atom.aval, atom.val)
            return known[atom]

        for equation in jaxpr.eqns:
            reads = tuple(number(atom) for atom in equation.invars)
            known.update(zip(equation.outvars, self._equation(equation, reads), strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: JaxprEqn, reads: tuple[int, ...]) -> Sequence[int]:
        inner = equation.params.get(CALLS.get(equation.primitive.name, ""))
        if inner is not None:
            jaxpr = getattr(inner, "jaxpr", inner)
            if len(jaxpr.invars) == len(reads):
                return self.through(jaxpr, getattr(inner, "consts", ()), reads)
        key = (equation.primitive.name, reads, _settings(equation.params))
        if key not in self.known:
            self.known[key] = tuple(self.value(var.aval) for var in equation.outvars)
            self.flat.steps += _apart(Step(equation, reads, self.known[key]))
        return self.known[key]

    def _fixed(self, key: Hashable, aval: Any, value: Any) -> int:
        if key not in self.known:
            self.known[key] = (self.value(aval),)
            typed = value if getattr(aval, "shape", ()) else np.asarray(value, aval.dtype)
            self.flat.fixed[self.known[key][0]] = typed
        return self.known[key][0]


def _apart(step: Step) -> list[Step]:
    """A barrier of several values as one of each: they have nothing else to do with one another."""
    if step.equation.primitive.name != "optimization_barrier":
        return [step]
    variables = zip(step.equation.invars, step.equation.outvars, step.reads, step.makes, strict=True)
    return [
        Step(step.equation.replace(invars=[before], outvars=[after]), (read,), (made,))
        for before, after, read, made in variables
    ]


def _settings(params: Mapping[str, Any]) -> Hashable:
    return tuple((name, _hashable(value)) for name, value in sorted(params.items()))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Jaxpr | ClosedJaxpr):
        return str(value)  # variables are named in order: equal text, equal computation
    if isinstance(value, tuple | list):
        return tuple(_hashable(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
