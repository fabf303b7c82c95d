"""`hessian(y, x)`: all second derivatives of a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.flatten_util import ravel_pytree

from nablad_service.engine.derivatives import hvp
from nablad_service.engine.derivatives.row import DerivativeRow, Differentiation, Shapes, need_scalar
from nablad_service.engine.values import Value
from nablad_service.language.signatures import OperatorSignature


def _flattened(problem: Differentiation) -> tuple[Callable[[Any], Any], Any]:
    """The scalar as a function of one array: trees in declared order."""
    if not isinstance(problem.x, dict):
        return problem.at, problem.x
    flat, unravel = ravel_pytree(problem.x)
    return lambda flat: problem.at(unravel(flat)), flat


def forward_over_reverse(problem: Differentiation) -> Value:
    """Forward Jacobian of the gradient."""
    function, x = _flattened(problem)
    return jax.jacfwd(jax.grad(function))(x)


def reverse_over_reverse(problem: Differentiation) -> Value:
    """Reverse Jacobian of the gradient."""
    function, x = _flattened(problem)
    return jax.jacrev(jax.grad(function))(x)


def check(shapes: Shapes) -> None:
    """y a scalar."""
    need_scalar(shapes, "hessian")


ROW = DerivativeRow(
    OperatorSignature(
        "hessian",
        "hessian(y, x)",
        "All second derivatives of the scalar y, shape x.shape + x.shape; for parameters (count, count).",
        "derivative",
        order=2,
    ),
    check,
    {"forward_over_reverse": forward_over_reverse, "reverse_over_reverse": reverse_over_reverse},
    hvp.choose,
    "reverse_over_reverse",
    result_shape=lambda shapes: (shapes.x_size, shapes.x_size),
)
