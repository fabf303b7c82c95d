"""Batch axes of several inputs: found, made common, and folded into one where a model knows only one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import Array

from nablad.problems import Refusal
from nablad_models.shapes import Shape, all_fit, show


def common_batch(shapes: Mapping[str, Shape | None], inputs: Sequence[Array]) -> tuple[int, ...]:
    """The axes before one example, those of all inputs broadcast against each other.

    Raises `Refusal("shape_mismatch")` for an input that ends in no example, and for batch axes that do not
    broadcast.
    """
    batches = {}
    for (name, shape), x in zip(shapes.items(), inputs, strict=True):
        batches[name] = batch_of(name, shape, x)
    try:
        return jnp.broadcast_shapes(*batches.values())
    except ValueError:
        listed = ", ".join(f"{name} {show(batch)}" for name, batch in batches.items())
        raise Refusal("shape_mismatch", f"the batch axes of the inputs do not broadcast: {listed}.") from None


def batch_of(name: str, shape: Shape | None, x: Array) -> tuple[int, ...]:
    """The axes of `x` before one example of `shape`; none where the shape is not said.

    Raises `Refusal("shape_mismatch")` when it does not end in one.
    """
    if shape is None:
        return ()
    axes = x.ndim - len(shape)
    if axes < 0 or not all_fit(shape, x.shape[axes:]):
        raise Refusal(
            "shape_mismatch",
            f"the model takes examples of shape {show(shape)} as {name}, "
            f"got an array of shape {show(x.shape)}.",
        )
    return x.shape[:axes]


def one_batch_axis(x: Array, shape: Shape, batch: tuple[int, ...]) -> Array:
    """`x` broadcast to all of `batch`, folded into one axis: `(examples, *shape)`.

    One axis stays as it is: nothing is reshaped that need not be, so that the traced computation shows which
    axis holds the examples.
    """
    example = x.shape[x.ndim - len(shape) :]
    if x.shape != (*batch, *example):
        x = jnp.broadcast_to(x, (*batch, *example))
    return x if len(batch) == 1 else x.reshape(math.prod(batch), *example)


def unfolded(y: Array, batch: tuple[int, ...]) -> Array:
    """An answer `(examples, ...)` with the batch axes it stands for."""
    return y if len(batch) == 1 else y.reshape(*batch, *y.shape[1:])
