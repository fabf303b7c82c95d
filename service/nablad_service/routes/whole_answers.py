"""Answers that are changed as a whole on their way out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from starlette.types import Message, Send

from nablad.frame import Buffer

Header = tuple[bytes, bytes]

EVENTS = b"text/event-stream"
"""Answers that have no end to wait for, and leave as they come."""


class WholeAnswer(ABC):
    """Stands in for `send`: collects an answer, lets `changed` have it, and sends what that makes of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self._streams = False
        self._pieces: list[Buffer] = []

    async def __call__(self, message: Message) -> None:
        """Take a message of the application's."""
        if message["type"] == "http.response.start":
            self._start = message
            self._streams = dict(message["headers"]).get(b"content-type", b"").startswith(EVENTS)
        if self._streams:
            await self._send(message)
            return
        if message["type"] == "http.response.start":
            return
        self._pieces.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        found = await self.changed(self._pieces)
        pieces, start = self._pieces, self._start
        if found is not None:
            pieces, added = found
            kept = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            length = (b"content-length", str(sum(map(len, pieces))).encode())
            start = {**start, "headers": [*kept, length, *added]}
        await self._send(start)
        await send_pieces(pieces, self._send)

    @abstractmethod
    async def changed(self, pieces: list[Buffer]) -> tuple[list[Buffer], list[Header]] | None:
        """Another body in pieces, at least one, and headers to add; None to leave the answer as it is."""


async def send_pieces(pieces: Sequence[Buffer], send: Send) -> None:
    """The body of an answer, one message a piece."""
    last = len(pieces) - 1
    for position, piece in enumerate(pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": position < last})
