"""What a traced computation costs: floating-point operations and peak memory, without compiling it.

Counted after equal steps are merged, as XLA merges them. Memory is the largest sum of arrays that are alive
at one time, in the order of the computation; where XLA fuses steps it needs less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn

from nablad_service.engine.merged import Merged, merged

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


def cost(computation: ClosedJaxpr | Merged) -> Cost:
    """The cost of a traced computation."""
    flat = computation if isinstance(computation, Merged) else merged(computation)
    each = [_of_equation(step.equation) for step in flat.steps]
    peak, _ = _peak(flat, [inside for _, inside in each])
    return Cost(sum(flops for flops, _ in each), peak)


def largest_at_peak(flat: Merged) -> tuple[int, str]:
    """The size of the largest value alive at the worst moment, and the scopes that it was made in."""
    _, position = _peak(flat, [_of_equation(step.equation)[1] for step in flat.steps])
    made_by = {value: step for step in flat.steps[: position + 1] for value in step.makes}
    still_read = {value for step in flat.steps[position:] for value in (*step.reads, *step.makes)}
    alive = [value for value in made_by if value in still_read]
    if not alive:
        return max((flat.bytes(value) for value in flat.arguments), default=0), ""
    largest = max(alive, key=flat.bytes)
    return flat.bytes(largest), str(made_by[largest].equation.source_info.name_stack)


def _peak(flat: Merged, inside: Sequence[int]) -> tuple[int, int]:
    """Bytes alive at the worst moment, and the position of the step at that moment.

    `inside` are the bytes that each step needs on the way.
    """
    given = {*flat.arguments, *flat.fixed}  # alive from beginning to end
    last: dict[int, int] = {}
    for position, step in enumerate(flat.steps):
        last.update(dict.fromkeys(step.reads, position))
    last.update(dict.fromkeys(flat.results, len(flat.steps)))
    alive = peak = sum(flat.bytes(value) for value in given)
    at = 0
    for position, step in enumerate(flat.steps):
        alive += sum(flat.bytes(value) for value in step.makes)
        if alive + inside[position] > peak:
            peak, at = alive + inside[position], position
        done = {value for value in (*step.reads, *step.makes) if last.get(value, position) <= position}
        alive -= sum(flat.bytes(value) for value in done if value not in given)
    return peak, at


def _of_equation(equation: JaxprEqn) -> tuple[float, int]:
    """Operations of one equation, and the bytes that it needs on the way."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        body = merged(params["jaxpr"])
        of_body = cost(body)
        # What all runs share is alive outside already.
        shared = sum(body.bytes(value) for value in body.arguments[: params["num_consts"]])
        return params["length"] * of_body.flops, of_body.peak_bytes - shared
    if name == "while":
        of_body = cost(params["body_jaxpr"])  # as often as the data say: counted once
        return of_body.flops, of_body.peak_bytes
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
