"""Functions of each entry: the names and meanings are NumPy's and JAX's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad_service.engine.operators.arithmetic import check_broadcast
from nablad_service.engine.operators.row import Row, row
from nablad_service.engine.values import Value, array, map_tree, number


def unary(name: str, doc: str, function: Callable[[Any], Any], *, aliases: tuple[str, ...] = ()) -> Row:
    """A function of one array; a parameter tree goes leaf by leaf."""

    def apply(x: Value) -> Value:
        if isinstance(x, dict):
            return map_tree(apply, x)
        return function(array(x, f"the argument of {name}"))

    return row(f"{name}(x)", doc, "elementwise", apply, aliases=aliases)


def binary(name: str, doc: str, function: Callable[[Any, Any], Any]) -> Row:
    """A function of two arrays that broadcast."""

    def apply(a: Value, b: Value) -> Value:
        left, right = array(a, f"the first argument of {name}"), array(b, f"the second argument of {name}")
        check_broadcast(left, right, name)
        return function(left, right)

    return row(f"{name}(a, b)", doc, "elementwise", apply)


def where(condition: Value, a: Value, b: Value) -> Value:
    """`a` where the condition holds, else `b`."""
    chosen, left, right = array(condition), array(a), array(b)
    check_broadcast(left, right, "where")
    check_broadcast(chosen, left, "where")
    return jnp.where(
        chosen, a if not isinstance(a, tuple) else left, b if not isinstance(b, tuple) else right
    )


def clip(x: Value, lower: Value, upper: Value) -> Value:
    """`x` held between two bounds; None leaves a side open."""
    bounds = (bound if bound is None else number(bound, "a bound of clip") for bound in (lower, upper))
    return jnp.clip(array(x), *bounds)


def stop_gradient(y: Value) -> Value:
    """`y` held fixed by every derivative, inner and outer."""
    return jax.lax.stop_gradient(y if isinstance(y, dict | tuple) else array(y))


ROWS = (
    unary("abs", "Absolute value.", jnp.abs),
    unary("sign", "-1, 0 or 1.", jnp.sign),
    unary("square", "x squared.", jnp.square),
    unary("sqrt", "Square root; its derivative is infinite at zero.", jnp.sqrt),
    unary("exp", "e to the x.", jnp.exp),
    unary("expm1", "exp(x) - 1, exact near zero.", jnp.expm1),
    unary("log", "Natural logarithm.", jnp.log),
    unary("log1p", "log(1 + x), exact near zero.", jnp.log1p),
    unary("sin", "Sine of an angle in radians.", jnp.sin),
    unary("cos", "Cosine of an angle in radians.", jnp.cos),
    unary("tan", "Tangent of an angle in radians.", jnp.tan),
    unary("arcsin", "Inverse sine.", jnp.arcsin),
    unary("arccos", "Inverse cosine.", jnp.arccos),
    unary("arctan", "Inverse tangent.", jnp.arctan),
    binary("arctan2", "Angle of the point (b, a).", jnp.arctan2),
    unary("sinh", "Hyperbolic sine.", jnp.sinh),
    unary("cosh", "Hyperbolic cosine.", jnp.cosh),
    unary("tanh", "Hyperbolic tangent.", jnp.tanh),
    unary("sigmoid", "1 / (1 + exp(-x)).", jax.nn.sigmoid),
    unary("relu", "max(x, 0); its second derivative is zero.", jax.nn.relu),
    unary("softplus", "log(1 + exp(x)).", jax.nn.softplus),
    unary(
        "gelu",
        "x times the normal distribution function of x (exact).",
        lambda x: jax.nn.gelu(x, approximate=False),
    ),
    unary("silu", "x times sigmoid(x).", jax.nn.silu, aliases=("swish",)),
    unary("erf", "Error function.", jax.scipy.special.erf),
    unary("floor", "Rounded down.", jnp.floor),
    unary("ceil", "Rounded up.", jnp.ceil),
    unary("round", "Rounded to the nearest whole number, halves to even.", jnp.round),
    unary("isfinite", "Whether x is neither infinite nor NaN.", jnp.isfinite),
    binary("maximum", "The larger of two.", jnp.maximum),
    binary("minimum", "The smaller of two.", jnp.minimum),
    binary("logical_and", "Whether both hold.", jnp.logical_and),
    binary("logical_or", "Whether one of the two holds.", jnp.logical_or),
    unary("logical_not", "Whether it does not hold.", jnp.logical_not),
    row("where(condition, a, b)", "a where the condition holds, else b.", "elementwise", where),
    row("clip(x, lower, upper)", "x held between two bounds; None leaves a side open.", "elementwise", clip),
    row(
        "stop_gradient(y)",
        "y, held fixed by every derivative, inner and outer.",
        "derivative",
        stop_gradient,
    ),
)
