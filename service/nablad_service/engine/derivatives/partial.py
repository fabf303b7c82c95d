"""`d(u, x)`, `d(u, x, t)`, `d(u, x, x)`: partial derivatives, of a scalar in a scalar or entry by entry.

Where u and x are batches of equal shape and no entry of u depends on another entry of x, the Jacobian is
diagonal and one jvp with a tangent of ones reads it off. `d(u, x, t)` is `d(d(u, x), t)`.

Where a loss will be differentiated, all derivatives of one value can be taken together (`tower.py`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives import tower
from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    need_array,
)
from nablad_service.engine.values import Value, mismatch
from nablad_service.language.signatures import OperatorSignature


def forward(problem: Differentiation) -> Value:
    """One jvp with a tangent of ones."""
    return jax.jvp(problem.at, (problem.x,), (jnp.ones_like(problem.x),))[1]


def reverse(problem: Differentiation) -> Value:
    """One vjp with a cotangent of ones: a diagonal Jacobian is its own transpose."""
    y, pull = jax.vjp(problem.at, problem.x)
    (pulled_back,) = pull(jnp.ones_like(y))
    return pulled_back


def check(shapes: Shapes) -> None:
    """u and x must have one shape."""
    need_array(shapes.x, "d")
    u, x = tuple(shapes.y.shape), tuple(shapes.x.shape)
    if u == x:
        return
    hint = "use grad(u, x)" if u == () else "write a def of one point and vmap it"
    detail = f"d needs a value and a variable of one shape, not {u} and {x}; {hint}"
    raise mismatch(detail, u, x)


def independent_axes(shapes: Shapes) -> tuple[tuple[int, int], ...]:
    """Every axis with more than one entry."""
    return tuple((axis, axis) for axis, length in enumerate(shapes.x.shape) if length > 1)


def choose_together(order: int, of_derivatives: bool) -> Choice:
    """By what was measured (`tower.py`): first orders alone gain little, derivatives of derivatives lose."""
    if order > 1 and not of_derivatives:
        return Choice("tower", "all orders of one value are pulled back by one gradient, pushed forward")
    return ALONE


ALONE = Choice("forward", "one forward pass along the variable")
ROW = DerivativeRow(
    OperatorSignature(
        "d",
        "d(u, *x)",
        "Partial derivative of u in x, then in the next name: d(u, x, t). Scalars, or entry by entry.",
        "derivative",
        order=1,
    ),
    check,
    {"forward": forward, "reverse": reverse, "tower": forward},
    lambda shapes: ALONE,
    "reverse",
    independent_axes,
    together={"tower": tower.pulled_back_together},
    choose_together=choose_together,
)
