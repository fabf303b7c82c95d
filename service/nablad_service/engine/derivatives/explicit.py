"""The leaves of what a derivative captures, sorted by what a rule for reverse mode must do with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives.row import Captured


@dataclass(frozen=True)
class Explicit:
    """`floats` get cotangents, `others` (whole numbers, keys) none.

    Numbers of the text stay Python's: as traced arguments they could shape nothing any more.
    """

    floats: list[Any]
    others: list[Any]
    _leaves: tuple[Any, ...]
    _kinds: tuple[str, ...]
    _structure: Any

    @classmethod
    def of(cls, captured: Captured) -> Explicit:
        """The leaves of `captured`."""
        leaves, structure = jax.tree.flatten(captured)
        kinds = tuple(_kind(leaf) for leaf in leaves)
        floats = [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == "float"]
        others = [leaf for leaf, kind in zip(leaves, kinds, strict=True) if kind == "other"]
        static = tuple(leaf if kind == "static" else None for leaf, kind in zip(leaves, kinds, strict=True))
        return cls(floats, others, static, kinds, structure)

    def captured(self, floats: list[Any], others: list[Any]) -> Captured:
        """The same tree with other arrays."""
        of_floats, of_others = iter(floats), iter(others)
        merged = [
            next(of_floats) if kind == "float" else next(of_others) if kind == "other" else static
            for kind, static in zip(self._kinds, self._leaves, strict=True)
        ]
        tree: Captured = jax.tree.unflatten(self._structure, merged)
        return tree


def _kind(leaf: Any) -> str:
    if not isinstance(leaf, jax.Array):
        return "static"
    return "float" if jnp.issubdtype(leaf.dtype, jnp.inexact) else "other"
