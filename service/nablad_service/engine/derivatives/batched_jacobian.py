"""`batched_jacobian(y, x)`: one Jacobian an example, where examples do not mix.

Then the tangent e_j given to *all* examples at once pushes forward to column j of every example's Jacobian,
so the whole costs min(x size, y size) passes, not batch times as many.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
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
    """One tangent for each entry of an example of x."""
    x = problem.x
    batch, size = x.shape[0], math.prod(x.shape[1:])
    _, push = jax.linearize(problem.at, x)

    def column(tangent: jax.Array) -> jax.Array:
        return push(jnp.broadcast_to(tangent.reshape(x.shape[1:]), x.shape)).reshape(batch, -1)

    return jax.vmap(column, out_axes=2)(jnp.eye(size, dtype=x.dtype))


def reverse(problem: Differentiation) -> Value:
    """One cotangent for each entry of an example of y."""
    shape, dtype = problem.shapes.y.shape, problem.shapes.y.dtype
    batch, size = shape[0], math.prod(shape[1:])
    _, pull = jax.vjp(problem.at, problem.x)

    def line(cotangent: jax.Array) -> jax.Array:
        (pulled_back,) = pull(jnp.broadcast_to(cotangent.reshape(shape[1:]), shape))
        return pulled_back.reshape(batch, -1)

    return jax.vmap(line, out_axes=1)(jnp.eye(size, dtype=dtype))


def check(shapes: Shapes) -> None:
    """x and y need a leading axis of examples, of one length."""
    if isinstance(shapes.x, dict):
        hint = "write a def of one example and vmap it: vmap(f)(x) with jacobian inside"
        raise Refusal("wrong_kind", f"parameters have no axis of examples; {hint}")
    need_array(shapes.x, "batched_jacobian")
    x, y = tuple(shapes.x.shape), tuple(shapes.y.shape)
    if not x or not y or x[0] != y[0]:
        detail = f"batched_jacobian needs a common leading axis of examples, not {y} and {x}; see jacobian"
        raise mismatch(detail, y, x)


def choose(shapes: Shapes) -> Choice:
    """The narrow side."""
    batch = max(shapes.x.shape[0], 1)
    narrow, wide = shapes.x_size // batch, shapes.y_size // batch
    reason = f"{narrow} entries of the variable an example, {wide} of the value"
    return Choice("forward" if narrow <= wide else "reverse", reason)


ROW = DerivativeRow(
    OperatorSignature(
        "batched_jacobian",
        "batched_jacobian(y, x)",
        "One Jacobian an example, shape (batch, y size, x size); refused where the model mixes examples.",
        "derivative",
        order=1,
    ),
    check,
    {"forward": forward, "reverse": reverse},
    choose,
    "reverse",
    independent_axes=lambda shapes: ((0, 0),) if shapes.x.shape[0] > 1 else (),
    result_shape=lambda shapes: (shapes.y_size, shapes.x_size // max(shapes.x.shape[0], 1)),
)
