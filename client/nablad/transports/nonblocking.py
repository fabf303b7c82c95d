"""A transport for asyncio, on its own loop or uvloop's: httpx's interface, and a faster one beneath."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import httpx

from nablad.blocks import Blocks
from nablad.frame import Buffer
from nablad.transports.address import AGAIN, connecting
from nablad.transports.exchange import READ, WRITE, Exchange, Timeouts, Unanswered, Wait, Waiting
from nablad.transports.incoming import Answer
from nablad.transports.outgoing import Outgoing, head, in_chunks
from nablad.transports.pool import DEFAULT_LIMITS, Connection, IdleByPlace
from nablad.transports.translated import place_of, response_of, sendable_again, timeouts_of, whole


class NonblockingTransport(httpx.AsyncBaseTransport):
    """What `BlockingTransport` is, for asyncio. Under any other library httpx's own transport takes over.

    Args:
        uds: the path of a Unix socket to connect to, whatever the URL says.
        limits: how many connections there may be, and how long idle ones are kept.
    """

    def __init__(self, *, uds: str | None = None, limits: httpx.Limits = DEFAULT_LIMITS) -> None:
        self._uds = uds
        self._limits = limits
        self._blocks = Blocks()
        self._idle = IdleByPlace(limits)
        most = limits.max_connections
        self._places = asyncio.Semaphore(most) if most is not None else None
        self._stock: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not on_asyncio():
            if self._stock is None:
                self._stock = httpx.AsyncHTTPTransport(uds=self._uds, limits=self._limits)
            return await self._stock.handle_async_request(request)
        begin = head(request.method, request.url.raw_path, request.headers.raw)
        place = self._uds or place_of(request.url)
        parts: AsyncIterable[Sequence[Buffer]] | Sequence[Sequence[Buffer]] | None
        parts = whole(begin, request.stream)
        if parts is None:
            assert isinstance(request.stream, httpx.AsyncByteStream)
            parts = _parts(begin, request.stream, "transfer-encoding" in request.headers)
        again = sendable_again(request)
        answer = await self.exchange(place, request.method, parts, timeouts_of(request), again=again)
        return response_of(answer)

    async def exchange(
        self,
        place: tuple[str, int] | str,
        method: str,
        parts: AsyncIterable[Sequence[Buffer]] | Sequence[Sequence[Buffer]],
        timeouts: Timeouts,
        *,
        again: bool,
    ) -> Answer:
        """As `BlockingTransport.exchange`; a cancelled exchange closes its connection."""
        if self._places is not None:
            try:
                # Without a wait there is no need of a timer.
                waits = self._places.locked() and timeouts.pool is not None
                async with asyncio.timeout(timeouts.pool if waits else None):
                    await self._places.acquire()
            except TimeoutError:
                raise httpx.PoolTimeout(f"no connection was free within {timeouts.pool:g} s") from None
        try:
            while True:
                connection = self._idle.at(place).take()
                if connection is None:
                    connection = Connection(await connected(place, timeouts.connect))
                try:
                    return await self._on(connection, place, method, parts, timeouts)
                except Unanswered as failure:
                    if not (again and connection.used):
                        raise failure.cause from failure.__cause__
        finally:
            if self._places is not None:
                self._places.release()

    async def _on(
        self,
        connection: Connection,
        place: tuple[str, int] | str,
        method: str,
        parts: AsyncIterable[Sequence[Buffer]] | Sequence[Sequence[Buffer]],
        timeouts: Timeouts,
    ) -> Answer:
        exchange = Exchange(connection, self._blocks, method, timeouts)
        try:
            if isinstance(parts, Sequence):
                for part in parts:
                    await _drive(exchange.send(Outgoing(part)), connection.socket)
            else:
                async for part in parts:
                    await _drive(exchange.send(Outgoing(part)), connection.socket)
                    if exchange.over:
                        break
            await _drive(exchange.receive(), connection.socket)
        except BaseException:
            connection.close()
            raise
        if exchange.reusable:
            self._idle.at(place).put(connection)
        else:
            connection.close()
        return exchange.answer

    async def aclose(self) -> None:
        """Close the idle connections."""
        self._idle.close()
        if self._stock is not None:
            await self._stock.aclose()


def on_asyncio() -> bool:
    """Whether the caller runs on asyncio's loop, or one like it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def connected(place: tuple[str, int] | str, seconds: float | None) -> socket.socket:
    """A connected non-blocking socket.

    Raises:
        httpx.TransportError: as `connecting` does.
    """
    with connecting(seconds):
        async with asyncio.timeout(seconds):
            return await (_connected_unix(place) if isinstance(place, str) else _connected_tcp(*place))


async def _connected_tcp(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _, place in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, place)
            return sock
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError) or isinstance(error, TimeoutError):
                raise
            failure = error
    raise failure or OSError(f"{host} has no address")


async def _connected_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:  # the server's queue of callers is full
                await asyncio.sleep(AGAIN)
    except BaseException:
        sock.close()
        raise


async def _parts(
    begin: bytes, stream: httpx.AsyncByteStream, chunked: bool
) -> AsyncIterator[Sequence[Buffer]]:
    """Head and body of any of httpx's streams."""
    yield (begin,)
    async for piece in stream:
        yield in_chunks(piece) if chunked else (piece,)
    if chunked:
        yield (b"0\r\n\r\n",)


async def _drive(waiting: Waiting, sock: socket.socket) -> None:
    """Run a part of an exchange, and let others run where it waits."""
    try:
        wait = next(waiting)
        while True:
            wait = waiting.send(await _ready(sock, wait))
    except StopIteration:
        return


async def _ready(sock: socket.socket, wait: Wait) -> int:
    """Wait for a socket; what it is ready for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    timer = None
    if wait.seconds is not None:
        late = wait.late(f"nothing moved within {wait.seconds:g} s")
        timer = loop.call_later(wait.seconds, _fail, future, late)
    if wait.what & READ:
        loop.add_reader(sock, _settle, future, READ)
    if wait.what & WRITE:
        loop.add_writer(sock, _settle, future, WRITE)
    try:
        return await future
    finally:
        if wait.what & READ:
            loop.remove_reader(sock)
        if wait.what & WRITE:
            loop.remove_writer(sock)
        if timer is not None:
            timer.cancel()


def _settle(future: asyncio.Future[Any], result: int) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
