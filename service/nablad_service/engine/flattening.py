"""Traces of derivatives in a whole parameter tree: the tree as one vector, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nablad.problems import Refusal
from nablad_service.engine.values import Value

BY_COORDINATES = frozenset({"laplacian", "divergence", "hutchinson", "hutchinson_trace"})
"""Operators that sum over the coordinates of a vector; the entries of a tree are the coordinates of one."""


@dataclass(frozen=True)
class Flat:
    """A tree as a vector."""

    x: jax.Array
    unravel: Callable[[jax.Array], Value]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Flat:
        """The leaves one after another, in their order."""
        x, unravel = ravel_pytree(tree)
        return cls(x, unravel, {name: jnp.shape(leaf) for name, leaf in tree.items()})

    def value(self, y: Value) -> Any:
        """A value that is such a tree too (a gradient) as a vector; others as they are.

        Raises:
            Refusal: `shape_mismatch` where it is a tree of other leaves.
        """
        if not isinstance(y, dict):
            return y
        if {name: jnp.shape(leaf) for name, leaf in y.items()} != dict(self.shapes):
            raise Refusal("shape_mismatch", "value and variable must be trees of the same leaves")
        return self._ravelled(y)

    def probes(self, v: Value) -> Any:
        """A tree of probes as vectors: one, or several along a common first axis."""
        if not isinstance(v, dict) or set(v) != set(self.shapes):
            return v
        if all(jnp.ndim(v[name]) == len(shape) + 1 for name, shape in self.shapes.items()):
            return jax.vmap(self._ravelled)(v)
        return self._ravelled(v)

    def _ravelled(self, tree: Mapping[str, Any]) -> jax.Array:
        """Leaves in the order of the variable's, whatever order the tree has."""
        return ravel_pytree([tree[name] for name in self.shapes])[0]
