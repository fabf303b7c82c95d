"""`divergence(f, x)`: the trace of the Jacobian, exact, per example; the last axis holds coordinates."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives.hutchinson import independent_axes
from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    need_square,
)
from nablad_service.engine.values import Value
from nablad_service.language.signatures import OperatorSignature


def forward(problem: Differentiation) -> Value:
    """One tangent a coordinate, for all examples at once."""
    x = problem.x
    _, push = jax.linearize(problem.at, x)

    def along(tangent: jax.Array) -> jax.Array:
        v = jnp.broadcast_to(tangent, x.shape)
        return jnp.sum(v * push(v), axis=-1)

    return jnp.sum(jax.vmap(along)(jnp.eye(x.shape[-1], dtype=x.dtype)), axis=0)


def reverse(problem: Differentiation) -> Value:
    """One cotangent a coordinate, for all examples at once."""
    x = problem.x
    _, pull = jax.vjp(problem.at, x)

    def along(cotangent: jax.Array) -> jax.Array:
        v = jnp.broadcast_to(cotangent, x.shape)
        return jnp.sum(v * pull(v)[0], axis=-1)

    return jnp.sum(jax.vmap(along)(jnp.eye(x.shape[-1], dtype=x.dtype)), axis=0)


def check(shapes: Shapes) -> None:
    """f a vector field: shaped like x, with coordinates on the last axis."""
    need_square(shapes, "divergence")


ROW = DerivativeRow(
    OperatorSignature(
        "divergence",
        "divergence(f, x)",
        "Trace of the Jacobian of the vector field f, exact, per example; coordinates on the last axis.",
        "derivative",
        order=1,
        not_taken="it is exact and takes no probes; an estimate is hutchinson_trace(f, x, v)",
    ),
    check,
    {"forward": forward, "reverse": reverse},
    lambda shapes: Choice("forward", "one forward pass a coordinate"),
    "reverse",
    independent_axes,
)
