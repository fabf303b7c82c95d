"""What samplers draw, in blocks: drawn on the host for many steps, picked step by step on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nablad.arrays import Undeclared
from nablad_service.training.samplers import Examples, Points, Sampler

LARGEST_BLOCK = 32 * 1024 * 1024
"""Bytes of one sampler's block."""
MOST_DRAWS = 1024
"""Draws in one block."""


class Picked(NamedTuple):
    """How a sampler's inputs of one step are found in its block. Hashable: part of what is compiled."""

    inputs: tuple[str, ...]
    every: int | None
    """Steps that a draw lasts; None for all."""
    together: int
    """Draws for one step, whose gradients are accumulated."""
    by_row: bool
    """Whether the block holds rows of `data`, or what is drawn itself."""


class Block(NamedTuple):
    """Draws for the steps from `origin` on; arguments of a compiled loop."""

    origin: np.int32
    draws: Any
    """By input, one draw after the other; or the rows of the examples."""


@dataclass(frozen=True)
class Feed:
    """One sampler, as a loop takes what it draws."""

    sampler: Sampler
    picked: Picked
    draws: int
    """In a block; each of several together, where gradients are accumulated."""
    dtypes: Mapping[str, DTypeLike]

    @property
    def steps(self) -> int | None:
        """Steps that a block lasts; None for all."""
        return None if self.picked.every is None else self.picked.every * self.draws

    def origin(self, step: int) -> int:
        """The first step of the block that `step` belongs to."""
        return 0 if self.steps is None else step // self.steps * self.steps

    def block(self, origin: int) -> Block:
        """The block whose first step is `origin`."""
        first = 0 if self.picked.every is None else origin // self.picked.every
        numbers = range(first * self.picked.together, (first + self.draws) * self.picked.together)
        at = np.int32(origin)
        if isinstance(self.sampler, Examples):
            return Block(at, np.stack([self.sampler.rows(number) for number in numbers]))
        drawn = [self.sampler.draw(number) for number in numbers]
        stacked = {
            name: np.stack([one[name] for one in drawn]).astype(self.dtypes[name])
            for name in self.picked.inputs
        }
        return Block(at, stacked)

    def data(self) -> dict[str, NDArray[Any]]:
        """All examples by input, where the blocks hold rows."""
        if not isinstance(self.sampler, Examples):
            return {}
        return {
            name: np.asarray(array.array if isinstance(array, Undeclared) else array, self.dtypes[name])
            for name, array in self.sampler.data.items()
        }


def feeds_of(
    samplers: Sequence[Sampler],
    resample_every: int | None,
    dtypes: Mapping[str, DTypeLike],
    *,
    together: int = 1,
) -> dict[str, Feed]:
    """The feeds of a loop, by the samplers' names.

    Args:
        samplers: what draws.
        resample_every: steps after which new points are drawn; None for never.
        dtypes: of the inputs that are drawn.
        together: draws for one step.
    """
    found = {}
    for sampler in samplers:
        if isinstance(sampler, Points):
            size = sampler.box.n * len(sampler.box.low) * 8
            picked = Picked(sampler.inputs, resample_every, together, by_row=False)
        else:
            size = sampler.n * 4
            picked = Picked(sampler.inputs, 1, together, by_row=True)
        draws = 1 if picked.every is None else max(1, min(MOST_DRAWS, LARGEST_BLOCK // (size * together)))
        found[sampler.name] = Feed(sampler, picked, draws, {name: dtypes[name] for name in sampler.inputs})
    return found


def inputs_at(
    step: Any,
    turn: Any,
    picked: Mapping[str, Picked],
    blocks: Mapping[str, Block],
    data: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The drawn inputs of a step, of the `turn`th of its draws. Can be traced.

    Args:
        step: its number.
        turn: counts the draws of the step.
        picked: how, by sampler.
        blocks: those that the step belongs to, by sampler.
        data: all examples by sampler and input.
    """
    found: dict[str, Any] = {}
    for name, one in picked.items():
        block = blocks[name]
        at = turn + (0 if one.every is None else (step - block.origin) // one.every * one.together)
        if one.by_row:
            rows = block.draws[at]
            found |= {input_: data[name][input_][rows] for input_ in one.inputs}
        else:
            found |= {input_: block.draws[input_][at] for input_ in one.inputs}
    return found
