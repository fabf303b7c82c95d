"""A request's body in pieces, as httpx streams it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import httpx

from nablad.frame import Buffer

SLICE = 1024 * 1024
"""Bytes handed to the socket at once: what is left of a larger piece would be copied after every send."""


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The buffers of a body, in order; a transport that knows them sends them as they lie."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers
        self.size = sum(map(len, buffers))

    def __iter__(self) -> Iterator[bytes]:
        for buffer in self.buffers:
            view = memoryview(buffer)
            for start in range(0, len(view), SLICE):
                yield view[start : start + SLICE]  # type: ignore[misc] # sockets take any buffer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece
