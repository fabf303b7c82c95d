"""Layers that only arrange."""

from __future__ import annotations

import math

import jax.numpy as jnp

from nablad_models.layer import Layer, per_example
from nablad_models.shapes import DoesNotFit, Shape, fits, show, size_of


def flatten(_: bool) -> Layer:
    """An example as one vector, last axis fastest."""
    return Layer(gives=lambda shape: (size_of(shape),), forward=per_example(lambda _, x: x.reshape(-1)))


def reshape(sizes: list[int]) -> Layer:
    """An example in another shape, last axis fastest; `[]` makes a single number of one value."""
    total = math.prod(sizes)

    def gives(shape: Shape) -> Shape:
        if not fits(total, size_of(shape)):
            raise DoesNotFit(f"takes {total} values")
        return tuple(sizes)

    return Layer(gives=gives, forward=per_example(lambda _, x: x.reshape(sizes)), takes=(total,))


def transpose(axes: list[int]) -> Layer:
    """The axes of an example in another order: [1, 0] makes (channels, sequence) of (sequence, channels)."""

    def gives(shape: Shape) -> Shape:
        if len(shape) != len(axes):
            raise DoesNotFit(f"takes {show((None,) * len(axes))}")
        return tuple(shape[axis] for axis in axes)

    return Layer(
        gives=gives, forward=per_example(lambda _, x: jnp.transpose(x, axes)), takes=(None,) * len(axes)
    )
