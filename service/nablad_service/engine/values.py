"""What a node of a program may hold, and the questions that operators ask of it.

A value is an array, a number of the text (still Python's: static), a tuple of values, a tree (a flat dict of
arrays), a string, or None.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from nablad.problems import Refusal

Value: TypeAlias = Any
# Ordered: JAX sorts the leaves of a plain dict by name, but parameters have the model's declared order.
Tree: TypeAlias = OrderedDict[str, Any]


def map_tree(function: Callable[..., Any], *trees: Mapping[str, Any]) -> Tree:
    """`function` of corresponding leaves, in the order of the first tree."""
    return OrderedDict((name, function(*(tree[name] for tree in trees))) for name in trees[0])


def is_array(value: Value) -> bool:
    """Whether `value` is an array, traced or not."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def is_static(value: Value) -> bool:
    """Whether `value` is a number of the text, known while tracing."""
    return isinstance(value, bool | int | float)


def is_float(value: Value) -> bool:
    """Whether `value` is an array of floats: something that can be differentiated."""
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.floating)


def show(value: Value) -> str:
    """`value` by kind and shape, for messages: `float32(10, 2)`, `a tuple of 2`, `3`."""
    if is_array(value):
        return f"{value.dtype}{tuple(value.shape)}" if value.shape else f"{value.dtype} scalar"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, dict):
        return f"a tree of {len(value)} arrays"
    return repr(value)


def in_float_type(dtype: Any, value: Value) -> Value:
    """`value` with its floats in `dtype`: JAX turns whole numbers into float64 here and there."""
    if isinstance(value, tuple):
        return tuple(in_float_type(dtype, item) for item in value)
    if isinstance(value, dict):
        return map_tree(lambda leaf: in_float_type(dtype, leaf), value)
    if isinstance(value, jax.Array) and is_float(value) and value.dtype != dtype:
        return value.astype(dtype)
    return value


def mismatch(detail: str, *shapes: Iterable[int]) -> Refusal:
    """The refusal of shapes that do not fit; they travel beside the sentence."""
    return Refusal("shape_mismatch", detail, extra={"shapes": [list(shape) for shape in shapes]})


def array(value: Value, name: str = "the argument") -> jax.Array:
    """`value` as an array; tuples of scalars are stacked.

    Raises:
        Refusal: `wrong_kind` for trees, strings and None.
    """
    if isinstance(value, tuple) and value:
        items = [array(item, name) for item in value]
        shapes = [item.shape for item in items]
        if len(set(shapes)) != 1:
            detail = f"{name} is a list of arrays of unequal shapes: {', '.join(map(str, shapes))}"
            raise mismatch(detail, *shapes)
        return jnp.stack(items)
    if not (is_array(value) or is_static(value)):
        raise Refusal("wrong_kind", f"{name} must be an array, not {show(value)}")
    return jnp.asarray(value)


def arrays_in(value: Value, what: str, dtype: Any) -> Value:
    """`value` with its numbers as arrays, floats of `dtype`; tuples and trees stay what they are.

    Raises:
        Refusal: `wrong_kind` where there is a text or None in it.
    """
    if isinstance(value, tuple):
        return tuple(arrays_in(item, what, dtype) for item in value)
    if isinstance(value, dict):
        return map_tree(jnp.asarray, value)
    if isinstance(value, str) or value is None:
        kind = "a text" if isinstance(value, str) else "None"
        raise Refusal("wrong_kind", f"{what} gives {kind}, not an array")
    return jnp.asarray(value, dtype) if isinstance(value, float) else jnp.asarray(value)


def static_int(value: Value, name: str) -> int:
    """A whole number known while tracing.

    Raises:
        Refusal: `wrong_kind` where it is computed from data.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise Refusal("wrong_kind", f"{name} must be a whole number of the text, not {show(value)}")
    return int(value)


def static_ints(value: Value, name: str) -> tuple[int, ...]:
    """One whole number or several, known while tracing."""
    items = value if isinstance(value, tuple) else (value,)
    return tuple(static_int(item, name) for item in items)


def axis(value: Value, rank: int, name: str = "axis") -> int | tuple[int, ...] | None:
    """An `axis` argument, checked against the rank of what it is used on.

    Raises:
        Refusal: `shape_mismatch` where the array has no such axis.
    """
    if value is None:
        return None
    axes = static_ints(value, name)
    for one in axes:
        if not -rank <= one < rank:
            raise Refusal("shape_mismatch", f"{name} {one} does not exist: the array has {rank} axes")
    return axes if isinstance(value, tuple) else axes[0]


def one_axis(value: Value, rank: int, name: str = "axis") -> int:
    """An `axis` argument that must name one axis."""
    return static_int(axis(static_int(value, name), rank, name), name)


def number(value: Value, name: str) -> Value:
    """A number of the text, or an array.

    Raises:
        Refusal: `wrong_kind` for anything else.
    """
    return value if is_static(value) else array(value, name)


def flag(value: Value, name: str) -> bool:
    """A truth value known while tracing."""
    if not isinstance(value, bool):
        raise Refusal("wrong_kind", f"{name} must be True or False, not {show(value)}")
    return value


def on_host(answer: Any) -> Any:
    """The answer's arrays as NumPy's; where the host is the device they are views.

    `device_get` begins all transfers before it waits for one, which costs more than a view does.
    """
    if jax.default_backend() == "cpu":
        return jax.tree.map(np.asarray, answer)
    return jax.device_get(answer)
