"""What a run tells: events in their order, for any number of listeners, as server-sent events have them.

The format is the one of the HTML standard, section 9.2: https://html.spec.whatwg.org/#server-sent-events
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_KEPT = 100_000
"""Events of one run; the first ones go."""
HEARTBEAT = 10.0
"""Seconds of silence after which a comment tells that the connection is alive."""
RETRY = b"retry: 1000\n\n"
"""Milliseconds after which a listener whose stream broke asks again."""
ALIVE = b": alive\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One event, its data in JSON already."""

    number: int
    kind: str
    data: str

    def encoded(self) -> bytes:
        """As it travels."""
        return f"id: {self.number}\nevent: {self.kind}\ndata: {self.data}\n\n".encode()


class Events:
    """The events of a run, numbered from `first`. Lives on one event loop.

    `deserted` is called when the last listener leaves before the end.
    """

    def __init__(self, first: int, deserted: Callable[[], None]) -> None:
        self._next = first
        self._kept: deque[Event] = deque(maxlen=MOST_KEPT)
        self._deserted = deserted
        self._listeners = 0
        self._changed = asyncio.Event()
        self.ended = False

    @property
    def next(self) -> int:
        """The number of the next event."""
        return self._next

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return self._listeners > 0

    def tell(self, kind: str, data: Mapping[str, Any], *, last: bool = False) -> None:
        """Add an event, the last one where it says so."""
        self._kept.append(Event(self._next, kind, json.dumps(data, allow_nan=False)))
        self._next += 1
        self.ended = last
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(self, after: int) -> AsyncIterator[bytes]:
        """The events behind number `after` as they travel, to the last; comments where nothing happens."""
        self._listeners += 1
        try:
            yield RETRY
            while True:
                changed = self._changed
                for event in self._behind(after):
                    after = event.number
                    yield event.encoded()
                if self.ended and after >= self._next - 1:
                    return
                if changed is not self._changed:
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT)
                except TimeoutError:
                    yield ALIVE
        finally:
            self._listeners -= 1
            if not self._listeners and not self.ended:
                self._deserted()

    def _behind(self, after: int) -> list[Event]:
        missed = self._next - 1 - after
        if missed <= 0:
            return []
        return list(self._kept)[-missed:]
