"""What a traced computation costs: floating-point operations and peak memory, without compiling it.

XLA merges equal subexpressions before it runs anything, and a gradient of a gradient is full of them: counted
as written, one nesting can look twice as dear as another that compiles to the same code. So calls are
flattened, equal steps merged and unused ones dropped before anything is counted. Memory is the largest sum of
arrays that are alive at one time, in the order of the computation; where XLA fuses steps it needs less.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

DEAR = 10
"""Operations of an elementary function, beside one of an addition."""

# fmt: off
ELEMENTARY = frozenset([
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "digamma", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "lgamma", "log", "log1p", "logistic", "pow", "rsqrt", "sin",
    "sinh", "sqrt", "tan", "tanh",
])
FREE = frozenset([
    "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "iota", "name", "reshape", "rev",
    "slice", "squeeze", "stop_gradient", "transpose",
])
# fmt: on
REDUCTIONS = ("reduce_", "cum", "arg")


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations in all, and bytes alive at the worst moment (arguments and results included)."""

    flops: float
    peak_bytes: int


@dataclass(slots=True)
class _Step:
    """One operation on values, which are numbered."""

    flops: float
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    inside: int = 0
    """Bytes that it needs beside its operands and results: the peak of a loop's body."""


@dataclass(slots=True)
class _Trace:
    """The flattened computation as far as it is read."""

    sizes: list[int] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    known: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)

    def value(self, aval: Any) -> int:
        self.sizes.append(math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") else 0)
        return len(self.sizes) - 1


def cost(closed: ClosedJaxpr) -> Cost:
    """The cost of a traced computation."""
    trace = _Trace()
    arguments = [trace.value(var.aval) for var in closed.jaxpr.invars]
    constants = [trace.value(var.aval) for var in closed.jaxpr.constvars]
    results = _walk(trace, closed.jaxpr, constants, arguments)
    return _count(trace, [*arguments, *constants], results)


def _count(trace: _Trace, given: Iterable[int], results: Sequence[int]) -> Cost:
    needed = set(results)
    kept = []
    for step in reversed(trace.steps):
        if needed.intersection(step.makes):
            needed.update(step.reads)
            kept.append(step)
    kept.reverse()
    last: dict[int, int] = {}
    for position, step in enumerate(kept):
        last.update(dict.fromkeys(step.reads, position))
    last.update(dict.fromkeys(results, len(kept)))
    alive = sum(trace.sizes[value] for value in set(given))
    peak = alive
    for position, step in enumerate(kept):
        alive += sum(trace.sizes[value] for value in step.makes)
        peak = max(peak, alive + step.inside)
        done = {value for value in (*step.reads, *step.makes) if last.get(value, position) <= position}
        alive -= sum(trace.sizes[value] for value in done if value not in given)
    return Cost(sum(step.flops for step in kept), peak)


def _walk(trace: _Trace, jaxpr: Jaxpr, constants: Sequence[int], arguments: Sequence[int]) -> list[int]:
    known: dict[Any, int] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def number(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return known[atom]
        key = ("literal", str(atom.aval), repr(atom.val))
        if key not in trace.known:
            trace.known[key] = (trace.value(atom.aval),)
        return trace.known[key][0]

    for equation in jaxpr.eqns:
        reads = tuple(number(atom) for atom in equation.invars)
        inner = _called(equation)
        if inner is not None:
            makes: Sequence[int] = _inlined(trace, inner, reads)
        else:
            key = (equation.primitive.name, reads, _settings(equation.params))
            if key not in trace.known:
                trace.known[key] = tuple(trace.value(var.aval) for var in equation.outvars)
                flops, inside = _of_equation(equation)
                trace.steps.append(_Step(flops, reads, trace.known[key], inside))
            makes = trace.known[key]
        known.update(zip(equation.outvars, makes, strict=True))
    return [number(atom) for atom in jaxpr.outvars]


def _called(equation: JaxprEqn) -> Any:
    """The computation that a call stands for, None where the equation is no call."""
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        if inner is not None and len(getattr(inner, "jaxpr", inner).invars) == len(equation.invars):
            return inner
    return None


def _inlined(trace: _Trace, inner: Any, reads: Sequence[int]) -> list[int]:
    jaxpr = getattr(inner, "jaxpr", inner)
    constants = []
    for var, constant in zip(jaxpr.constvars, getattr(inner, "consts", ()), strict=True):
        key = ("constant", id(constant))
        if key not in trace.known:
            trace.known[key] = (trace.value(var.aval),)
        constants.append(trace.known[key][0])
    return _walk(trace, jaxpr, constants, reads)


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


def _of_equation(equation: JaxprEqn) -> tuple[float, int]:
    """Operations of one equation, and the bytes that it needs on the way."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        body = cost(params["jaxpr"])
        return params["length"] * body.flops, body.peak_bytes
    if name == "while":
        body = cost(params["body_jaxpr"])  # as often as the data say: counted once
        return body.flops, body.peak_bytes
    if name == "cond":
        branches = [cost(branch) for branch in params["branches"]]
        return max(one.flops for one in branches), max(one.peak_bytes for one in branches)
    results = sum(_entries(var) for var in equation.outvars)
    operands = [_entries(atom) for atom in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        return 2.0 * results * math.prod(shape[axis] for axis in contracted), 0
    if name == "conv_general_dilated":
        kernel, numbers = _shape(equation.invars[1]), params["dimension_numbers"].rhs_spec
        return 2.0 * results * math.prod(kernel) / max(kernel[numbers[0]], 1), 0
    if name in ("cholesky", "lu", "eigh", "svd", "qr", "triangular_solve"):
        order = max(_shape(equation.invars[0])[-1:], default=1)
        return float(max(operands) * order), 0
    if name in FREE:
        return 0.0, 0
    if name.startswith(REDUCTIONS):
        return float(sum(operands)), 0
    return float(results * (DEAR if name in ELEMENTARY else 1)), 0


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _entries(atom: Any) -> int:
    return math.prod(getattr(atom.aval, "shape", ()))
