"""Which entries, which axes: the checks that JAX leaves out when it indexes and maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nablad.problems import Refusal
from nablad_service.engine import values
from nablad_service.engine.values import Value, show
from nablad_service.language.places import nearest


def leaf_of(tree: Mapping[str, Any], entries: list[Any]) -> Value:
    """`tree["name"]`."""
    if len(entries) != 1 or not isinstance(entries[0], str):
        detail = f"a tree is indexed by the name of a leaf; it has {', '.join(tree)}"
        raise Refusal("wrong_kind", detail)
    if entries[0] not in tree:
        raise Refusal("unknown_name", no_leaf(entries[0], tree))
    return tree[entries[0]]


def no_leaf(name: str, tree: Mapping[str, Any]) -> str:
    """The sentence for a leaf that a tree does not have."""
    return f"there is no leaf '{name}'{nearest(name, tree)}; the tree has {', '.join(tree)}"


def check_index(operand: jax.Array, entries: list[Any]) -> None:
    """JAX clamps positions out of range in silence; here they are refused."""
    given = [entry for entry in entries if entry is not None and entry is not Ellipsis]
    if len(given) > operand.ndim:
        raise Refusal("shape_mismatch", f"shape {operand.shape} has no {len(given)} axes to index")
    at = 0
    for entry in entries:
        if entry is None:
            continue
        if entry is Ellipsis:
            at = operand.ndim - len(given) + at
            continue
        if isinstance(entry, int) and not isinstance(entry, bool):
            length = operand.shape[at]
            if not -length <= entry < length:
                detail = f"position {entry} is out of range: axis {at} of shape {operand.shape} has {length}"
                raise Refusal("shape_mismatch", detail)
        elif not isinstance(entry, slice):
            whole = values.is_array(entry) and jnp.issubdtype(entry.dtype, jnp.integer)
            if not whole:
                hint = "; take(x, [0, 2], axis=0) picks several" if isinstance(entry, tuple) else ""
                detail = f"an index is a whole number, a slice or None, not {show(entry)}{hint}"
                raise Refusal("wrong_kind", detail)
        at += 1


def mapped_axes(
    in_axes: tuple[int | None, ...] | None, arguments: list[Value]
) -> tuple[tuple[int | None, ...], int]:
    """The axis of each argument (as given, else 0; none for numbers, which all share), and their length."""
    given = in_axes or (0,)
    if len(given) == 1:
        given = given * len(arguments)
    axes: list[int | None] = []
    lengths: dict[int, int] = {}
    for position, (argument, axis) in enumerate(zip(arguments, given, strict=True)):
        leaves = [np.shape(leaf) for leaf in jax.tree.leaves(argument)]
        if axis is None or all(shape == () for shape in leaves):
            axes.append(None)
            continue
        for shape in leaves:
            if not -len(shape) <= axis < len(shape):
                detail = f"argument {position + 1} of shape {shape} has no axis {axis} to map over"
                raise Refusal("shape_mismatch", detail)
            lengths[position + 1] = shape[axis]
        axes.append(axis)
    if not lengths:
        raise Refusal("shape_mismatch", "vmap needs at least one argument with an axis to map over")
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"argument {position} has {length}" for position, length in lengths.items())
        raise Refusal("shape_mismatch", f"vmap maps over axes of one length: {counts}")
    return tuple(axes), next(iter(lengths.values()))


def common_length(xs: Value) -> int:
    """The length of the leading axis that all arrays of a loop's data share."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(xs)]
    if not shapes or any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        shown = ", ".join(map(str, shapes)) or "nothing"
        raise Refusal(
            "shape_mismatch", f"scan goes over the leading axis of arrays of one length, not {shown}"
        )
    return int(shapes[0][0])


def carried(result: Value, init: Value, operator: str) -> Value:
    """What a loop's body hands on: of the shapes and dtypes that it began with."""
    before: Any = jax.tree.structure(init)
    same = before == jax.tree.structure(result) and all(
        np.shape(a) == np.shape(b)
        for a, b in zip(jax.tree.leaves(init), jax.tree.leaves(result), strict=True)
    )
    if not same:
        detail = (
            f"the body of {operator} must return what it was given: {_shapes(init)}, not {_shapes(result)}"
        )
        raise Refusal("shape_mismatch", detail)
    return jax.tree.map(lambda a, b: b.astype(a.dtype), init, result)


def _shapes(value: Value) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shapes(item) for item in value)})"
    return show(value)
