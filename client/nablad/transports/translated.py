"""Between httpx's requests and responses and what the transports exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TypeAlias

import httpx

from nablad.frame import Buffer
from nablad.pieces import Pieces
from nablad.transports.exchange import Timeouts
from nablad.transports.incoming import Answer

Parts: TypeAlias = "tuple[tuple[Buffer, ...], ...]"

IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
REPEATABLE = "nablad.repeatable"
"""The extension of a request that says it may be sent a second time, whatever its method."""


class Received(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that is there already, as httpx streams it."""

    def __init__(self, body: memoryview) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield bytes(self._body)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield bytes(self._body)


def response_of(answer: Answer) -> httpx.Response:
    """An answer as httpx has it; `extensions["body"]` views its body without a copy."""
    extensions = {"http_version": b"HTTP/1.1", "body": answer.body}
    return httpx.Response(
        answer.status,
        headers=list(answer.headers),
        stream=Received(memoryview(answer.body)),
        extensions=extensions,
    )


def place_of(url: httpx.URL) -> tuple[str, int]:
    """Host and port of a URL.

    Raises:
        httpx.UnsupportedProtocol: it is not plain HTTP.
    """
    if url.scheme != "http":
        raise httpx.UnsupportedProtocol(f"this transport speaks http, not {url.scheme}; use httpx's own")
    return url.raw_host.decode("ascii"), url.port or 80


def timeouts_of(request: httpx.Request) -> Timeouts:
    """The timeouts of a request."""
    return Timeouts(**request.extensions.get("timeout", {}))


def whole(begin: bytes, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> Parts | None:
    """Head and body in one part, where the body lies ready; None where it is made while it is sent."""
    if isinstance(stream, Pieces):
        return ((begin, *stream.buffers),)
    if isinstance(stream, httpx.ByteStream):
        return ((begin, *stream),)
    return None


def sendable_again(request: httpx.Request) -> bool:
    """Whether a request may go out a second time after a connection that broke before any answer."""
    repeatable = request.method in IDEMPOTENT or bool(request.extensions.get(REPEATABLE))
    return repeatable and isinstance(request.stream, Pieces | httpx.ByteStream)
