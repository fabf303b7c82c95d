"""`jvp(y, x, v)`: the tangent v pushed forward, J v."""

from __future__ import annotations

import jax

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
    {"forward": forward},
    lambda shapes, nesting: Choice("forward", "one forward pass"),
)
