"""`jvp(y, x, v)`: the tangent v pushed forward, J v."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    like,
    need_same_shape,
)
from nablad_service.engine.values import Value
from nablad_service.language.signatures import OperatorSignature


def forward(problem: Differentiation) -> Value:
    """Plain `jax.jvp`: one forward pass."""
    return jax.jvp(problem.at, (problem.x,), (like(problem.vectors[0], problem.x),))[1]


def reverse(problem: Differentiation) -> Value:
    """The transpose of the pullback: u -> u'J is linear, and its own pullback at v is J v.

    Reference: J. Townsend, A new trick for calculating Jacobian vector products (2017).
    """
    y, pull = jax.vjp(problem.at, problem.x)
    _, push = jax.vjp(lambda u: pull(u)[0], jax.tree.map(jnp.zeros_like, y))
    (pushed_forward,) = push(like(problem.vectors[0], problem.x))
    return pushed_forward


def check(shapes: Shapes) -> None:
    """v must be shaped like x."""
    need_same_shape(shapes.vectors[0], shapes.x, "jvp", "v", "the variable")


ROW = DerivativeRow(
    OperatorSignature(
        "jvp",
        "jvp(y, x, v)",
        "J v, the Jacobian-vector product; v has the shape of x, the result that of y.",
        "derivative",
        aliases=("jacobian_vector_product",),
        order=1,
    ),
    check,
    {"forward": forward, "reverse": reverse},
    lambda shapes: Choice("forward", "one forward pass"),
    "reverse",
    of_trees=True,
)
