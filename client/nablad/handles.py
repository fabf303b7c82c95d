"""Values that the server keeps: how a caller names them, and what a client remembers of those it put."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from nablad.content import handle_of
from nablad.messages import ParameterInfo, ValueInfo

DEDUPE_BYTES = 64 * 1024
"""Arrays from this size on are hashed where `dedupe` is asked for."""
REMEMBERED = 4096
"""Digests that a client remembers for that; each takes some hundred bytes."""


@dataclass(frozen=True)
class Handle:
    """A value that the server keeps; stands where an array or a tree may in `inputs`, `params`, `state`."""

    handle: str
    """The digest of its content."""
    bytes: int
    array: ParameterInfo | None = field(default=None, compare=False, repr=False)
    """Shape and dtype, where it is one array."""
    tree: Mapping[str, ParameterInfo] | None = field(default=None, compare=False, repr=False)
    """Shapes and dtypes by leaf, where it is a tree."""

    @classmethod
    def of(cls, info: ValueInfo) -> Handle:
        """The handle of a value that the server has described."""
        return cls(info.handle, info.bytes, info.array, info.tree)

    def stand_in(self) -> Any:
        """Zeros of its shapes and dtypes that take no memory: what tracing looks at."""
        if self.tree is not None:
            return {name: _zeros(leaf) for name, leaf in self.tree.items()}
        return _zeros(self.array or ParameterInfo(shape=[], dtype="float64"))


def _zeros(info: ParameterInfo) -> NDArray[Any]:
    return np.broadcast_to(np.zeros((), info.dtype), info.shape)


class Sources:
    """What a client has put, held weakly: enough to put it again, and no more memory than its caller uses."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, bool | None]] = {}

    def remember(self, handle: str, value: Any, pinned: bool | None) -> None:
        """Remember where the data of a handle are, as long as they are anywhere."""

        def gone(_: object) -> None:
            self._known.pop(handle, None)

        if isinstance(value, Mapping):
            leaves: Any = {name: _weakly(leaf, gone) for name, leaf in value.items()}
            whole = all(leaf is not None for leaf in leaves.values())
        else:
            leaves = _weakly(value, gone)
            whole = leaves is not None
        if whole:
            self._known[handle] = (leaves, pinned)

    def forget(self, handle: str) -> None:
        """Remember nothing of a handle any more."""
        self._known.pop(handle, None)

    def find(self, handle: str) -> tuple[Any, bool | None] | None:
        """The data of a handle and whether they were pinned; None where they are gone."""
        leaves, pinned = self._known.get(handle, (None, None))
        if leaves is None:
            return None
        if not isinstance(leaves, Mapping):
            value = leaves()
            return None if value is None else (value, pinned)
        tree = {name: leaf() for name, leaf in leaves.items()}
        return None if any(leaf is None for leaf in tree.values()) else (tree, pinned)


def _weakly(leaf: Any, gone: Any) -> Any:
    try:
        return ref(leaf, gone)
    except TypeError:  # plain lists and numbers
        return None


class Deduplication:
    """Which large arrays of a request the server has, which are worth putting there, and which are not.

    An array is put when its place in a request (an input, a parameter) is new, or held the same before, or
    when the same content came by a second time. What changes with every call, as parameters in training do,
    goes along with the call as ever: kept, it would only push out what is needed again.
    """

    def __init__(self, least_bytes: int) -> None:
        self._least_bytes = least_bytes
        self._there: OrderedDict[str, None] = OrderedDict()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._last: dict[str, str] = {}

    def handle(self, place: str, array: NDArray[Any]) -> str | None:
        """The handle that `array` goes by, or None where it is to be sent itself."""
        if array.nbytes < self._least_bytes:
            return None
        handle = handle_of(array)
        before = self._last.get(place)
        again = handle in self._seen
        self._last[place] = handle
        _add(self._seen, handle)
        if handle in self._there:
            _add(self._there, handle)
            return handle
        changes = before is not None and before != handle and not again
        return None if changes or handle in self._refused else handle

    def has(self, handle: str) -> bool:
        """Whether the server is known to have had this value."""
        return handle in self._there

    def arrived(self, handle: str) -> None:
        """Take note that the server has a value."""
        _add(self._there, handle)

    def refused(self, handle: str) -> None:
        """Take note that the server has no room for a value."""
        self._there.pop(handle, None)
        _add(self._refused, handle)


def _add(known: OrderedDict[str, None], handle: str) -> None:
    known[handle] = None
    known.move_to_end(handle)
    while len(known) > REMEMBERED:
        known.popitem(last=False)
