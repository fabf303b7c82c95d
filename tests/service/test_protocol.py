"""How bodies reach the server: by its own protocol and by uvicorn's, on both loops, with the same answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from nablad.blocks import Blocks
from nablad_service.app import create_app
from nablad_service.routes import bodies
from nablad_service.routes.bodies import read_body
from nablad_service.settings import Settings
from nablad_service.sockets.protocol import ReceivingProtocol
from nablad_service.sockets.receiving import WORTH, receiver

LIMIT = 40 * WORTH
LATE = 60.0
"""Seconds after which a stream has something to say."""
SIZES = [0, 1, 1000, WORTH - 1, WORTH, WORTH + 1, 7 * WORTH + 13, LIMIT]


def digests() -> FastAPI:
    """Answers with the digest of a body, as the service receives bodies, and whether in place."""
    app = create_app(Settings(max_body_bytes=LIMIT))
    app.router.lifespan_context = lambda app: _nothing()

    @app.post("/digest")
    async def digest(request: Request) -> Response:
        length = int(request.headers.get("content-length", 0))
        in_place = receiver(request.scope, length) is not None
        body = np.frombuffer((await read_body(request)).data, np.uint8)
        found = {"digest": hashlib.sha256(body).hexdigest(), "in_place": in_place}
        return Response(json.dumps({**found, "aligned": body.ctypes.data % 64 == 0}))

    @app.head("/head")
    async def head() -> Response:
        return Response(headers={"content-length": "1000"})

    @app.get("/stream")
    async def stream() -> Response:
        async def late() -> AsyncIterator[bytes]:
            await asyncio.sleep(LATE)
            yield b"late"

        return StreamingResponse(late())

    return app


class _nothing:  # noqa: N801 - a lifespan of no length
    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *error: object) -> None:
        pass


@pytest.fixture(scope="module", params=["own uvloop", "own asyncio", "stock uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Which protocol it is, and the port."""
    kind, loop = request.param.split()
    app = digests()
    app.state.settings = Settings(max_body_bytes=LIMIT)
    http: Any = ReceivingProtocol if kind == "own" else "httptools"
    running = uvicorn.Server(uvicorn.Config(app, http=http, loop=loop, log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield kind, listener.getsockname()[1]
    running.should_exit = True
    thread.join()


class Connection:
    """A caller's side of a connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self.socket.makefile("rb")
        self.sendall = self.socket.sendall

    def answer(self) -> tuple[int, Any]:
        """Status and document of the next answer."""
        status = int(self._file.readline()[9:12])
        length = 0
        while (line := self._file.readline().lower()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        return status, json.loads(self._file.read(length))

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def connection(server: tuple[str, int]) -> Iterator[Connection]:
    with closing(Connection(server[1])) as connected:
        yield connected


def request(body: bytes, headers: str = "") -> bytes:
    head = f"POST /digest HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_bodies_of_every_size_arrive_one_after_the_other(
    server: tuple[str, int], connection: Connection, size: int
) -> None:
    for seed in range(3):
        body = noise(size, seed)
        connection.sendall(request(body))
        status, found = connection.answer()
        assert status == 200
        assert found["digest"] == hashlib.sha256(body).hexdigest()
        assert found["in_place"] is (server[0] == "own" and size >= WORTH)
        assert found["aligned"] or size < WORTH


def test_a_body_may_come_in_small_pieces(connection: Connection) -> None:
    body = noise(2 * WORTH)
    whole = request(body)
    for start in range(0, len(whole), 10_000):
        connection.sendall(whole[start : start + 10_000])
    assert connection.answer()[1]["digest"] == hashlib.sha256(body).hexdigest()


def test_requests_may_follow_each_other_without_waiting(connection: Connection) -> None:
    bodies = [noise(size, size) for size in (3 * WORTH, 10, 2 * WORTH, 0, WORTH)]
    sender = threading.Thread(target=lambda: connection.sendall(b"".join(map(request, bodies))))
    sender.start()
    found = [connection.answer()[1]["digest"] for _ in bodies]
    sender.join()
    assert found == [hashlib.sha256(body).hexdigest() for body in bodies]


def test_a_caller_that_waits_for_leave_gets_it(connection: Connection) -> None:
    body = noise(2 * WORTH)
    whole = request(body, "Expect: 100-continue\r\n")
    connection.sendall(whole[: -len(body)])
    assert connection.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    assert connection.answer()[1]["digest"] == hashlib.sha256(body).hexdigest()


def test_a_body_over_the_limit_is_refused_and_the_connection_goes_on(connection: Connection) -> None:
    sender = threading.Thread(target=lambda: connection.sendall(request(bytes(LIMIT + 1)) + request(b"ok")))
    sender.start()
    status, found = connection.answer()
    assert (status, found["code"]) == (413, "body_too_large")
    assert connection.answer()[1]["digest"] == hashlib.sha256(b"ok").hexdigest()
    sender.join()


def test_a_body_that_memory_cannot_hold_is_refused(
    server: tuple[str, int], connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(size: int) -> memoryview:
        raise MemoryError

    monkeypatch.setattr(Blocks, "lend", lambda self, size: none(size))
    monkeypatch.setattr(bodies, "aligned", none)
    connection.sendall(request(bytes(WORTH)))
    status, found = connection.answer()
    assert (status, found["code"]) == (507, "out_of_memory")
    connection.sendall(request(b"ok"))
    assert connection.answer()[0] == 200


def test_a_body_in_chunks_arrives_too(connection: Connection) -> None:
    head = b"POST /digest HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head + b"%x\r\n%s\r\n0\r\n\r\n" % (WORTH, noise(WORTH)))
    assert connection.answer()[1]["digest"] == hashlib.sha256(noise(WORTH)).hexdigest()


@pytest.mark.parametrize("kept", [0, 100, WORTH // 2, 2 * WORTH - 1])
def test_a_caller_that_leaves_in_the_middle_harms_nobody(server: tuple[str, int], kept: int) -> None:
    for _ in range(3):
        with closing(Connection(server[1])) as leaving:
            whole = request(noise(2 * WORTH))
            leaving.sendall(whole[: len(whole) - 2 * WORTH + kept])
    with closing(Connection(server[1])) as staying:
        staying.sendall(request(b"still here"))
        assert staying.answer()[0] == 200


def test_a_caller_that_sent_half_and_listens_is_told(connection: Connection) -> None:
    whole = request(noise(2 * WORTH))
    connection.sendall(whole[:-1000])
    connection.socket.shutdown(socket.SHUT_WR)
    # Either an answer that says so or the end of the connection; never a result.
    assert not connection.socket.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("asked", ["HEAD /head", "GET /stream"])
def test_heads_that_no_body_follows_do_not_wait_for_one(connection: Connection, asked: str) -> None:
    connection.sendall(f"{asked} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.socket.recv(1)
    assert head.startswith(b"HTTP/1.1 200")
