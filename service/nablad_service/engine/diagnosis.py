"""A result that is not finite: in which term, in which derivative and at which piece of text it began."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from nablad_service.engine.cautions import INFINITE_SLOPE
from nablad_service.engine.watching import Record
from nablad_service.language import graph
from nablad_service.language.places import place
from nablad_service.query import Query, arguments


@dataclass(frozen=True)
class Diagnosis:
    """A program compiled to report on itself. It costs a multiple of the program, and runs only after NaN."""

    program: graph.Program
    compiled: Any
    record: Record

    def run(self, query: Query) -> dict[str, Any]:
        """The member `non_finite` of an answer, as `nablad.messages.NonFinite` describes it."""
        given = _given(query)
        self.record.clear()
        result = jax.device_get(self.compiled(arguments(query)))
        values, cotangents = frozenset(self.record.values), frozenset(self.record.cotangents)
        found: dict[str, Any] = {"what": _what(result)}
        if given is not None:
            return {**found, "message": f"{given} is not finite as it was sent"}
        results = _results(self.program, query)
        first = _first(self.program, values, [index for index in results if index in values])
        origin = _origin(self.program, first, cotangents)
        if origin is None and values:
            # No cotangent tells: what is not finite on the way is the best that there is.
            origin = first = _first(self.program, values, values)
        derivative = _derivative(self.program, first, origin, query)
        if derivative is not None:
            found["derivative"] = derivative
        if origin is not None:
            found["where"] = self._place(origin)
        found["message"] = self._message(first, origin)
        begins = origin if origin is not None else first
        found["terms"] = [
            name
            for name in query.signature.terms
            if begins is not None and begins in self.program.used([self.program.names[name]])
        ]
        return found

    def _place(self, index: int) -> dict[str, Any] | None:
        span = self.program.nodes[index].span
        return place(self.program.text, span).model_dump() if span else None

    def _message(self, first: int | None, origin: int | None) -> str:
        if origin is None:
            return "each step is finite by itself; the sum of gradients overflows"
        node = self.program.nodes[origin]
        text = place(self.program.text, node.span).text if node.span else "a step"
        hints = VALUE_HINTS if origin == first else SLOPE_HINTS
        hint = hints.get(node.operator, "") if isinstance(node, graph.Apply) else ""
        hint = f"; {hint}" if hint else ""
        if origin == first:
            return f"'{text}' is not finite, though all that it is computed from is{hint}"
        return f"'{text}' has a derivative that is not finite here{hint}"


VALUE_HINTS = {
    "solve": "is the matrix singular?",
    "inv": "is the matrix singular?",
    "cholesky": "is the matrix symmetric and positive definite?",
    "slogdet": "is the matrix singular?",
    "sqrt": "is the argument negative?",
    "log": "is the argument zero or negative?",
    "divide": "is the divisor zero?",
    "exp": "it overflows; logsumexp and log_softmax do not",
    "take": "is a position out of range?",
}
SLOPE_HINTS = {
    **INFINITE_SLOPE,
    "power": "a fractional power has no derivative at zero",
    "divide": "the divisor is close to zero",
    "where": "the branch that is not chosen is differentiated too: make its argument safe first",
    "log": "the argument is close to zero",
}


def _what(result: Mapping[str, Any]) -> list[str]:
    """Entries of the answer that are not finite: `value`, `gradients.x`, `outputs.u`."""
    names = ["value"] if "value" in result and not _finite(result["value"]) else []
    for section in ("gradients", "outputs"):
        found = result.get(section, {}).items()
        names += [f"{section}.{name}" for name, entry in found if not _finite(entry)]
    return names


def _finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree) if leaf.dtype != bool)


def _given(query: Query) -> str | None:
    """What the caller sent that is not finite."""
    for name, value in query.inputs.items():
        if not _finite(dict(value) if isinstance(value, Mapping) else value):
            return f"the input '{name}'"
    for name, tree in query.params.items():
        for leaf, array in tree.items():
            if not _finite(array):
                return f"the parameter {name}.params[{leaf}]"
    return None


def _results(program: graph.Program, query: Query) -> list[int]:
    """The nodes that the answer is made of."""
    signature = query.signature
    named = [program.names[name] for name in (*signature.terms, *signature.outputs) if name in program.names]
    return named if program.result is None else [*named, program.result]


def _first(program: graph.Program, values: Collection[int], results: Collection[int]) -> int | None:
    """Where values stop being finite on the way to `results`: the first that is not, though what it reads is.

    An infinity that no result rests on (a mask, a branch not taken) is nobody's mistake.
    """
    met: set[int] = set()
    waiting = [index for index in results if index in values]
    while waiting:
        index = waiting.pop()
        if index in met:
            continue
        met.add(index)
        waiting += [
            read for read in (*program.nodes[index].reads, *_inside(program, index)) if read in values
        ]
    starts = [
        index
        for index in met
        # A loop hands its arguments what its last run left: they come first in the text, not in time.
        if not any(read in met or _is_argument(program, read) for read in program.nodes[index].reads)
    ]
    return min(starts or met, default=None)


def _inside(program: graph.Program, index: int) -> list[int]:
    """The bodies that a node evaluates. The path of a derivative is found by its cotangents."""
    return [each for body in program.nodes[index].bodies for each in body.nodes]


def _is_argument(program: graph.Program, index: int) -> bool:
    return isinstance(program.nodes[index], graph.Argument)


def _origin(program: graph.Program, first: int | None, cotangents: Collection[tuple[int, int]]) -> int | None:
    """The node where it began.

    Forwards that is the first one whose value is not finite, unless this is a derivative: then, and where all
    values are finite, it is the node whose own cotangent is finite and which hands on one that is not.
    """
    if first is not None and not isinstance(program.nodes[first], graph.Derivative):
        return first
    poisoned = {read for _, read in cotangents}
    starts = {consumer for consumer, _ in cotangents if consumer not in poisoned}
    if first is not None:
        node = program.nodes[first]
        assert isinstance(node, graph.Derivative)
        starts &= program.inside(node)
    plain = {
        index for index in starts if not program.nodes[index].bodies and not _is_derivative(program, index)
    }
    return max(plain or starts, default=first)


def _is_derivative(program: graph.Program, index: int) -> bool:
    return isinstance(program.nodes[index], graph.Derivative)


def _derivative(program: graph.Program, first: int | None, origin: int | None, query: Query) -> str | None:
    """The derivative in which it first appeared, in words."""
    if first is not None and _is_derivative(program, first):
        span = program.nodes[first].span
        return place(program.text, span).text if span else None
    if first is None and origin is not None:
        variables = ", ".join(variable.key for variable in query.signature.wrt)
        return f"the gradient with respect to {variables}"
    return None
