"""One batch axis, whatever the program gives: what a Flax module is written for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import Array

from nablad_models.batches import one_batch_axis, unfolded
from nablad_models.python.examples import Example
from nablad_models.python.model import Call, checked_answer


def batched(
    run: Callable[[Sequence[Array]], tuple[Any, Any]],
    examples: Mapping[str, Example],
    inputs: Sequence[Array],
    call: Call,
) -> tuple[Any, Any]:
    """`run` of inputs with one batch axis; its answer has the batch axes of `call` again.

    Raises `ValueError` for an answer that does not begin with the batch axis.
    """
    batch = call.batch or (1,)
    arrays = [
        one_batch_axis(x, one.shape or (), batch) for x, one in zip(inputs, examples.values(), strict=True)
    ]
    count = arrays[0].shape[0]
    answer, rest = run(arrays)

    def with_batch(y: Array) -> Array:
        if y.ndim == 0 or y.shape[0] != count:
            raise ValueError(
                f"the answer to a batch of {count} has shape {y.shape}: the batch axis comes first"
            )
        return unfolded(y, call.batch) if call.batch else y[0]

    return jax.tree.map(with_batch, checked_answer(answer)), rest
