"""Vectors for tokens and for their places."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from nablad.problems import Refusal
from nablad_models.initialisers import normal
from nablad_models.layer import Layer, per_example
from nablad_models.leaves import Leaf, Leaves
from nablad_models.shapes import DoesNotFit, Shape, axis_is, show
from nablad_models.structure import filled


def embedding(sizes: list[int]) -> Layer:
    """Row x of weight (vocabulary, size) for each token number x.

    x has an integer dtype and any shape; an example is a sequence unless "input" says otherwise. A number
    outside the vocabulary takes the nearest row: nothing can be refused inside a compiled program.

    Raises `Refusal("wrong_dtype")` for x that is not of an integer dtype.
    """
    vocabulary, size = sizes

    def apply(leaves: Leaves, x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise Refusal(
                "wrong_dtype", f"an embedding takes token numbers of an integer dtype, got {x.dtype}."
            )
        table = filled(eqx.nn.Embedding, leaves, vocabulary, size)
        return table(jnp.clip(x, 0, vocabulary - 1))

    return Layer(
        gives=lambda shape: (*shape, size),
        forward=per_example(apply, rank=0),
        takes=(None,),
        parameters={"weight": Leaf((vocabulary, size), normal(1.0))},
    )


def position_embedding(sizes: list[int]) -> Layer:
    """x of shape (n, size) plus a learned vector a place: weight (length, size), n up to length."""
    length, size = sizes

    def gives(shape: Shape) -> Shape:
        if len(shape) != 2 or (shape[0] or 0) > length:
            raise DoesNotFit(f"takes {show((length, size))} or shorter sequences")
        return axis_is(shape, 1, size)

    return Layer(
        gives=gives,
        forward=per_example(lambda leaves, x: x + leaves["weight"][: x.shape[0]], rank=2),
        takes=(None, size),
        parameters={"weight": Leaf((length, size), normal(0.02))},
    )
