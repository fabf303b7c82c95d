"""Functions for `nablad serve --models examples/my_functions.py`: programs call what is in FUNCTIONS by name.

A function gets arrays, trees, and `def`s of the program, which arrive as pure JAX functions: `f(t, y)`.
It gives an array, a tuple or a flat mapping of them. Its signature is what calls are checked by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import lineax
import optimistix


def odeint(f: Callable[..., Any], y0: Any, t1: Any, rtol: float = 1e-6, atol: float = 1e-6) -> Any:
    """y(t1) of y' = f(t, y), y(0) = y0, by adaptive steps; differentiated through the steps."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, f: f(t, y)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=t1,
        dt0=None,
        y0=y0,
        args=f,  # as an argument: so the solver sees what f reads, and differentiates by it
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
    )
    return jax.tree.map(lambda y: y[0], solution.ys)


def root(f: Callable[..., Any], guess: Any, tol: float = 1e-6) -> Any:
    """z with f(z) = 0, by Newton's method; differentiated by the implicit function theorem."""
    solver: Any = optimistix.Newton(rtol=tol, atol=tol)
    return optimistix.root_find(lambda z, f: f(z), solver, guess, args=f).value


def conjugate_gradients(product: Callable[..., Any], b: Any, tol: float = 1e-6) -> Any:
    """x with A x = b, A symmetric, positive definite and known by its products with vectors."""
    operator = lineax.FunctionLinearOperator(
        product, jax.ShapeDtypeStruct(b.shape, b.dtype), lineax.positive_semidefinite_tag
    )
    return lineax.linear_solve(operator, b, lineax.CG(rtol=tol, atol=tol)).value


FUNCTIONS = {"odeint": odeint, "root": root, "conjugate_gradients": conjugate_gradients}
