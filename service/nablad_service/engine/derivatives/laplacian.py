"""`laplacian(u, x)`: the trace of the Hessian, exact, per example by shape.

u is a scalar an example: its shape is a leading part of that of x, and the axes that x has beyond it hold the
coordinates. Along coordinate i the second derivative is d²/dε² u(x + ε eᵢ); where examples do not mix, one
tangent eᵢ given to all of them reads it off for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    need_array,
)
from nablad_service.engine.values import Value, mismatch
from nablad_service.language.signatures import OperatorSignature


def forward_over_forward(problem: Differentiation) -> Value:
    """Second derivatives along each coordinate, by two nested jvp."""
    x = problem.x
    coordinates = x.shape[len(problem.shapes.y.shape) :]

    def along(tangent: jax.Array) -> jax.Array:
        v = jnp.broadcast_to(tangent.reshape(coordinates), x.shape)
        return jax.jvp(lambda x: jax.jvp(problem.at, (x,), (v,))[1], (x,), (v,))[1]

    return jnp.sum(jax.vmap(along)(jnp.eye(math.prod(coordinates), dtype=x.dtype)), axis=0)


def _over_reverse(problem: Differentiation, product: Callable[[Callable[..., Any], Any], Any]) -> Value:
    """Diagonal entries of Hessian-vector products with each coordinate; `product` makes v -> H v."""
    x = problem.x
    rank = len(problem.shapes.y.shape)
    coordinates = x.shape[rank:]
    along_hessian = product(jax.grad(lambda x: jnp.sum(problem.at(x))), x)

    def along(direction: jax.Array) -> jax.Array:
        v = jnp.broadcast_to(direction.reshape(coordinates), x.shape)
        return jnp.sum(v * along_hessian(v), axis=tuple(range(rank, x.ndim)))

    return jnp.sum(jax.vmap(along)(jnp.eye(math.prod(coordinates), dtype=x.dtype)), axis=0)


def forward_over_reverse(problem: Differentiation) -> Value:
    """Hessian-vector products by jvp of the gradient."""
    return _over_reverse(problem, lambda gradient, x: jax.linearize(gradient, x)[1])


def reverse_over_reverse(problem: Differentiation) -> Value:
    """Hessian-vector products by vjp of the gradient."""

    def product(gradient: Callable[..., Any], x: Any) -> Callable[..., Any]:
        _, pull = jax.vjp(gradient, x)
        return lambda v: pull(v)[0]

    return _over_reverse(problem, product)


def check(shapes: Shapes) -> None:
    """u a scalar an example."""
    need_array(shapes.x, "laplacian")
    u, x = tuple(shapes.y.shape), tuple(shapes.x.shape)
    if len(u) >= len(x) or x[: len(u)] != u:
        column = len(u) == len(x) and u[:-1] == x[:-1] and u[-1:] == (1,)
        hint = "index it with [..., 0]" if column else "take one component, u[..., 0], or a def of one point"
        detail = f"laplacian needs a value whose shape begins that of the variable, not {u} and {x}; {hint}"
        raise mismatch(detail, u, x)


def independent_axes(shapes: Shapes) -> tuple[tuple[int, int], ...]:
    """The axes that value and variable share."""
    return tuple((axis, axis) for axis, length in enumerate(shapes.y.shape) if length > 1)


def choose(shapes: Shapes) -> Choice:
    """Forward over forward."""
    del shapes
    return Choice("forward_over_forward", "two forward passes along each coordinate")


ROW = DerivativeRow(
    OperatorSignature(
        "laplacian",
        "laplacian(u, x)",
        "Sum of the second derivatives of the scalar u along each coordinate of x, per example.",
        "derivative",
        order=2,
        not_taken="it is exact and takes no probes; hutchinson_trace(g, x, v) of g = grad(u, x) estimates it",
    ),
    check,
    {
        "forward_over_forward": forward_over_forward,
        "forward_over_reverse": forward_over_reverse,
        "reverse_over_reverse": reverse_over_reverse,
    },
    choose,
    "reverse_over_reverse",
    independent_axes,
)
