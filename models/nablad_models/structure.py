"""Equinox layers used as structure only: built without arrays, filled with ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax import Array

M = TypeVar("M", bound=eqx.Module)


# Layers of one architecture repeat each other, and tracing a constructor takes a millisecond.
@lru_cache(maxsize=1024)
def skeleton(kind: Callable[..., M], /, *arguments: Any, **options: Any) -> M:
    """The Equinox layer `kind(*arguments, **options, key=...)` with shapes for arrays; allocates nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    built: M = eqx.filter_eval_shape(partial(kind, *arguments, **options), key=key)
    return built


def filled(layer: M, arrays: Mapping[str, Array]) -> M:
    """`layer` with arrays at the dotted names."""
    places = [attrgetter(name) for name in arrays]
    whole: M = eqx.tree_at(lambda module: [place(module) for place in places], layer, list(arrays.values()))
    return whole
