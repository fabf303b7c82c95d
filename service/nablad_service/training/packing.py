"""Training states in few arrays: each takes its time on the way into a program, out of it, and to be freed.

A small network with Adam has thirty and more, which take longer than its gradient. So what is small travels
joined between two steps, and is taken apart where somebody wants to see it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from nablad_service.specs import ArraySpec
from nablad_service.training.state import TrainingState

SMALL = 32 * 1024
"""Bytes of the largest array that is joined to others: to copy it takes about as long as to pass it on."""


@dataclass(frozen=True)
class Packing:
    """How the leaves of a tree lie in few arrays: the large ones by themselves, the others by their dtype."""

    structure: Any
    leaves: tuple[ArraySpec, ...]

    @classmethod
    def of(cls, tree: Any) -> Packing:
        """For trees like this one, of arrays or of what has their shapes and dtypes."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(ArraySpec.of(leaf) for leaf in leaves))

    def packed(self, tree: Any) -> tuple[Any, ...]:
        """The arrays of a tree. Can be traced; elsewhere they are joined on the host."""
        leaves = self.structure.flatten_up_to(tree)
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        joined = (
            jnp.concatenate if traced else lambda parts: np.concatenate([np.asarray(one) for one in parts])
        )
        return tuple(
            leaves[group[0]] if len(group) == 1 else joined([leaves[number].ravel() for number in group])
            for group in self._groups
        )

    def unpacked(self, arrays: Sequence[Any]) -> Any:
        """The tree of such arrays. Can be traced; elsewhere small leaves are views on the host."""
        leaves: list[Any] = [None] * len(self.leaves)
        for group, array in zip(self._groups, arrays, strict=True):
            if len(group) == 1:
                leaves[group[0]] = array
                continue
            whole, start = array if isinstance(array, jax.core.Tracer) else np.asarray(array), 0
            for number in group:
                shape = self.leaves[number].shape
                end = start + int(np.prod(shape))
                leaves[number] = whole[start:end].reshape(shape)
                start = end
        return self.structure.unflatten(leaves)

    @cached_property
    def _groups(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the leaves in each array."""
        groups: dict[Any, list[int]] = {}
        for number, (shape, dtype) in enumerate(self.leaves):
            large = int(np.prod(shape)) * np.dtype(dtype).itemsize > SMALL
            groups.setdefault(number if large else dtype, []).append(number)
        return tuple(map(tuple, groups.values()))


@dataclass(eq=False)
class PackedState:
    """A training state, part of it packed."""

    packing: Packing
    arrays: tuple[Any, ...]
    rest: TrainingState
    """What is not in the arrays."""

    @classmethod
    def of(cls, state: TrainingState, models: Collection[str], packing: Packing) -> PackedState:
        """A state with the part that a step with its only gradient reads packed."""
        return cls(packing, packing.packed(state.part(models)), state.rest())

    def whole(self) -> TrainingState:
        """The state; on the device's thread, or where nothing runs there."""
        return self._whole

    @cached_property
    def _whole(self) -> TrainingState:
        part: TrainingState = self.packing.unpacked(self.arrays)
        return part.with_rest(self.rest)


State: TypeAlias = TrainingState | PackedState
"""As a session has it between two calls."""
