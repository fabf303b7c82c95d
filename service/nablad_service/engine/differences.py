"""Gradients against finite differences, in float64: what `/v1/check` answers.

Central differences of fourth order, (8(f₁ - f₋₁) - (f₂ - f₋₂)) / 12h, with h = ε^(1/5) · max(1, RMS of the
argument): truncation h⁴ and rounding ε/h are then balanced near 1e-12 of the loss. Every entry of an
argument up to `EVERY_ENTRY`; beyond that, along random directions and along the gradient itself.

Reference: B. Fornberg, Generation of finite difference formulas on arbitrarily spaced grids,
Mathematics of Computation 51 (1988).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nablad_service.query import Signature

EVERY_ENTRY = 4096
DIRECTIONS = 64
BATCH = 64
"""Perturbed losses that are evaluated together."""


def check(compute: Callable[[Any], Any], arguments: Any, signature: Signature) -> dict[str, Any]:
    """Compare each gradient with differences of the loss.

    Args:
        compute: the objective of a query whose float type is float64.
        arguments: its arguments.
        signature: the query's signature; each entry of `wrt` is checked by itself.

    Returns:
        `value`, and by entry of `wrt`: `max_abs_difference`, `max_abs_gradient`, `relative`, `compared`
        (how many numbers) and `method` (`"entries"` or `"directions"`).
    """
    answer = jax.device_get(jax.jit(compute)(arguments))
    checked = {
        variable.key: _compare(compute, arguments, signature, variable.key, answer["gradients"][variable.key])
        for variable in signature.wrt
    }
    return {"value": answer["value"], "arguments": checked}


def _compare(
    compute: Callable[[Any], Any], arguments: Any, signature: Signature, key: str, gradient: Any
) -> dict[str, Any]:
    get, put = _access(signature, key)
    point, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), get(arguments)))
    expected, _ = ravel_pytree(gradient)
    # A step no larger than the entries themselves, nor so small that rounding wins.
    step = float(np.finfo(np.float64).eps ** 0.2 * max(1.0, float(jnp.sqrt(jnp.mean(point**2)))))
    every_entry = point.size <= EVERY_ENTRY
    count = point.size if every_entry else DIRECTIONS + 1

    def direction(number: jax.Array, key: jax.Array, gradient: jax.Array) -> jax.Array:
        if every_entry:
            return jnp.zeros_like(point).at[number].set(1.0)
        random = jax.random.normal(jax.random.fold_in(key, number), point.shape, point.dtype)
        along = jnp.where(number == DIRECTIONS, gradient, random)
        return along / jnp.sqrt(jnp.maximum(jnp.sum(along**2), 1e-300))

    @jax.jit
    def differences(point: jax.Array, expected: jax.Array, key: jax.Array, arguments: Any) -> Any:
        def value(at: jax.Array) -> Any:
            return compute(put(arguments, unravel(at)))["value"]

        def one(number: jax.Array) -> tuple[Any, Any]:
            v = direction(number, key, expected)
            offsets = jnp.asarray([1.0, -1.0, 2.0, -2.0], point.dtype) * step
            f1, b1, f2, b2 = (value(point + offset * v) for offset in offsets)
            return (8 * (f1 - b1) - (f2 - b2)) / (12 * step), jnp.sum(v * expected)

        return jax.lax.map(one, jnp.arange(count), batch_size=min(BATCH, count))

    measured, claimed = differences(point, expected, jax.random.key(0), arguments)
    difference = float(jnp.max(jnp.abs(measured - claimed))) if count else 0.0
    largest = float(jnp.max(jnp.abs(expected))) if count else 0.0
    return {
        "max_abs_difference": difference,
        "max_abs_gradient": largest,
        "relative": difference / largest if largest else 0.0,
        "compared": count,
        "method": "entries" if every_entry else "directions",
    }


def _access(signature: Signature, key: str) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """How to read and replace an entry of `wrt` among the arguments."""
    variable = next(variable for variable in signature.wrt if variable.key == key)
    if variable.kind == "input":
        name = str(variable.name)
        return (
            lambda arguments: arguments["inputs"][name],
            lambda arguments, value: {**arguments, "inputs": {**arguments["inputs"], name: value}},
        )
    if variable.kind == "leaf":
        model, leaf = str(variable.name), str(variable.leaf)

        def put_leaf(arguments: Any, value: Any) -> Any:
            tree = arguments["params"][model].copy()
            tree[leaf] = value
            return {**arguments, "params": {**arguments["params"], model: tree}}

        return lambda arguments: arguments["params"][model][leaf], put_leaf
    models = [model.name for model in signature.models if variable.name in (None, model.name)]

    def put_params(arguments: Any, value: Any) -> Any:
        trees = {models[0]: value} if len(models) == 1 else value
        return {**arguments, "params": {**arguments["params"], **trees}}

    def get_params(arguments: Any) -> Any:
        trees = {name: arguments["params"][name] for name in models}
        return trees[models[0]] if len(models) == 1 else trees

    return get_params, put_params
