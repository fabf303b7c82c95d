"""Answers compressed with zstd, for callers that ask for that and nothing else."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nablad.compression import WORTH, ZSTD, available, compressed
from nablad.frame import Buffer

SMALL = 64 * 1024
"""Bytes that are compressed on the event loop."""


class CompressedAnswers:
    """Compresses answers where `Accept-Encoding` is `zstd` alone.

    HTTP libraries list what they can read in every request, zstd among it: every answer would be slower.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._able = available()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = self._able and (b"accept-encoding", ZSTD.encode()) in scope.get("headers", ())
        await self._app(scope, receive, _Compressing(send) if asked else send)


class _Compressing:
    """Collects an answer and sends it compressed."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self._pieces: list[Buffer] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._pieces.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        size = sum(map(len, self._pieces))
        pieces, start = self._pieces, self._start
        if size >= WORTH:
            pieces = compressed(pieces) if size <= SMALL else await asyncio.to_thread(compressed, pieces)
            kept = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            length = str(sum(map(len, pieces))).encode()
            added = [(b"content-length", length), (b"content-encoding", ZSTD.encode())]
            start = {**start, "headers": [*kept, *added]}
        await self._send(start)
        last = len(pieces) - 1
        for position, piece in enumerate(pieces):
            await self._send({"type": "http.response.body", "body": piece, "more_body": position < last})
