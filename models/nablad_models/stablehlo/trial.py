"""Compiling and calling an artifact with made-up numbers, once its bytes read well."""

from __future__ import annotations

import math
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
        jax.jit(order).lower(*_operands(artifact, order, "normal", 0)).compile()


def keeps_examples_apart(artifact: Artifact) -> bool:
    """Whether row 0 of every answer depends on row 0 of the inputs alone, at made-up numbers.

    Such numbers find every mixing that is not switched off at them, and rounding hides none: one program on
    one machine gives the same bits for the same row. Where the numbers make no finite answer, nothing is
    known.
    """
    return any(_keeps_apart(artifact, numbers) for numbers in ("normal", "positive"))


def _keeps_apart(artifact: Artifact, numbers: str) -> bool:
    model = artifact.orders[0]
    run = jax.jit(model)
    operands = _operands(artifact, model, numbers, 0)
    firsts = [np.asarray(y)[0] for y in run(*operands)]
    if not all(np.isfinite(first).all() for first in firsts):
        return False
    for seed in (1, 2):
        others = _operands(artifact, model, numbers, seed)
        changed = [
            np.concatenate([x[:1], other[1:]]) if batched else x
            for x, other, batched in zip(operands, others, model.batched_operands, strict=True)
        ]
        for first, answer in zip(firsts, run(*changed), strict=True):
            if first.tobytes() != np.asarray(answer)[0].tobytes():
                return False
    # A division by the number of rows changes with that number only.
    alone = [x[:1] if batched else x for x, batched in zip(operands, model.batched_operands, strict=True)]
    tolerance = float(np.finfo(artifact.dtype).eps) ** 0.6
    return all(
        np.allclose(first, np.asarray(answer)[0], rtol=tolerance, atol=tolerance)
        for first, answer in zip(firsts, run(*alone), strict=True)
    )


def _operands(artifact: Artifact, order: Order, numbers: str, seed: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)

    def made(aval: Any) -> NDArray[Any]:
        sizes = {artifact.batch: ROWS}
        shape = tuple(size if isinstance(size, int) else sizes.get(str(size), OPEN) for size in aval.shape)
        if not np.issubdtype(aval.dtype, np.floating):
            return rng.integers(0, 2, size=shape).astype(aval.dtype)
        if numbers == "positive":
            return rng.uniform(0.1, 0.9, size=shape).astype(aval.dtype)
        # Square weights at about one over the root of their width: nothing saturates, so nothing hides.
        return (rng.normal(size=shape) / math.prod(shape) ** 0.25).astype(aval.dtype)

    return [made(aval) for aval in order.exported.in_avals if not is_empty(aval)]
