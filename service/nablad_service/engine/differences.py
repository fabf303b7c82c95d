"""Gradients against finite differences, in float64: what `/v1/check` answers.

Central differences of fourth order, (8(f₁ - f₋₁) - (f₂ - f₋₂)) / 12h, with h = ε^(1/5) · max(1, RMS of the
argument): truncation h⁴ and rounding ε/h are then balanced near 1e-12 of the loss. Every entry of an
argument up to `EVERY_ENTRY`; beyond that, along random directions and along the gradient itself.

Reference: B. Fornberg, Generation of finite difference formulas on arbitrarily spaced grids,
Mathematics of Computation 51 (1988).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nablad_service.query import Signature

EVERY_ENTRY = 4096
DIRECTIONS = 64
BATCH = 64
"""Perturbed losses that are evaluated together."""


def checker(
    compute: Callable[[Any], Any], value: Callable[[Any], Any], signature: Signature
) -> Callable[[Any], Any]:
    """A traceable function of a query's arguments that compares each gradient with differences of the loss.

    Args:
        compute: the objective of a query whose float type is float64.
        value: its loss alone.
        signature: the query's signature; each entry of `wrt` is checked by itself.
    """

    def everything(arguments: Any) -> Any:
        # One program: compiling many small ones would cost more than all the differences.
        answer = compute(arguments)
        compared = {
            variable.key: _compare(
                value, arguments, signature, variable.key, answer["gradients"][variable.key]
            )
            for variable in signature.wrt
        }
        return answer["value"], compared

    return everything


def report(found: Any) -> dict[str, Any]:
    """What a checker found, by entry of `wrt`.

    `max_abs_difference`, `max_abs_gradient`, `relative`, `compared` (how many numbers) and `method`
    (`"entries"` or `"directions"`).
    """
    value, compared = found
    return {"value": value, "arguments": {key: _report(*one) for key, one in compared.items()}}


def _report(difference: Any, largest: Any, count: Any, every_entry: Any) -> dict[str, Any]:
    return {
        "max_abs_difference": float(difference),
        "max_abs_gradient": float(largest),
        "relative": float(difference / largest) if largest else float(difference),
        "compared": int(count),
        "method": "entries" if every_entry else "directions",
    }


def _compare(
    value: Callable[[Any], Any], arguments: Any, signature: Signature, key: str, gradient: Any
) -> tuple[Any, Any, int, bool]:
    """Largest difference, largest entry of the gradient, how many numbers were compared, and how."""
    get, put = _access(signature, key)
    point, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), get(arguments)))
    expected, _ = ravel_pytree(gradient)
    every_entry = point.size <= EVERY_ENTRY
    count = point.size if every_entry else DIRECTIONS + 1
    if not count:
        return 0.0, 0.0, 0, every_entry
    # A step no larger than the entries themselves, nor so small that rounding wins.
    step = jnp.finfo(jnp.float64).eps ** 0.2 * jnp.maximum(1.0, jnp.sqrt(jnp.mean(point**2)))

    def direction(number: jax.Array) -> jax.Array:
        if every_entry:
            return jnp.zeros_like(point).at[number].set(1.0)
        random = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), point.shape, point.dtype)
        along = jnp.where(number == DIRECTIONS, expected, random)
        return along / jnp.sqrt(jnp.maximum(jnp.sum(along**2), 1e-300))

    def difference(number: jax.Array) -> Any:
        v = direction(number)
        offsets = jnp.asarray([1.0, -1.0, 2.0, -2.0], point.dtype) * step
        shifted = jax.vmap(lambda offset: value(put(arguments, unravel(point + offset * v))))
        f1, b1, f2, b2 = shifted(offsets)
        return jnp.abs((8 * (f1 - b1) - (f2 - b2)) / (12 * step) - jnp.sum(v * expected))

    batch = min(BATCH, count)
    # Whole batches: a remainder would be compiled as a second program. Repeated numbers change no maximum.
    numbers = jnp.arange(-(-count // batch) * batch) % count
    differences = jax.lax.map(difference, numbers, batch_size=batch)
    return jnp.max(differences), jnp.max(jnp.abs(expected)), count, every_entry


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
        # In the order of the gradients: flattened, a plain dict is sorted by name.
        trees = OrderedDict((name, arguments["params"][name]) for name in models)
        return trees[models[0]] if len(models) == 1 else trees

    return get_params, put_params
