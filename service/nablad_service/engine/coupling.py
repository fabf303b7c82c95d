"""Do examples mix? Read from the traced computation, never taken on trust.

A computation keeps examples apart along an axis when entry i of the result, along an axis of the result,
depends on entry i of the variable alone. We follow that axis through the jaxpr: each intermediate either
does not depend on the variable (`FIXED`, or `ZERO` where it is known to be zeros), carries the examples along
one axis (its number), is a sum over the examples of something that each of them gives (`PARTIAL`: of some
examples, a part of the sum), or mixes them in another way (`MIXED`).
Primitives that are not listed count as mixing: a refusal too many is safe, a wrong derivative is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from nablad_service.engine.merged import CALLS

FIXED: Final = -1
MIXED: Final = -2
PARTIAL: Final = -3
ZERO: Final = -4
CONVOLUTION: Final = "conv_general_dilated"
Axis: TypeAlias = int
"""FIXED, ZERO, PARTIAL, MIXED, or the axis along which the examples lie."""


def result_axis(closed: ClosedJaxpr, axes: Sequence[Axis]) -> Axis:
    """Where the examples lie in the (one) result, given where they lie in each argument."""
    return _walk(closed.jaxpr, axes)[0]


def keeps_examples_apart(closed: ClosedJaxpr, x_axis: int, y_axis: int) -> bool:
    """Whether entry i of the result along `y_axis` depends on entry i of the argument along `x_axis`."""
    return result_axis(closed, [x_axis]) in (y_axis, FIXED, ZERO)


def _walk(jaxpr: Jaxpr, axes: Sequence[Axis]) -> list[Axis]:
    known: dict[Any, Axis] = dict(zip(jaxpr.invars, axes, strict=True))

    def axis_of(atom: Any) -> Axis:
        return literal(atom.val) if isinstance(atom, Literal) else known.get(atom, FIXED)

    for equation in jaxpr.eqns:
        inputs = [axis_of(atom) for atom in equation.invars]
        outputs = through(equation, inputs)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [axis_of(atom) for atom in jaxpr.outvars]


def literal(number: Any) -> Axis:
    """What a number of the computation itself is."""
    return ZERO if not np.ndim(number) and number == 0 else FIXED


def through(equation: JaxprEqn, inputs: list[Axis]) -> list[Axis]:
    """What the results of one step are, given what it reads is."""
    count, name = len(equation.outvars), equation.primitive.name
    if all(axis in (FIXED, ZERO) for axis in inputs):
        zeros = name in KEEP_SUMS and name not in BY_FIXED and FIXED not in inputs
        return [ZERO if zeros else FIXED] * count
    if name == "optimization_barrier":
        return list(inputs)
    if MIXED in inputs:
        return [MIXED] * count
    if name in CALLS:
        inner = equation.params[CALLS[name]]
        return _walk(getattr(inner, "jaxpr", inner), inputs)
    if name == "scan":
        return _scan(equation, inputs)
    if PARTIAL in inputs:
        return [PARTIAL if _keeps_sums(equation, inputs) else MIXED] * count
    inputs = [FIXED if axis == ZERO else axis for axis in inputs]
    rule = RULES.get(name)
    if rule is not None:
        return [rule(equation, inputs)] * count
    if name in ELEMENTWISE:
        return [_elementwise(equation, inputs)] * count
    return [MIXED] * count


def _keeps_sums(equation: JaxprEqn, inputs: list[Axis]) -> bool:
    """Whether the step may be done to each part of a sum, before they are added."""
    name = equation.primitive.name
    if name in BY_FIXED:  # a product with, or a quotient by, what all parts share
        return inputs == [PARTIAL, FIXED] or (name == "mul" and inputs == [FIXED, PARTIAL])
    if _aval(equation.outvars[0]).size > sum(_aval(atom).size for atom in equation.invars):
        return False  # right, and dearer for each part
    return name in KEEP_SUMS and all(axis in (PARTIAL, ZERO) for axis in inputs)


def _aval(atom: Any) -> Any:
    """Shape and dtype; JAX types `aval` too loosely to know that it has them."""
    return atom.aval


def _elementwise(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """Operands that carry examples must carry them along one axis, in full: length 1 would be repeated."""
    shape = _aval(equation.outvars[0]).shape
    found = {axis for axis in inputs if axis != FIXED}
    in_full = all(
        axis == FIXED or (len(_aval(atom).shape) == len(shape) and _aval(atom).shape[axis] == shape[axis])
        for atom, axis in zip(equation.invars, inputs, strict=True)
    )
    return found.pop() if len(found) == 1 and in_full else MIXED


def _broadcast(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    return int(equation.params["broadcast_dimensions"][inputs[0]])


def _transpose(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    return int(equation.params["permutation"].index(inputs[0]))


def _reduce(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    axes = equation.params["axes"]
    carried = {axis for axis in inputs if axis != FIXED}
    axis = carried.pop()
    if axis in axes and equation.primitive.name == "reduce_sum":
        return PARTIAL
    if carried or axis in axes:
        return MIXED
    return axis - sum(other < axis for other in axes)


def _squeeze(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    axis, gone = inputs[0], equation.params["dimensions"]
    return MIXED if axis in gone else axis - sum(other < axis for other in gone)


def _reshape(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """The axis survives where the lengths before it multiply to the same and its own length stays."""
    before = _aval(equation.invars[0]).shape
    after = _aval(equation.outvars[0]).shape
    ahead = _product(before[: inputs[0]])
    for axis, length in enumerate(after):
        if _product(after[:axis]) == ahead and length == before[inputs[0]]:
            return axis
    return MIXED


def _product(lengths: Sequence[int]) -> int:
    result = 1
    for length in lengths:
        result *= length
    return result


def _dot(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    (left_contract, right_contract), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = inputs
    if left != FIXED and right != FIXED:
        # Both carry examples: only as the same batch axis do they stay apart.
        if left in left_batch and right in right_batch and left_batch.index(left) == right_batch.index(right):
            return int(left_batch.index(left))
        if left in left_contract and right in right_contract:
            same = left_contract.index(left) == right_contract.index(right)
            return PARTIAL if same else MIXED
        return MIXED
    if left != FIXED:
        return _dot_side(left, left_batch, left_contract, len(left_batch))
    left_free = _aval(equation.invars[0]).ndim - len(left_batch) - len(left_contract)
    return _dot_side(right, right_batch, right_contract, len(right_batch) + left_free)


def _dot_side(axis: Axis, batch: Sequence[int], contract: Sequence[int], offset: int) -> Axis:
    if axis in batch:
        return list(batch).index(axis)
    if axis in contract:
        return PARTIAL
    taken = [*batch, *contract]
    return offset + axis - sum(other < axis for other in taken)


def _whole_axis(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """Slices and pads are fine where they leave the examples' axis as it is."""
    axis = inputs[0]
    before = _aval(equation.invars[0]).shape
    after = _aval(equation.outvars[0]).shape
    if any(other != FIXED for other in inputs[1:]) or before[axis] != after[axis]:
        return MIXED
    config = equation.params.get("padding_config")
    return axis if config is None or tuple(config[axis]) == (0, 0, 0) else MIXED


def _along_other_axis(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """Concatenation, reversal, cumulation and sorting along an axis that is not the examples'."""
    params = equation.params
    touched = params.get("dimension", params.get("axis", params.get("dimensions")))
    touched = tuple(touched) if isinstance(touched, tuple | list) else (touched,)
    carried = {axis for axis in inputs if axis != FIXED}
    axis = carried.pop()
    return MIXED if carried or axis in touched else axis


def _stack(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """A new axis: what lies behind it moves by one."""
    new = equation.params["axis"]
    carried = {axis for axis in inputs if axis != FIXED}
    axis = carried.pop()
    return MIXED if carried else axis + (axis >= new)


def _unstack(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """The inverse of stack."""
    gone = equation.params["axis"]
    return MIXED if inputs[0] == gone else inputs[0] - (inputs[0] > gone)


def _convolution(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    numbers = equation.params["dimension_numbers"]
    groups = (equation.params["feature_group_count"], equation.params["batch_group_count"])
    if inputs == [numbers.lhs_spec[1], numbers.rhs_spec[1]] and groups == (1, 1):
        return PARTIAL  # the gradient in a kernel: examples stand where channels do
    if inputs[1] != FIXED or inputs[0] != numbers.lhs_spec[0] or equation.params["batch_group_count"] != 1:
        return MIXED
    return int(numbers.out_spec[0])


def _select_and_window(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    axis = inputs[0]
    window = equation.params["window_dimensions"]
    strides = equation.params["window_strides"]
    carried = {other for other in inputs if other != FIXED}
    return axis if carried == {axis} and window[axis] == 1 and strides[axis] == 1 else MIXED


def _matrix(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """Linear algebra on the last two axes; leading axes are batch axes."""
    carried = {axis for axis in inputs if axis != FIXED}
    axis = carried.pop()
    return MIXED if carried or axis >= _aval(equation.invars[0]).ndim - 2 else axis


def _gather(equation: JaxprEqn, inputs: list[Axis]) -> Axis:
    """Positions taken along other axes, the examples' axis taken whole."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axis, gone = inputs[0], (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = axis >= 0 and sizes[axis] == _aval(equation.invars[0]).shape[axis]
    if inputs[1] != FIXED or not whole or axis in gone or axis in numbers.start_index_map:
        return MIXED
    return int(numbers.offset_dims[axis - sum(other < axis for other in gone)])


def _scan(equation: JaxprEqn, inputs: list[Axis]) -> list[Axis]:
    """A loop keeps examples apart where its body does, run after run."""
    params = equation.params
    body, consts, carries = params["jaxpr"].jaxpr, params["num_consts"], params["num_carry"]
    # The loop goes over the first axis of what it is given along; examples there meet in the carry.
    along = [axis if axis < 0 else axis - 1 if axis > 0 else MIXED for axis in inputs[consts + carries :]]
    carried = inputs[consts : consts + carries]
    while True:
        after = _walk(body, [*inputs[:consts], *carried, *along])
        joined = [_either(one, other) for one, other in zip(carried, after, strict=False)]
        if joined == carried:
            return [*carried, *(axis if axis < 0 else axis + 1 for axis in after[carries:])]
        carried = joined


def _either(one: Axis, other: Axis) -> Axis:
    if one == other:
        return one
    if ZERO in (one, other):
        return one if other == ZERO else other
    fixed = FIXED in (one, other) and max(one, other) >= 0
    return max(one, other) if fixed else MIXED


RULES: dict[str, Callable[[JaxprEqn, list[Axis]], Axis]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "dot_general": _dot,
    "slice": _whole_axis,
    "dynamic_slice": _whole_axis,
    "pad": _whole_axis,
    "concatenate": _along_other_axis,
    "rev": _along_other_axis,
    "cumsum": _along_other_axis,
    "cumlogsumexp": _along_other_axis,
    "cummax": _along_other_axis,
    "cummin": _along_other_axis,
    "cumprod": _along_other_axis,
    "sort": _along_other_axis,
    "split": _along_other_axis,
    "stack": _stack,
    "unstack": _unstack,
    CONVOLUTION: _convolution,
    "reduce_window_sum": _select_and_window,
    "reduce_window_max": _select_and_window,
    "reduce_window_min": _select_and_window,
    "cholesky": _matrix,
    "triangular_solve": _matrix,
    "gather": _gather,
    **dict.fromkeys(
        (
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_and",
            "reduce_or",
            "argmax",
            "argmin",
        ),
        _reduce,
    ),
}

BY_FIXED = frozenset(["mul", "div"])
KEEP_SUMS = frozenset(
    [
        *BY_FIXED,
        "add",
        "add_any",
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "concatenate",
        "neg",
        "reduce_sum",
        "reshape",
        "squeeze",
        "sub",
        "transpose",
    ]
)
"""Linear, and no dearer for each part than once for the sum: a matrix product is linear too."""

# fmt: off
ELEMENTWISE = frozenset([
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh",
    "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min",
    "mul", "name", "ne", "neg", "nextafter", "not", "noted", "or", "passed",
    "polygamma", "pow",
    "real", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh", "xor",
])
# fmt: on
