"""Leaves of any JAX tree by dotted names: `layers.0.weight` for `tree.layers[0].weight`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import jax
from jax.tree_util import keystr

Leaf = TypeVar("Leaf")


def dotted(path: tuple[Any, ...]) -> str:
    """A path in a tree as a name."""
    return keystr(path, simple=True, separator=".")


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by dotted name, in JAX's order.

    Raises `ValueError` where two leaves have one name, as in `{"a.b": ..., "a": {"b": ...}}`.
    """
    return unique((dotted(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


def unique(named: Iterable[tuple[str, Leaf]]) -> dict[str, Leaf]:
    """A dict of pairs; raises `ValueError` where a name comes twice."""
    found: dict[str, Leaf] = {}
    for name, leaf in named:
        if name in found:
            raise ValueError(f"two arrays have the name '{name}'")
        found[name] = leaf
    return found
