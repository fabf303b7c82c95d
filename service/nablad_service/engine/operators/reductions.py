"""From many entries to fewer: over all axes, or over `axis`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine import values
from nablad_service.engine.operators.row import Row, row
from nablad_service.engine.values import Value, array


def reduction(name: str, doc: str, function: Callable[..., Any], *, empty: bool = True) -> Row:
    """A reduction with `axis` and `keepdims`; `empty` says whether it has a value for no entries."""

    def apply(x: Value, axis: Value = None, keepdims: Value = False) -> Value:
        operand = array(x, f"the argument of {name}")
        if not empty and operand.size == 0:
            raise Refusal("shape_mismatch", f"{name} of an empty array, shape {operand.shape}")
        over = values.axis(axis, operand.ndim)
        return function(operand, axis=over, keepdims=values.flag(keepdims, "keepdims"))

    return row(f"{name}(x, axis=None, keepdims=False)", doc, "reduction", apply)


def norm(x: Value, axis: Value = None, keepdims: Value = False, eps: Value = 0) -> Value:
    """sqrt(sum |x|² + eps²): of all entries, over an axis, or of a whole parameter tree."""
    if isinstance(x, dict):
        if axis is not None or keepdims:
            raise Refusal("wrong_kind", "norm of a tree is over all its leaves; it takes no axis")
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in x.values())
    else:
        operand = array(x, "the argument of norm")
        over = values.axis(axis, operand.ndim)
        squares = jnp.sum(jnp.square(operand), axis=over, keepdims=values.flag(keepdims, "keepdims"))
    if values.is_static(eps) and eps == 0:
        return jnp.sqrt(squares)
    return jnp.sqrt(squares + values.number(eps, "eps") ** 2)


def norm_of_squares(x: Value, axis: Value = None, eps: Value = 0) -> Value:
    """`norm` of what is given by the sum of its squares, or by a sum for each row where there is an axis."""
    squares = array(x, "the argument of norm")
    squares = jnp.sum(squares) if axis is None else squares
    if values.is_static(eps) and eps == 0:
        return jnp.sqrt(squares)
    return jnp.sqrt(squares + values.number(eps, "eps") ** 2)


def along(name: str, doc: str, function: Callable[..., Any], default: str) -> Row:
    """A function along one axis that keeps the shape."""

    def apply(x: Value, axis: Value = None if default == "None" else int(default)) -> Value:
        operand = array(x, f"the argument of {name}")
        return function(operand, axis=values.axis(axis, operand.ndim))

    return row(f"{name}(x, axis={default})", doc, "reduction", apply)


ROWS = (
    reduction("sum", "Sum of the entries.", jnp.sum),
    reduction("mean", "Mean of the entries.", jnp.mean, empty=False),
    reduction("max", "Largest entry.", jnp.max, empty=False),
    reduction("min", "Smallest entry.", jnp.min, empty=False),
    reduction("prod", "Product of the entries.", jnp.prod),
    reduction("var", "Variance (divided by n).", jnp.var, empty=False),
    reduction("std", "Standard deviation (divided by n); not differentiable at zero.", jnp.std, empty=False),
    reduction("any", "Whether any entry holds.", jnp.any),
    reduction("all", "Whether all entries hold.", jnp.all),
    reduction("logsumexp", "log(sum(exp(x))), without overflow.", jax.scipy.special.logsumexp, empty=False),
    row(
        "norm(x, axis=None, keepdims=False, eps=0)",
        "sqrt(sum(x**2) + eps**2), also of a parameter tree; with eps it is differentiable at zero.",
        "reduction",
        norm,
    ),
    along("cumsum", "Running sum.", jnp.cumsum, "None"),
    along("argmax", "Position of the largest entry.", jnp.argmax, "None"),
    along("softmax", "exp(x) over its sum.", jax.nn.softmax, "-1"),
    along("log_softmax", "log of softmax, without overflow.", jax.nn.log_softmax, "-1"),
)

HIDDEN = (
    row(
        "norm_of_squares(x, axis=None, eps=0)",
        "norm, by the sums of squares: what is left of it where these are found without the entries.",
        "reduction",
        norm_of_squares,
    ),
)
"""What no text calls (`nablad_service.engine.fusing`)."""
