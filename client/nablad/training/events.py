"""Server-sent events, line by line, without the I/O.

The format is that of the HTML standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event: its kind, its data, and the id that a reader who lost the connection goes on behind."""

    kind: str
    data: dict[str, Any]
    id: str | None


class EventLines:
    """Makes events of lines; comments, which keep a connection alive, make none."""

    def __init__(self) -> None:
        self._kind = ""
        self._data: list[str] = []
        self._id: str | None = None

    def take(self, line: str) -> Event | None:
        """The event that ends with this line (without its end), if one does."""
        if not line:
            return self._end()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        return None

    def _end(self) -> Event | None:
        kind, data = self._kind, self._data
        self._kind, self._data = "", []
        return Event(kind or "message", json.loads("\n".join(data)), self._id) if data else None
