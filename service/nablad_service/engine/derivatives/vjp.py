"""`vjp(y, x, u)`: the cotangent u pulled back, u'J: the gradient in x of <u, y>."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives import gradient
from nablad_service.engine.derivatives.row import (
    Captured,
    DerivativeRow,
    Differentiation,
    Shapes,
    inner,
    need_same_shape,
)
from nablad_service.engine.values import Value
from nablad_service.language.signatures import OperatorSignature

# Captured nodes have indices from 0; the cotangent travels with them so that its own gradient is kept.
COTANGENT = -1


def _paired(problem: Differentiation) -> Differentiation:
    """The scalar <u, y(x)> in place of y, with u among the captured values."""
    u = jnp.asarray(problem.vectors[0]).astype(problem.shapes.y.dtype)

    def scalar(x: Value, captured: Captured) -> Any:
        return inner(captured[COTANGENT], problem.function(x, captured))

    return replace(problem, function=scalar, captured={**problem.captured, COTANGENT: u})


def reverse_over_reverse(problem: Differentiation) -> Value:
    """Plain `jax.vjp`."""
    u = jnp.asarray(problem.vectors[0]).astype(problem.shapes.y.dtype)
    (pulled_back,) = jax.vjp(problem.at, problem.x)[1](u)
    return pulled_back


def forward_over_reverse(problem: Differentiation) -> Value:
    """The gradient of <u, y>, pulled back by one jvp with respect to everything, u included."""
    if not problem.differentiated:
        return reverse_over_reverse(problem)
    return gradient.forward_over_reverse(_paired(problem))


def check(shapes: Shapes) -> None:
    """u must be shaped like y."""
    need_same_shape(shapes.vectors[0], shapes.y, "vjp", "u", "the value")


ROW = DerivativeRow(
    OperatorSignature(
        "vjp",
        "vjp(y, x, u)",
        "u'J, the vector-Jacobian product; u has the shape of y, the result that of x.",
        "derivative",
        aliases=("vector_jacobian_product",),
        order=1,
    ),
    check,
    {"forward_over_reverse": forward_over_reverse, "reverse_over_reverse": reverse_over_reverse},
    gradient.choose,
    "reverse_over_reverse",
)
