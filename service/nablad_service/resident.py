"""An array that stays on the server between calls, and so is looked at, aligned and moved once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nablad.frame import ALIGNMENT
from nablad.frame import aligned as memory
from nablad_service.specs import ArraySpec


class Resident:
    """One array, its shape and dtype at hand, and the device's copy of it.

    `placed` belongs to the engine's placement, which fills and empties it; `used` orders it among others.
    """

    __slots__ = ("__weakref__", "array", "placed", "spec", "used")

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = aligned(array)
        self.spec = ArraySpec.of(self.array)
        self.placed: Any = None
        self.used = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of the array."""
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the array's entries."""
        return self.array.nbytes

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.array, dtype) if not copy else np.array(self.array, dtype)


Leaf: TypeAlias = "NDArray[Any] | Resident"
Leaves: TypeAlias = Mapping[str, Leaf]


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, read-only and on an address that needs no further copy; `array` itself if it can be.

    Where the device is the CPU, JAX views an array whose address is a multiple of 64, and copies any other.
    What stays must not hold on to the body that it came in, unless it is most of it: an array on an odd
    address, as msgpack leaves them, is copied.
    """
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        own = array.view()
    else:
        own = np.frombuffer(memory(array.nbytes), array.dtype).reshape(array.shape)
        own[...] = array
    own.flags.writeable = False
    return own


def residents(tree: Mapping[str, NDArray[Any]]) -> dict[str, Resident]:
    """The leaves of a tree, each resident."""
    return {name: Resident(leaf) for name, leaf in tree.items()}
