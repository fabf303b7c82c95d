"""A transport that blocks: httpx's interface, and a faster one beneath."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

import httpx

from nablad.blocks import Blocks
from nablad.frame import Buffer
from nablad.polling import BUSY_POLL, polled
from nablad.transports.address import connected
from nablad.transports.exchange import READ, WRITE, Exchange, Timeouts, Unanswered, Waiting
from nablad.transports.incoming import Answer
from nablad.transports.outgoing import Outgoing, head, in_chunks
from nablad.transports.pool import DEFAULT_LIMITS, Connection, IdleByPlace
from nablad.transports.translated import place_of, response_of, sendable_again, timeouts_of, whole

EVENTS = {READ: select.POLLIN, WRITE: select.POLLOUT, READ | WRITE: select.POLLIN | select.POLLOUT}


class BlockingTransport(httpx.BaseTransport):
    """Plain HTTP/1.1 to one server; bodies go out and come in without being copied on the way.

    A large answer is received into one block of its announced length, which `extensions["body"]` of the
    response views. Safe to use from several threads.

    Args:
        uds: the path of a Unix socket to connect to, whatever the URL says.
        limits: how many connections there may be, and how long idle ones are kept.
        busy_poll: seconds for which an answer is looked for without sleeping, where the connection's last one
            came within that time and no other exchange is under way: to wake a thread that sleeps in the
            system takes longer than a small program runs.
    """

    def __init__(
        self,
        *,
        uds: str | None = None,
        limits: httpx.Limits = DEFAULT_LIMITS,
        busy_poll: float = BUSY_POLL,
    ) -> None:
        self._uds = uds
        self._blocks = Blocks()
        self._lock = threading.Lock()
        self._idle = IdleByPlace(limits)
        self._busy_poll = polled(busy_poll)
        self._under_way = 0
        most = limits.max_connections
        self._places = threading.BoundedSemaphore(most) if most is not None else None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        begin = head(request.method, request.url.raw_path, request.headers.raw)
        place = self._uds or place_of(request.url)
        again = sendable_again(request)
        parts: Iterable[Sequence[Buffer]] | None = whole(begin, request.stream)
        if parts is None:
            assert isinstance(request.stream, httpx.SyncByteStream)
            parts = _parts(begin, request.stream, "transfer-encoding" in request.headers)
        return response_of(self.exchange(place, request.method, parts, timeouts_of(request), again=again))

    def exchange(
        self,
        place: tuple[str, int] | str,
        method: str,
        parts: Iterable[Sequence[Buffer]],
        timeouts: Timeouts,
        *,
        again: bool,
    ) -> Answer:
        """Send a request, head and body in `parts`, and receive the whole answer.

        `again` says that the request may be sent a second time, where the server closed an idle connection
        before it answered anything; then `parts` is a sequence.

        Raises:
            httpx.TransportError: by its kind, as from httpx.
        """
        if self._places is not None and not self._places.acquire(timeout=timeouts.pool):
            raise httpx.PoolTimeout(f"no connection was free within {timeouts.pool:g} s")
        with self._lock:
            self._under_way += 1
        try:
            while True:
                with self._lock:
                    connection = self._idle.at(place).take()
                if connection is None:
                    connection = Connection(connected(place, timeouts.connect))
                try:
                    return self._on(connection, place, method, parts, timeouts)
                except Unanswered as failure:
                    if not (again and connection.used):
                        raise failure.cause from failure.__cause__
        finally:
            with self._lock:
                self._under_way -= 1
            if self._places is not None:
                self._places.release()

    def _on(
        self,
        connection: Connection,
        place: tuple[str, int] | str,
        method: str,
        parts: Iterable[Sequence[Buffer]],
        timeouts: Timeouts,
    ) -> Answer:
        exchange = Exchange(connection, self._blocks, method, timeouts)
        try:
            for part in parts:
                _drive(exchange.send(Outgoing(part)), connection.socket)
                if exchange.over:
                    break
            sent = time.perf_counter()
            alone = self._under_way == 1
            _drive(
                exchange.receive(), connection.socket, self._busy_poll if connection.prompt and alone else 0.0
            )
            connection.prompt = time.perf_counter() - sent < self._busy_poll
        except BaseException:
            connection.close()
            raise
        if exchange.reusable:
            with self._lock:
                self._idle.at(place).put(connection)
        else:
            connection.close()
        return exchange.answer

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            self._idle.close()


def _parts(begin: bytes, stream: Iterable[bytes], chunked: bool) -> Iterator[Sequence[Buffer]]:
    """Head and body of any of httpx's streams."""
    yield (begin,)
    for piece in stream:
        yield in_chunks(piece) if chunked else (piece,)
    if chunked:
        yield (b"0\r\n\r\n",)


def _drive(waiting: Waiting, sock: socket.socket, busy_poll: float = 0.0) -> None:
    """Run a part of an exchange, and block where it waits, after polling for so many seconds."""
    poller = None
    try:
        wait = next(waiting)
        while True:
            if poller is None:
                poller = select.poll()
            poller.register(sock, EVENTS[wait.what])
            awake = busy_poll if wait.seconds is None else min(busy_poll, wait.seconds)
            found = awake and _polled(poller, awake)
            if not found:
                found = poller.poll(None if wait.seconds is None else wait.seconds * 1000)
            if not found:
                _late(wait.late, wait.seconds)
            # An error or a hang-up shows in whatever is tried next.
            ready = found[0][1]
            wait = waiting.send(READ if ready & select.POLLIN else WRITE)
    except StopIteration:
        return


def _polled(poller: select.poll, seconds: float) -> list[tuple[int, int]]:
    """What is ready before that time is over, found without sleeping."""
    until = time.perf_counter() + seconds
    found: list[tuple[int, int]] = []
    while not found and time.perf_counter() < until:
        found = poller.poll(0)
    return found


def _late(kind: type[httpx.TimeoutException], seconds: float | None) -> NoReturn:
    raise kind(f"nothing moved within {seconds:g} s")
