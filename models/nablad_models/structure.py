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


def filled(kind: Callable[..., M], arrays: Mapping[str, Array], /, *arguments: Any, **options: Any) -> M:
    """The Equinox layer `kind(*arguments, **options, key=...)` with `arrays` at their dotted names.

    Arguments and options are hashable.
    """
    layer: M = _skeleton(kind, arguments, tuple(sorted(options.items())))
    places = [attrgetter(name) for name in arrays]
    whole: M = eqx.tree_at(lambda module: [place(module) for place in places], layer, list(arrays.values()))
    return whole


# Tracing a constructor, random numbers and all, takes 10 ms and more, and layers are applied again and again.
@lru_cache(maxsize=1024)
def _skeleton(
    kind: Callable[..., Any], arguments: tuple[Any, ...], options: tuple[tuple[str, Any], ...]
) -> Any:
    """The layer with shapes in place of arrays; allocates nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return eqx.filter_eval_shape(partial(kind, *arguments, **dict(options)), key=key)
