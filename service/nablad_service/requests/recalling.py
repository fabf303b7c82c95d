"""Requests that come again with other numbers, read by their header.

The header of a frame holds all of a request but the bytes of its arrays. A training loop sends the same
header at every step, so what was found in it the first time holds again, as long as everything that was
looked up for it (hosted models, values by handle) is still what it was. Then a request is read by viewing its
arrays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nablad.frame import Buffer, buffers_of, header_of
from nablad.problems import Refusal
from nablad_service.hosting import HostedModel, ModelStore, Values
from nablad_service.hosting.values import Value
from nablad_service.query import Query

MOST_KEPT = 512
NOTHING = np.empty(0)
"""Stands where a body's array was, so that what is remembered holds no body."""
LARGEST_HEADER = 64 * 1024
"""Bytes; longer headers are read anew each time."""


@dataclass
class Lookups:
    """What a request is looked up in; remembers what was found."""

    models: ModelStore
    values: Values
    tenant: str
    found: list[tuple[Callable[[], Any], Any]] = field(default_factory=list)

    def model(self, name: str, version: str | None) -> HostedModel:
        """As `ModelStore.get`."""
        found = self.models.get(name, version)
        self.found.append((lambda: self.models.get(name, version), found))
        return found

    def take(self, handles: Collection[str]) -> Mapping[str, Value]:
        """As `Values.take`."""
        found = self.values.take(self.tenant, handles)
        self.found += [(self._taker(handle), value) for handle, value in found.items()]
        return found

    def _taker(self, handle: str) -> Callable[[], Any]:
        return lambda: self.values.take(self.tenant, [handle])[handle]

    def hold(self) -> bool:
        """Whether everything is still what it was; looking counts as use."""
        try:
            return all(look() is found for look, found in self.found)
        except Refusal:
            return False


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an array of a query lies in the body of its request."""

    section: str
    name: str
    leaf: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    """From the body's first byte."""

    def view(self, body: Buffer) -> NDArray[Any]:
        """The array, in another body with the same header."""
        # Faster than `frombuffer`, but no export of the buffer: the body must not be closed under it.
        return np.ndarray(self.shape, self.dtype, body, self.offset)


@dataclass(frozen=True, slots=True)
class _Known:
    query: Query
    slots: tuple[Slot, ...]
    lookups: Lookups

    def with_numbers(self, body: Buffer) -> Query:
        return _filled(self.query, self.slots, lambda slot: slot.view(body))


class Recall:
    """The requests that were read last, by header. Asked on the event loop, filled from any thread."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def key(self, body: Buffer, *about: Hashable) -> Hashable | None:
        """What requests that differ only in their numbers have in common; None where a body is no frame."""
        header = header_of(body, LARGEST_HEADER)
        return None if header is None else (header, *about)

    def query(self, key: Hashable, body: Buffer) -> Query | None:
        """The query of a request that was read before but for its numbers; None where it must be read."""
        known = self._known.get(key)
        if known is None:
            return None
        if not known.lookups.hold():
            self._known.pop(key, None)
            return None
        self._known.move_to_end(key)
        return known.with_numbers(body)

    def remember(self, key: Hashable, body: Buffer, query: Query, lookups: Lookups) -> None:
        """Keep how a request was read, where each of its buffers became one array of the query as it lies.

        What is computed from a buffer (another dtype, another layout) would not be computed again.
        """
        slots = tuple(_slots(body, query))
        taken = sorted((slot.offset, slot.view(body).nbytes) for slot in slots)
        if taken != sorted(buffers_of(body)):
            return
        self._known[key] = _Known(_filled(query, slots, lambda slot: NOTHING), slots, lookups)
        while len(self._known) > self._most:
            self._known.popitem(last=False)


def _slots(body: Buffer, query: Query) -> Iterator[Slot]:
    """The arrays of a query that lie in the body."""
    base = _address(np.frombuffer(body, np.uint8))
    for section, name, leaf, array in _arrays(query):
        offset = _address(array) - base
        if offset >= 0 and offset + array.nbytes <= len(body) and array.nbytes and array.flags.c_contiguous:
            yield Slot(section, name, leaf, array.shape, array.dtype, offset)


def _arrays(query: Query) -> Iterator[tuple[str, str, str | None, NDArray[Any]]]:
    for section, given in (("inputs", query.inputs), ("params", query.params), ("state", query.state)):
        for name, value in given.items():
            leaves = value.items() if isinstance(value, Mapping) else [(None, value)]
            for leaf, array in leaves:
                if isinstance(array, np.ndarray):
                    yield section, name, leaf, array


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _filled(query: Query, slots: Collection[Slot], array: Callable[[Slot], NDArray[Any]]) -> Query:
    """The query with other arrays in the slots."""
    given: dict[str, Any] = {}
    own: set[tuple[str, str]] = set()
    for slot in slots:
        values = given.get(slot.section)
        if values is None:
            values = given[slot.section] = dict(getattr(query, slot.section))
        if slot.leaf is None:
            values[slot.name] = array(slot)
            continue
        if (slot.section, slot.name) not in own:
            own.add((slot.section, slot.name))
            values[slot.name] = dict(values[slot.name])
        values[slot.name][slot.leaf] = array(slot)
    return query.with_values(**given)
