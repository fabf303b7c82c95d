"""Traces of derivatives in a whole parameter tree: the tree as one vector, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nablad_service.engine.values import Value

BY_COORDINATES = frozenset({"laplacian", "divergence", "hutchinson", "hutchinson_trace"})
"""Operators that sum over the coordinates of a vector; the entries of a tree are the coordinates of one."""


@dataclass(frozen=True)
class Flat:
    """A tree as a vector."""

    x: jax.Array
    unravel: Callable[[jax.Array], Value]
    ranks: Mapping[str, int]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Flat:
        """The leaves one after another, in their order."""
        x, unravel = ravel_pytree(tree)
        return cls(x, unravel, {name: jnp.ndim(leaf) for name, leaf in tree.items()})

    def value(self, y: Value) -> Any:
        """A value that is such a tree too (a gradient) as a vector; others as they are."""
        return ravel_pytree(y)[0] if isinstance(y, dict) else y

    def probes(self, v: Value) -> Any:
        """A tree of probes as vectors: one, or several along a common first axis."""
        if not isinstance(v, dict) or set(v) != set(self.ranks):
            return v
        several = [jnp.ndim(v[name]) - rank for name, rank in self.ranks.items()]
        if all(extra == 1 for extra in several):
            return jax.vmap(lambda one: ravel_pytree(type(v)((name, one[name]) for name in self.ranks))[0])(v)
        return ravel_pytree(type(v)((name, v[name]) for name in self.ranks))[0]
