"""`hvp(y, x, v)`: the Hessian of a scalar times a vector, without the Hessian.

Reference: B. A. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994).
"""

from __future__ import annotations

import jax

from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    inner,
    like,
    need_same_shape,
    need_scalar,
)
from nablad_service.engine.values import Value
from nablad_service.language.signatures import OperatorSignature


def forward_over_reverse(problem: Differentiation) -> Value:
    """The directional derivative of the gradient."""
    v = like(problem.vectors[0], problem.x)
    return jax.jvp(jax.grad(problem.at), (problem.x,), (v,))[1]


def reverse_over_reverse(problem: Differentiation) -> Value:
    """The gradient of <∇y, v>."""
    v = like(problem.vectors[0], problem.x)
    return jax.grad(lambda x: inner(jax.grad(problem.at)(x), v))(problem.x)


def check(shapes: Shapes) -> None:
    """y a scalar, v shaped like x."""
    need_scalar(shapes, "hvp")
    need_same_shape(shapes.vectors[0], shapes.x, "hvp", "v", "the variable")


def choose(shapes: Shapes) -> Choice:
    """Forward over reverse."""
    del shapes
    return Choice("forward_over_reverse", "one jvp over the gradient")


ROW = DerivativeRow(
    OperatorSignature(
        "hvp",
        "hvp(y, x, v)",
        "H v, the Hessian of the scalar y times v; v and the result have the shape of x.",
        "derivative",
        order=2,
    ),
    check,
    {"forward_over_reverse": forward_over_reverse, "reverse_over_reverse": reverse_over_reverse},
    choose,
    "reverse_over_reverse",
)
