"""Both ends look without sleeping for what is about to come, and only then."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, get_ident
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import Response
from scripted_server import Scripted, plain, read_request, says, scripted

import nablad
from nablad import polling
from nablad.polling import polled
from nablad.transports import BlockingTransport, blocking
from nablad_service.metrics import Metrics
from nablad_service.routes.hot import HotPaths
from nablad_service.running.giving_way import GIVING_WAY
from nablad_service.sockets import polling as server_polling
from nablad_service.sockets.polling import BusyPolling
from nablad_service.sockets.receiving import OPEN


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_processors", lambda: 2)


class Clock:
    """Stands for `time` on both ends: stands still, but for what a test adds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(blocking, "time", clock)
    monkeypatch.setattr(server_polling, "time", clock)
    return clock


@pytest.mark.skipif(sys.platform != "linux", reason="threads are bound to processors on Linux")
def test_where_there_is_one_processor_nobody_polls() -> None:
    def bound() -> float:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return polled(0.5)

    with ThreadPoolExecutor(1) as thread:  # which alone is bound
        assert thread.submit(bound).result() == 0.0


def test_where_there_are_two_they_do(two_processors: None) -> None:
    assert polled(0.5) == 0.5


def test_less_than_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="busy_poll is a number of seconds, 0 for never, not -1"):
        nablad.Client(busy_poll=-1)


# -- the client, for its answer


class Looking:
    """Exchanges of a client, and for how long each looked for its answer without sleeping."""

    def __init__(self, server: Scripted, busy_poll: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.http = httpx.Client(
            base_url=server.url, timeout=120, transport=BlockingTransport(busy_poll=busy_poll)
        )
        self.seconds: list[tuple[int, float]] = []
        self.in_vain = Event()
        look = blocking._polled

        def looking(poller: Any, seconds: float) -> Any:
            self.seconds.append((get_ident(), seconds))
            found = look(poller, seconds)
            if not found:
                self.in_vain.set()
            return found

        monkeypatch.setattr(blocking, "_polled", looking)

    def looks(self, **options: Any) -> bool:
        before = self._own()
        assert self.http.post("/", content=b"?", **options).content == b"hello"
        return self._own() > before

    def _own(self) -> int:
        return sum(thread == get_ident() for thread, _ in self.seconds)


@pytest.mark.parametrize(("busy_poll", "looks"), [(0.5, True), (0.0, False)])
def test_a_client_polls_where_the_last_answer_was_prompt(
    busy_poll: float, looks: bool, clock: Clock, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted(says(plain(b"hello"))) as server:
        client = Looking(server, busy_poll, monkeypatch)
        assert [client.looks() for _ in range(3)] == [False, looks, looks]
        assert {seconds for _, seconds in client.seconds} <= {busy_poll}
        client.http.close()


def test_a_client_that_polled_in_vain_sleeps_then_and_the_next_time(
    clock: Clock, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(connection: socket.socket) -> None:
        for late in (False, True, False, False):
            read_request(connection)
            while late and not client.in_vain.wait(0.001):
                clock.now += 1.0
            connection.sendall(plain(b"hello"))

    with scripted(script) as server:
        client = Looking(server, 0.5, monkeypatch)
        assert [client.looks() for _ in range(4)] == [False, True, False, True]
        client.http.close()


def test_a_timeout_holds_where_a_client_polls(two_processors: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def once(connection: socket.socket) -> None:
        says(plain(b"hello"), times=1)(connection)
        read_request(connection)
        assert connection.recv(1) == b""  # and the connection is closed

    with scripted(once) as server:
        client = Looking(server, 60.0, monkeypatch)
        assert not client.looks()
        with pytest.raises(httpx.ReadTimeout):
            client.looks(timeout=httpx.Timeout(60, read=0.1))
        assert client.in_vain.is_set()
        client.http.close()


def test_a_client_with_several_calls_under_way_does_not_poll(
    clock: Clock, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = Event(), Event()

    def held(connection: socket.socket) -> None:
        says(plain(b"hello"), times=1)(connection)
        read_request(connection)
        asked.set()
        go.wait(60)
        connection.sendall(plain(b"hello"))
        says(plain(b"hello"))(connection)

    with scripted(held, says(plain(b"hello"))) as server, ThreadPoolExecutor(1) as pool:
        client = Looking(server, 0.5, monkeypatch)
        assert not client.looks()
        other = pool.submit(client.looks)
        assert asked.wait(60)
        assert [client.looks(), client.looks(), client.looks()] == [False] * 3
        go.set()
        other.result(60)
        assert client.looks()
        client.http.close()


# -- the server, for the next request


class Selector(selectors.DefaultSelector):
    """Tells whether its event loop goes to sleep, or looks and looks."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.asked: asyncio.Future[bool] | None = None

    def select(self, timeout: float | None = None) -> Any:
        sleeps = timeout is None or timeout > 0
        self.looks += 1
        if self.asked and not self.asked.done() and (sleeps or self.looks > 100):
            self.asked.set_result(not sleeps)
            timeout = 0
        return super().select(timeout)


Scenario = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


def on_a_loop(scenario: Scenario) -> None:
    """Run it on an event loop; what it is given tells whether the loop stays awake for nothing."""
    selector = Selector()

    async def awake() -> bool:
        selector.looks, selector.asked = 0, asyncio.get_running_loop().create_future()
        return await selector.asked

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(scenario(awake))  # type: ignore[arg-type] # each is a coroutine


def exchange(server: BusyPolling, *, alone: bool = True) -> None:
    server.asked()
    server.answered(alone=alone)


def test_a_server_polls_where_a_lone_caller_asks_again_at_once(clock: Clock, two_processors: None) -> None:
    async def scenario(awake: Callable[[], Awaitable[bool]]) -> None:
        server = BusyPolling(0.5)
        exchange(server)
        assert not await awake()
        exchange(server)
        assert await awake()
        server.asked()
        assert not await awake()
        server.answered(alone=False)
        assert not await awake()
        exchange(server)
        assert await awake()
        exchange(server)
        exchange(server)
        assert await awake()
        server.asked()

    on_a_loop(scenario)


def test_a_server_stops_polling_when_nobody_asks(clock: Clock, two_processors: None) -> None:
    async def scenario(awake: Callable[[], Awaitable[bool]]) -> None:
        server = BusyPolling(0.5)
        exchange(server)
        exchange(server)
        assert await awake()
        clock.now += 0.6
        assert not await awake()
        # It came late: the one behind it is not expected soon.
        exchange(server)
        assert not await awake()

    on_a_loop(scenario)


def test_a_server_that_shall_not_poll_or_that_traces_does_not(clock: Clock, two_processors: None) -> None:
    async def scenario(awake: Callable[[], Awaitable[bool]]) -> None:
        never = BusyPolling(0.0)
        server = BusyPolling(0.5)
        for _ in range(3):
            exchange(never)
        assert not await awake()
        exchange(server)
        with GIVING_WAY:
            exchange(server)
            assert not await awake()
        exchange(server)
        assert await awake()
        server.asked()

    on_a_loop(scenario)


def test_requests_of_hot_paths_are_those_that_count(clock: Clock, two_processors: None) -> None:
    async def endpoint(request: Request) -> Response:
        return Response(b"hello")

    async def ignored(*message: Any) -> Any:
        pass

    async def scenario(awake: Callable[[], Awaitable[bool]]) -> None:
        paths = HotPaths({"/hot": endpoint}, Metrics(), busy_poll=0.5)

        async def ask(path: str, requests: int = 1) -> None:
            headers = [(b"content-length", b"0")]
            scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
            told = await paths.answered({**scope, "extensions": {OPEN: range(requests)}}, ignored, ignored)
            assert told is (path == "/hot")

        for path, requests, polls in [("/hot", 1, False), ("/hot", 1, True), ("/hot", 2, False)]:
            await ask(path, requests)
            assert await awake() is polls
        await ask("/other")
        await ask("/other")
        assert not await awake()

    on_a_loop(scenario)
