"""How several answers become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import jax.numpy as jnp
from jax import Array

from nablad_models.layer import Join, Layer, per_example
from nablad_models.shapes import DoesNotFit, Shape, all_fit, show


def _dot(parts: Sequence[Array], _: int) -> Array:
    # One contraction: n branches meet m trunks without the (n, m, size) products in between.
    return jnp.einsum(",".join(["...p"] * len(parts)) + "->...", *parts)


# From arrays of one rank and an axis counted from their first; all but concat want equal examples.
JOINS: dict[str, Callable[[Sequence[Array], int], Array]] = {
    "concat": lambda parts, axis: jnp.concatenate(_broadcast(parts, axis), axis),
    "sum": lambda parts, _: reduce(jnp.add, parts),
    "product": lambda parts, _: reduce(jnp.multiply, parts),
    "stack": lambda parts, axis: jnp.stack(jnp.broadcast_arrays(*parts), axis),
    "dot": _dot,
}


def join(how: str, *, axis: int) -> Layer:
    """The answers of several layers as one, and nothing after it.

    `concat` and `stack` along `axis` of one example, `sum` and `product` entry by entry, `dot` the sum over
    the last axis of the product. Batch axes broadcast as NumPy's do.
    """
    return Layer(
        gives=lambda shape: shape,
        forward=per_example(lambda _, x: x),
        joins=Join(
            gives=lambda shapes: joined_shape(shapes, how, axis),
            forward=lambda parts, batch_axes: JOINS[how](parts, batch_axes + axis),
        ),
    )


def joined_shape(shapes: Sequence[Shape], how: str, axis: int) -> Shape:
    """The shape of one example after the join; raises `DoesNotFit`."""
    first = shapes[0]
    said = " and ".join(map(show, shapes))
    if axis > len(first) - (how == "concat") and how in ("concat", "stack"):
        raise DoesNotFit(f"joins along axis {axis}, which {said} do not have")

    def without(shape: Shape) -> Shape:
        return (*shape[:axis], *shape[axis + 1 :]) if how == "concat" else shape

    if any(len(shape) != len(first) or not all_fit(without(first), without(shape)) for shape in shapes):
        raise DoesNotFit(f"cannot {how} {said}")
    agreed = [next((size for size in sizes if size is not None), None) for sizes in zip(*shapes, strict=True)]
    if how == "stack":
        return (*agreed[:axis], len(shapes), *agreed[axis:])
    if how == "concat":
        along = [shape[axis] for shape in shapes]
        known = [size for size in along if size is not None]
        agreed[axis] = sum(known) if len(known) == len(along) else None
    if how == "dot":
        if not first:
            raise DoesNotFit(f"takes vectors, not the single numbers {said}")
        return tuple(agreed[:-1])
    return tuple(agreed)


def _broadcast(parts: Sequence[Array], axis: int) -> list[Array]:
    """The arrays with equal sizes before and after `axis`."""
    shapes = [(*part.shape[:axis], 1, *part.shape[axis + 1 :]) for part in parts]
    common = jnp.broadcast_shapes(*shapes)
    sizes = [(*common[:axis], part.shape[axis], *common[axis + 1 :]) for part in parts]
    return [jnp.broadcast_to(part, shape) for part, shape in zip(parts, sizes, strict=True)]
