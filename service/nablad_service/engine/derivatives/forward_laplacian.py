"""The forward Laplacian: value, Jacobian and Laplacian carried forward together, by the package folx.

Through y = φ(z), where z has the Jacobian J and the Laplacian Δz,

    Δy = φ'(z) Δz + Σᵢ Jᵢ' φ''(z) Jᵢ,

so second-order terms are summed over the coordinates after every operation, where two nested jvp carry one
second derivative for each coordinate to the end.

Reference: R. Li et al., A computational framework for neural network-based variational Monte Carlo with
Forward Laplacian, Nature Machine Intelligence 6 (2024), arXiv:2307.08214.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from nablad_service.engine.derivatives.row import Differentiation, Shapes
from nablad_service.engine.jaxprs import equations
from nablad_service.engine.values import Value

INSTALLED = importlib.util.find_spec("folx") is not None
CALLS = ("jit", "pjit", "custom_jvp_call")
"""What folx follows into the computation that is called."""


def by_folx(problem: Differentiation) -> Value:
    """The Laplacian in ε of u(x + Σᵢ εᵢ eᵢ), each eᵢ given to all examples at once.

    That keeps the batch whole: a value may read captured arrays that have an axis of examples too, so it can
    not be asked for one example at a time. Everything is plain JAX and nests to any order.
    """
    from folx import forward_laplacian
    from folx.api import FwdJacobian, FwdLaplArray

    x = problem.x
    coordinates = x.shape[len(problem.shapes.y.shape) :]
    size = math.prod(coordinates)
    ahead = (1,) * len(problem.shapes.y.shape)
    directions = jnp.eye(size, dtype=x.dtype).reshape(size, *ahead, *coordinates)
    jacobian = FwdJacobian.from_dense(jnp.broadcast_to(directions, (size, *x.shape)))
    # folx has rules for jitted functions by their names alone ("solve"), whatever they mean: leave it none.
    with jax.disable_jit():
        found = forward_laplacian(problem.at, disable_jit=True)(FwdLaplArray(x, jacobian, jnp.zeros_like(x)))
    # A bare array where nothing depends on x, by value if not by name: floor(x).
    return found.laplacian if isinstance(found, FwdLaplArray) else jnp.zeros_like(found)


def obstacle(shapes: Shapes, value: ClosedJaxpr) -> str | None:
    """folx missing, or an operation that it has no rule for: loops, convolutions, a `custom_vjp`.

    folx would take the full Hessian of an operation that it does not know, or fail.
    """
    del shapes
    if not INSTALLED:
        return "it needs the package folx, pip install 'nablad[folx]' on the server"
    from folx.wrapped_functions import is_registered

    for equation in equations(value):
        primitive = equation.primitive
        of_floats = any(_is_float(atom.aval) for atom in equation.invars)
        if of_floats and primitive.name not in CALLS and not is_registered(primitive):
            return f"folx has no rule for '{primitive.name}'"
    return None


def _is_float(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)
