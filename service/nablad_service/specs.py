"""What is known of arrays without their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from nablad.arrays import NAMES


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: NDArray[Any]) -> ArraySpec:
        """The spec of `array`."""
        return cls(array.shape, NAMES.get(array.dtype) or array.dtype.name)


TreeSpec: TypeAlias = "tuple[tuple[str, ArraySpec], ...]"


def tree_spec(tree: Mapping[str, Any]) -> TreeSpec:
    """Specs of the leaves, in order; a resident leaf knows its own."""
    return tuple((name, getattr(leaf, "spec", None) or ArraySpec.of(leaf)) for name, leaf in tree.items())
