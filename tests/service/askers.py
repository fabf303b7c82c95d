"""Every way for the client to ask: its own transports and httpx's, blocking and on two loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import uvloop

import nablad
from nablad.calls import Call
from nablad.frame import Buffer
from nablad.pieces import Pieces
from nablad.sending import AsyncSender, Sender
from nablad.transports import Answer, BlockingTransport, NonblockingTransport

OWN = ("own", "own asyncio", "own uvloop", "direct", "direct asyncio", "direct uvloop")
WAYS = (*OWN, "stock", "stock asyncio")


class Asker:
    """Sends requests in one way, and keeps its connections while it is used."""

    def __init__(self, way: str, url: str, timeout: httpx.Timeout | float) -> None:
        kind, _, loop = way.partition(" ")
        path = url.removeprefix("unix:") if url.startswith("unix:") else None
        base = "http://localhost" if path else url
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        self.runner = asyncio.Runner(loop_factory=factory) if loop else None
        self._sender: Any = None
        self._http: Any = None
        if kind == "direct":
            self._sender = (AsyncSender if loop else Sender)(url, timeout, None)
            return
        transports: dict[str, Callable[..., Any]] = {
            "own": NonblockingTransport if loop else BlockingTransport,
            "stock": httpx.AsyncHTTPTransport if loop else httpx.HTTPTransport,
        }
        client = httpx.AsyncClient if loop else httpx.Client
        self._http = client(transport=transports[kind](uds=path), base_url=base, timeout=timeout)

    def ask(self, method: str = "GET", pieces: Sequence[Buffer] | None = None) -> Answer:
        """The answer to one request."""
        found: Answer = self._done(self.asked(method, pieces))
        return found

    def asked(self, method: str, pieces: Sequence[Buffer] | None) -> Any:
        """The same, yet to be awaited on a loop."""
        if self._sender is not None:
            body = None if pieces is None else list(pieces)
            repeatable = method != "POST"
            return self._sender.send(Call(method, "/there", {"Accept": "*/*"}, body, bytes, repeatable))
        request = self._http.build_request(method, "/there")
        if pieces is not None:
            request.stream = Pieces(pieces)
            request.headers["Content-Length"] = str(request.stream.size)
        sent = self._http.send(request)
        return Answer.of(sent) if self.runner is None else _answer(sent)

    def _done(self, asked: Any) -> Any:
        return asked if self.runner is None else self.runner.run(asked)

    def close(self) -> None:
        """Close the connections and the loop."""
        holder = self._sender or self._http
        if self.runner is None:
            holder.close()
        else:
            self.runner.run(holder.aclose())
            self.runner.close()


async def _answer(sent: Any) -> Answer:
    return Answer.of(await sent)


@contextmanager
def asker(way: str, url: str, timeout: httpx.Timeout | float = 30.0) -> Iterator[Asker]:
    """An asker for the length of a `with`."""
    one = Asker(way, url, timeout)
    try:
        yield one
    finally:
        one.close()


FAILURES = (httpx.TransportError, nablad.ConnectionFailed)


def cause(error: BaseException) -> BaseException:
    """What httpx would have raised."""
    return error.__cause__ or error if isinstance(error, nablad.ConnectionFailed) else error
