"""The optimiser of a client's loop: Adam in NumPy, step for step what optax does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


class Adam:
    """Adam (Kingma and Ba, 2015) on one vector of float32, so that a step is a few operations of NumPy."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._vector = np.concatenate([leaf.ravel() for leaf in params.values()])
        self._first, self._second = np.zeros_like(self._vector), np.zeros_like(self._vector)
        self._count = 0
        self.params: dict[str, Any] = {}
        start = 0
        for name, leaf in params.items():  # views: a step is seen by all of them
            self.params[name] = self._vector[start : start + leaf.size].reshape(leaf.shape)
            start += leaf.size

    def step(self, gradient: Mapping[str, Any]) -> None:
        """Move the parameters."""
        g = np.concatenate([np.ravel(gradient[name]) for name in self.params])
        self._count += 1
        self._first += np.float32(1 - BETA1) * (g - self._first)
        self._second += np.float32(1 - BETA2) * (g * g - self._second)
        first = self._first / np.float32(1 - BETA1**self._count)
        second = self._second / np.float32(1 - BETA2**self._count)
        self._vector -= np.float32(RATE) * first / (np.sqrt(second) + np.float32(EPSILON))
