"""Random arrays by seed: the same seed gives the same numbers, on every machine and in every call.

The draw depends on the seed that the text gives and on the request's own `seed`. The latter is a value, so a
new one compiles nothing; the former is one too where it is an input. Inside a `vmap` all examples share a
draw unless the seed is mapped too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nablad.problems import Refusal
from nablad_service.engine import values
from nablad_service.engine.operators.orthogonal import orthogonal
from nablad_service.engine.operators.row import Row, row
from nablad_service.engine.values import Value, array, show

Sampler = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


def sampler(name: str, doc: str, draw: Sampler, *, together: bool = False) -> Row:
    """A row that draws an array or a tree shaped like `like`; `n` of them along a new first axis.

    What is drawn `together` always has that axis, and takes a tree as the one vector of all its entries.
    """

    def apply(like: Value, n: Value = None, seed: Value = None, *, dtype: Any, key: jax.Array) -> Value:
        if seed is None:
            raise Refusal(
                "arity", f"{name} needs a seed: {name}({'x'}, seed=0); the request's seed adds to it"
            )
        own = seeded(key, seed)
        count = () if n is None else (values.static_int(n, "n"),)
        if together:
            drawn = _together(draw, own, like, *(count or (1,)), dtype)
            return drawn if count else jax.tree.map(lambda leaf: leaf[0], drawn)
        if isinstance(like, dict):
            keys = dict(zip(like, jax.random.split(own, len(like)), strict=True))
            return OrderedDict(
                (leaf, draw(keys[leaf], (*count, *array.shape), dtype)) for leaf, array in like.items()
            )
        return draw(own, (*count, *_shape(like)), dtype)

    return row(f"{name}(like, n=None, seed=None)", doc, "random", apply, takes_dtype=True, takes_key=True)


def _together(draw: Sampler, key: jax.Array, like: Value, count: int, dtype: Any) -> Value:
    if not isinstance(like, dict):
        return draw(key, (count, *(_shape(like) or (1,))), dtype).reshape(count, *_shape(like))
    vector, unravel = ravel_pytree(values.map_tree(lambda leaf: jnp.zeros(leaf.shape, dtype), like))
    return jax.vmap(unravel)(draw(key, (count, vector.size), dtype))


def seeded(key: jax.Array, seed: Value) -> jax.Array:
    """The key of a draw: the request's, and the seed of the text.

    Raises:
        Refusal: `wrong_dtype` where the seed is no whole number.
    """
    return jax.random.fold_in(key, _whole(seed))


def _shape(like: Value) -> tuple[int, ...]:
    if isinstance(like, tuple) and all(isinstance(length, int) for length in like):
        return values.static_ints(like, "the shape")
    if isinstance(like, int):
        return (like,)
    return tuple(array(like).shape)


def _whole(seed: Value) -> Any:
    if values.is_static(seed):
        # Python's whole numbers may be larger or smaller than a key takes.
        return values.static_int(seed, "seed") % 2**32
    number = array(seed, "seed")
    if number.shape != () or not jnp.issubdtype(number.dtype, jnp.integer):
        raise Refusal("wrong_dtype", f"a seed is one whole number, not {show(number)}")
    return number.astype(jnp.uint32)


def _sphere(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Uniform on the sphere of radius √d, so that E[v v'] = I as for the other probes."""
    v = jax.random.normal(key, shape, dtype)
    return v * jnp.sqrt(shape[-1] / jnp.sum(v**2, axis=-1, keepdims=True)).astype(dtype)


ROWS = (
    sampler("rademacher", "Signs, -1 or 1, shaped like an array (or of a shape).", jax.random.rademacher),
    sampler("normal", "Standard normal numbers.", jax.random.normal),
    sampler("uniform", "Numbers between 0 and 1.", jax.random.uniform),
    sampler("sphere", "Points on the sphere of radius √d; the last axis holds coordinates.", _sphere),
    sampler(
        "orthogonal",
        "Probes orthogonal to one another, up to d of them; the last axis holds the d coordinates.",
        orthogonal,
        together=True,
    ),
)

PROBES: Mapping[str, Sampler] = {
    "rademacher": jax.random.rademacher,
    "normal": jax.random.normal,
    "sphere": _sphere,
    "orthogonal": orthogonal,
}
"""How probes are drawn, by kind: E[v v'] = I for each."""
