"""Compiling an artifact for made-up numbers, once its bytes read well."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from nablad_models.stablehlo.artifact import Artifact, Order, is_empty

ROWS = 3
"""Of the batch."""

OPEN = 4
"""Any other size that the data decide."""


def compile_all(artifact: Artifact) -> None:
    """Compile the model and each vjp; raises whatever the compiler raises."""
    for order in artifact.orders:
        jax.jit(order).lower(*_operands(artifact, order)).compile()


def _operands(artifact: Artifact, order: Order) -> list[NDArray[Any]]:
    def made(aval: Any) -> NDArray[Any]:
        sizes = {artifact.batch: ROWS}
        shape = tuple(size if isinstance(size, int) else sizes.get(str(size), OPEN) for size in aval.shape)
        return np.zeros(shape, aval.dtype)

    return [made(aval) for aval in order.exported.in_avals if not is_empty(aval)]
