"""Named arrays that a model owns: their shapes and how each begins."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jax import Array
from numpy.typing import NDArray

Initialiser = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float32]]
"""Draws a leaf of the given shape in float32."""

Leaves = Mapping[str, Array]
"""Arrays by dotted name."""


@dataclass(frozen=True)
class Leaf:
    """One array of a model: its shape and how it is first filled."""

    shape: tuple[int, ...]
    initialise: Initialiser

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


def draw(leaves: Mapping[str, Leaf], seed: int) -> dict[str, NDArray[np.float32]]:
    """First values of `leaves`, float32, the same on every machine for the same seed.

    Each leaf has a generator of its own, keyed by seed and name: adding a layer at the end leaves the others
    as they were.
    """
    return {name: leaf.initialise(_generator(seed, name), leaf.shape) for name, leaf in leaves.items()}


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
