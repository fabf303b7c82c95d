"""What is known of arrays without their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray

from nablad.arrays import NAMES


# Tuples where nothing more is needed: signatures are hashed and compared at every call.
class ArraySpec(NamedTuple):
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
