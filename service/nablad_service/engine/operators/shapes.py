"""Arrays put together, taken apart and given other shapes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine import values
from nablad_service.engine.operators.row import row
from nablad_service.engine.values import Value, array, show

# Static numbers of an operator's arguments: `shape` stays Python's, so that reshape and zeros can use it.
LARGEST = 2**31


def shape(x: Value) -> tuple[int, ...]:
    """The lengths of the axes, as whole numbers of the text."""
    return tuple(jnp.shape(array(x)))


def transpose(x: Value, axes: Value = None) -> Value:
    """Axes reversed, or in the order given."""
    operand = array(x)
    if axes is None:
        return operand.T
    order = values.static_ints(axes, "axes")
    if sorted(one % max(operand.ndim, 1) for one in order) != list(range(operand.ndim)):
        raise Refusal("shape_mismatch", f"axes {order} do not name each of the {operand.ndim} axes once")
    return jnp.transpose(operand, order)


def _arrays(items: Value, name: str) -> list[Any]:
    if isinstance(items, tuple) and items:
        return [array(item, f"an argument of {name}") for item in items]
    hint = "; reshape(x, (-1, ...)) joins the first axes of one array" if values.is_array(items) else ""
    raise Refusal("wrong_kind", f"{name} takes a list of arrays, {name}([a, b]), not {show(items)}{hint}")


def stack(arrays: Value, axis: Value = 0) -> Value:
    """Arrays of one shape along a new axis."""
    items = _arrays(arrays, "stack")
    shapes = [item.shape for item in items]
    if len(set(shapes)) != 1:
        detail = f"stack needs equal shapes, not {', '.join(map(str, shapes))}"
        raise values.mismatch(detail, *shapes)
    where = values.one_axis(axis, items[0].ndim + 1)
    return jnp.stack(items, axis=where)


def concat(arrays: Value, axis: Value = 0) -> Value:
    """Arrays one after the other along an axis they have."""
    items = _arrays(arrays, "concat")
    shapes = [item.shape for item in items]
    if not items[0].ndim:
        raise Refusal("shape_mismatch", "concat joins arrays along an axis; numbers are joined by stack")
    where = values.one_axis(axis, items[0].ndim)
    rest = {tuple(n for i, n in enumerate(one) if i != where % len(one)) for one in shapes if one}
    if len({len(one) for one in shapes}) != 1 or len(rest) != 1:
        detail = f"concat along axis {where} needs shapes equal but there, not {', '.join(map(str, shapes))}"
        raise values.mismatch(detail, *shapes)
    return jnp.concatenate(items, axis=where)


def reshape(x: Value, shape: Value) -> Value:
    """The same entries in another shape; one length may be -1."""
    operand = array(x)
    target = values.static_ints(shape, "shape")
    known = 1
    for length in target:
        known *= length if length != -1 else 1
    free = target.count(-1)
    fits = known == operand.size if not free else free == 1 and known > 0 and operand.size % known == 0
    if not fits or any(length < -1 for length in target):
        detail = f"shape {operand.shape} with {operand.size} entries cannot become {target}"
        raise values.mismatch(detail, operand.shape, target)
    return jnp.reshape(operand, target)


def squeeze(x: Value, axis: Value = None) -> Value:
    """Without axes of length one."""
    operand = array(x)
    over = values.axis(axis, operand.ndim)
    for one in (over,) if isinstance(over, int) else over or ():
        if operand.shape[one] != 1:
            raise Refusal("shape_mismatch", f"axis {one} of shape {operand.shape} is not of length 1")
    return jnp.squeeze(operand, axis=over)


def expand_dims(x: Value, axis: Value) -> Value:
    """With a new axis of length one."""
    operand = array(x)
    return jnp.expand_dims(operand, values.one_axis(axis, operand.ndim + 1))


def take(x: Value, indices: Value, axis: Value = 0) -> Value:
    """Entries by their positions along an axis; positions out of range give NaN."""
    operand, positions = array(x), array(indices)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise Refusal("wrong_dtype", f"positions are whole numbers, not {show(positions)}")
    return jnp.take(operand, positions, axis=values.one_axis(axis, operand.ndim))


def broadcast_to(x: Value, shape: Value) -> Value:
    """`x` repeated to a shape."""
    operand, target = array(x), _shape(shape)
    try:
        return jnp.broadcast_to(operand, target)
    except ValueError:
        detail = f"shape {operand.shape} does not broadcast to {target}"
        raise values.mismatch(detail, operand.shape, target) from None


def flip(x: Value, axis: Value = None) -> Value:
    """Entries in reverse order."""
    operand = array(x)
    return jnp.flip(operand, axis=values.axis(axis, operand.ndim))


def roll(x: Value, shift: Value, axis: Value = None) -> Value:
    """Entries moved along an axis, around the end."""
    operand = array(x)
    return jnp.roll(operand, values.static_int(shift, "shift"), axis=values.axis(axis, operand.ndim))


def _shape(value: Value) -> tuple[int, ...]:
    target = values.static_ints(value, "shape")
    size = 1
    for length in target:
        size *= length
        if length < 0:
            raise Refusal("shape_mismatch", f"a shape has no negative lengths: {target}")
        if size >= LARGEST:
            raise Refusal("limit", f"an array of shape {target} is not made here: at most 2**31 entries")
    return target


def zeros(shape: Value, *, dtype: Any) -> Value:
    """Zeros in the program's float type."""
    return jnp.zeros(_shape(shape), dtype)


def ones(shape: Value, *, dtype: Any) -> Value:
    """Ones in the program's float type."""
    return jnp.ones(_shape(shape), dtype)


def eye(n: Value, *, dtype: Any) -> Value:
    """The identity matrix."""
    length = values.static_int(n, "n")
    return jnp.eye(_shape((length, length))[0], dtype=dtype)


def arange(n: Value, *, dtype: Any) -> Value:
    """0, 1, ..., n-1 as whole numbers."""
    del dtype
    return jnp.arange(_shape(values.static_int(n, "n"))[0], dtype=jnp.int32)


def linspace(start: Value, stop: Value, n: Value, *, dtype: Any) -> Value:
    """n numbers from start to stop, both included."""
    first, last = values.number(start, "start"), values.number(stop, "stop")
    return jnp.linspace(first, last, _shape(values.static_int(n, "n"))[0], dtype=dtype)


def like(make: Any) -> Any:
    """`zeros_like` and `ones_like`, also of trees."""

    def apply(x: Value) -> Value:
        if isinstance(x, dict):
            return values.map_tree(make, x)
        return make(array(x))

    return apply


ROWS = (
    row("x.shape", "Lengths of the axes, whole numbers.", "shape", shape, name="shape"),
    row("transpose(x, axes=None)", "Axes reversed (also x.T), or in the order given.", "shape", transpose),
    row("stack(arrays, axis=0)", "Arrays of one shape along a new axis.", "shape", stack),
    row("concat(arrays, axis=0)", "Arrays one after the other.", "shape", concat, aliases=("concatenate",)),
    row("reshape(x, shape)", "The same entries in another shape; one length may be -1.", "shape", reshape),
    row("squeeze(x, axis=None)", "Without axes of length one.", "shape", squeeze),
    row("expand_dims(x, axis)", "With a new axis of length one.", "shape", expand_dims),
    row("take(x, indices, axis=0)", "Entries by position; out of range gives NaN.", "shape", take),
    row("broadcast_to(x, shape)", "x repeated to a shape.", "shape", broadcast_to),
    row("flip(x, axis=None)", "Entries in reverse order.", "shape", flip),
    row("roll(x, shift, axis=None)", "Entries moved along an axis, around the end.", "shape", roll),
    row("zeros(shape)", "Zeros in the program's float type.", "shape", zeros, takes_dtype=True),
    row("ones(shape)", "Ones in the program's float type.", "shape", ones, takes_dtype=True),
    row("zeros_like(x)", "Zeros of the shape of x.", "shape", like(jnp.zeros_like)),
    row("ones_like(x)", "Ones of the shape of x.", "shape", like(jnp.ones_like)),
    row("eye(n)", "The identity matrix.", "shape", eye, takes_dtype=True),
    row("arange(n)", "0, 1, ..., n-1 as whole numbers.", "shape", arange, takes_dtype=True),
    row("linspace(start, stop, n)", "n numbers from start to stop.", "shape", linspace, takes_dtype=True),
)
