"""What stays in memory as long as there is room: bounded in bytes, least recently used out first, pins."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from nablad.problems import Refusal


@dataclass
class Kept:
    """One thing on the shelf."""

    content: Any
    bytes: int
    pinned: bool
    last_used: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class ShelfStatistics:
    """A snapshot of the shelf."""

    count: int
    bytes: int
    pinned_bytes: int
    limit: int
    evicted: int
    """Things that went to make room, so far."""

    @property
    def free_bytes(self) -> int:
        """Bytes that can be kept without anything having to go."""
        return self.limit - self.bytes


class Shelf:
    """Keeps things by key, `limit` bytes of them; safe to use from several threads.

    Taking a thing off only forgets it here: whoever works with it keeps it alive.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._bytes = 0
        self._evicted = 0
        self._lock = threading.Lock()

    def put(self, key: Hashable, content: Any, size: int, *, pinned: bool | None = None) -> Kept:
        """Keep `content`, in place of what was used longest ago; what is there already is used once more.

        `pinned` None leaves a pin as it is.

        Raises:
            Refusal: `resident_limit`, with the numbers, where it does not fit beside what is pinned.
        """
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                self._make_room(size)
                kept = self._kept[key] = Kept(content, size, False, self._clock())
                self._bytes += size
            if pinned is not None:
                kept.pinned = pinned
            self._touch(key, kept)
            return kept

    def take(self, keys: Iterable[Hashable]) -> dict[Hashable, Any]:
        """The contents of those keys that are there, each used once more."""
        found = {}
        with self._lock:
            for key in keys:
                kept = self._kept.get(key)
                if kept is not None:
                    self._touch(key, kept)
                    found[key] = kept.content
        return found

    def look(self, key: Hashable) -> Kept | None:
        """What is kept under `key`, not used by being looked at."""
        return self._kept.get(key)

    def pin(self, key: Hashable, pinned: bool) -> Kept | None:
        """Let something stay whatever comes, or let it go with the others again."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                kept.pinned = pinned
            return kept

    def remove(self, key: Hashable) -> bool:
        """Forget something, pinned or not; whether it was there."""
        with self._lock:
            return self._remove(key)

    def remove_all(self, which: Callable[[Any], bool]) -> None:
        """Forget everything whose key is such a one."""
        with self._lock:
            for key in [key for key in self._kept if which(key)]:
                self._remove(key)

    def all(self, which: Callable[[Any], bool]) -> list[tuple[Any, Kept]]:
        """Everything whose key is such a one, most recently used first."""
        with self._lock:
            return [(key, kept) for key, kept in reversed(self._kept.items()) if which(key)]

    def statistics(self) -> ShelfStatistics:
        """What is on the shelf now."""
        with self._lock:
            pinned = sum(kept.bytes for kept in self._kept.values() if kept.pinned)
            return ShelfStatistics(len(self._kept), self._bytes, pinned, self._limit, self._evicted)

    def _touch(self, key: Hashable, kept: Kept) -> None:
        kept.last_used = self._clock()
        self._kept.move_to_end(key)

    def _remove(self, key: Hashable) -> bool:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.bytes
        return kept is not None

    def _make_room(self, size: int) -> None:
        pinned = sum(kept.bytes for kept in self._kept.values() if kept.pinned)
        if pinned + size > self._limit:
            detail = f"{size} bytes do not fit: at most {self._limit} may be resident"
            if pinned:
                detail += f", of which {pinned} are pinned; unpin or delete some"
            detail += "; send the arrays with each request, or have the operator raise max_resident_bytes"
            refused = {"bytes": size, "limit": self._limit, "pinned": pinned}
            raise Refusal("resident_limit", detail, extra=refused)
        loose = [key for key, kept in self._kept.items() if not kept.pinned]
        for key in loose:
            if self._bytes + size <= self._limit:
                break
            self._remove(key)
            self._evicted += 1
