"""The client's transports against servers that behave in every way that servers do."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from askers import FAILURES, OWN, WAYS, asker, cause
from scripted_server import plain, read_head, read_request, says, scripted

import nablad
from nablad.transports import BlockingTransport, NonblockingTransport
from nablad.transports.address import connecting

every_way = pytest.mark.parametrize("way", WAYS)
own_ways = pytest.mark.parametrize("way", OWN)
MEGABYTE = 1 << 20


@pytest.fixture(params=["tcp", "unix"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Both kinds of sockets."""
    return tmp_path / "socket" if request.param == "unix" else None


# -- answers

ANSWERS: dict[str, tuple[bytes, int, bytes]] = {
    "with a length": (plain(b"hello"), 200, b"hello"),
    "empty": (plain(b""), 200, b""),
    "large": (plain(bytes(range(256)) * 40_000), 200, bytes(range(256)) * 40_000),
    "a refusal": (plain(b"no", "422 Unprocessable Content"), 422, b"no"),
    "without a reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
    "in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        200,
        b"abcde",
    ),
    "without a body": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "after an interim one": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + plain(b"late"),
        200,
        b"late",
    ),
}


@every_way
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_every_framing_are_read_and_the_connection_kept(
    way: str, name: str, where: Path | None
) -> None:
    answer, status, body = ANSWERS[name]
    with scripted(says(answer), path=where) as server:
        with asker(way, server.url) as one:
            for _ in range(3):
                found = one.ask()
                assert (found.status, bytes(found.body)) == (status, body)
        assert server.connections == 1


@every_way
def test_an_answer_without_a_length_ends_with_its_connection(way: str) -> None:
    script = says(b"HTTP/1.1 200 OK\r\n\r\nall of it", times=1)
    with scripted(script) as server, asker(way, server.url) as one:
        for _ in range(2):
            assert bytes(one.ask().body) == b"all of it"
        assert server.connections == 2


@every_way
def test_an_answer_may_come_byte_by_byte(way: str) -> None:
    def slow(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        read_request(connection)
        for byte in plain(b"slowly", headers=b"X-Long: " + b"a" * 300 + b"\r\n"):
            connection.sendall(bytes([byte]))

    with scripted(slow) as server, asker(way, server.url) as one:
        found = one.ask()
    assert bytes(found.body) == b"slowly"
    assert found.header(b"x-long") == "a" * 300


BROKEN: dict[str, bytes] = {
    "cut in the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "cut in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "cut in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "a folded header": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX\r\n: 1\r\n\r\nab",
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
}


@every_way
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_told_as_such(way: str, name: str) -> None:
    with scripted(says(BROKEN[name], times=1)) as server, asker(way, server.url) as one:
        with pytest.raises(FAILURES) as caught:
            one.ask()
        assert isinstance(cause(caught.value), httpx.RemoteProtocolError)
        # And it costs nothing but its connection.
        assert server.connections == 1


@own_ways
def test_a_large_answer_lies_aligned_in_memory_of_its_own(way: str) -> None:
    with scripted(says(plain(bytes(MEGABYTE)))) as server, asker(way, server.url) as one:
        array = np.frombuffer(one.ask().body, np.uint8)
    assert array.ctypes.data % 64 == 0
    assert array.flags.writeable


def test_a_response_shows_the_block_without_a_copy_and_its_content_to_others() -> None:
    with (
        scripted(says(plain(bytes(MEGABYTE)))) as server,
        httpx.Client(transport=BlockingTransport(), base_url=server.url) as http,
    ):
        response = http.get("/")
        with http.stream("GET", "/") as streamed:
            pieces = list(streamed.iter_bytes())
        header = http.head("/")
    assert response.content == bytes(MEGABYTE) == b"".join(pieces)
    assert isinstance(response.extensions["body"], memoryview)
    assert (header.status_code, header.content) == (200, b"")


# -- requests


def digest(connection: socket.socket) -> None:
    """Answers each request with the digest of its body; reads little at a time."""
    while True:
        head, body = read_request(connection, at_once=5000)
        if not head:
            return
        connection.sendall(plain(hashlib.sha256(body).hexdigest().encode()))


BODIES: dict[str, list[bytes]] = {
    "one piece": [bytes(range(256)) * 8192],
    "more pieces than go at once": [bytes([number % 251]) * (number % 700) for number in range(5000)],
    "none": [],
    "empty pieces": [b"", b"a", b"", b"b", b""],
}


@every_way
@pytest.mark.parametrize("name", BODIES)
def test_pieces_arrive_in_order_at_a_slow_reader(way: str, name: str, where: Path | None) -> None:
    pieces = BODIES[name]
    with scripted(digest, path=where) as server, asker(way, server.url) as one:
        for _ in range(2):
            found = one.ask("POST", pieces)
            assert bytes(found.body).decode() == hashlib.sha256(b"".join(pieces)).hexdigest()
        assert server.connections == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_streams_of_httpx_go_out_too(chunked: bool) -> None:
    def says_what_came(connection: socket.socket) -> None:
        head, body = read_head(connection)
        end = b"0\r\n\r\n" if chunked else b"pieces"
        while not body.endswith(end):
            body += connection.recv(4096)
        assert (b"transfer-encoding: chunked" in head.lower()) is chunked
        connection.sendall(plain(body))

    async def ask_async(url: str) -> bytes:
        async def body():  # type: ignore[no-untyped-def]
            for piece in (b"in ", b"", b"pieces"):
                yield piece

        async with httpx.AsyncClient(transport=NonblockingTransport(), base_url=url) as http:
            return (await http.post("/", content=body(), headers=headers)).content

    headers = {} if chunked else {"Content-Length": "9"}
    wanted = b"3\r\nin \r\n6\r\npieces\r\n0\r\n\r\n" if chunked else b"in pieces"
    with scripted(says_what_came) as server:
        with httpx.Client(transport=BlockingTransport(), base_url=server.url) as http:
            assert http.post("/", content=iter([b"in ", b"", b"pieces"]), headers=headers).content == wanted
        assert asyncio.run(ask_async(server.url)) == wanted


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\x00b"])
def test_a_header_cannot_break_out_of_its_line(value: str) -> None:
    with (
        scripted(says(plain(b""))) as server,
        httpx.Client(transport=BlockingTransport(), base_url=server.url) as http,
        pytest.raises(httpx.LocalProtocolError),
    ):
        http.get("/", headers={"X": value})


# -- connections


@every_way
def test_a_connection_that_was_closed_while_idle_is_noticed(way: str, where: Path | None) -> None:
    closed = threading.Event()

    def once(connection: socket.socket) -> None:
        says(plain(b"first"), times=1)(connection)
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    with scripted(once, says(plain(b"second")), path=where) as server, asker(way, server.url) as one:
        assert bytes(one.ask("POST", [b"x"]).body) == b"first"
        assert closed.wait(60)
        assert bytes(one.ask("POST", [b"x"]).body) == b"second"


def closes_at_the_second(connection: socket.socket) -> None:
    says(plain(b"first"), times=1)(connection)
    read_request(connection)


@own_ways
def test_what_may_be_repeated_is_sent_again_when_an_idle_connection_breaks(way: str) -> None:
    with scripted(closes_at_the_second, says(plain(b"second"))) as server, asker(way, server.url) as one:
        one.ask()
        assert bytes(one.ask("PUT", [b"x" * MEGABYTE]).body) == b"second"
        assert server.connections == 2


@own_ways
def test_what_may_not_be_repeated_is_not_sent_again(way: str) -> None:
    with scripted(closes_at_the_second, says(plain(b"second"))) as server, asker(way, server.url) as one:
        one.ask()
        with pytest.raises(FAILURES):
            one.ask("POST", [b"x"])
        assert server.connections == 1


@own_ways
def test_a_new_connection_that_breaks_is_not_tried_again(way: str) -> None:
    with scripted(lambda connection: None) as server, asker(way, server.url) as one:
        with pytest.raises(FAILURES):
            one.ask()
        assert server.connections == 1


def refuses_and_closes(connection: socket.socket) -> None:
    read_head(connection)
    connection.sendall(plain(b"too large", "413 Content Too Large", b"Connection: close\r\n"))


# httpx on asyncio loses it: its loop reports the broken pipe first.
@pytest.mark.parametrize("way", [*OWN, "stock"])
def test_an_early_refusal_is_read_though_the_server_closes(way: str, where: Path | None) -> None:
    with scripted(refuses_and_closes, path=where) as server, asker(way, server.url) as one:
        for _ in range(5):
            found = one.ask("POST", [bytes(30 * MEGABYTE)])
            assert (found.status, bytes(found.body)) == (413, b"too large")


@own_ways
def test_an_early_refusal_is_read_though_the_server_neither_reads_nor_closes(way: str) -> None:
    done = threading.Event()

    def refuses_and_waits(connection: socket.socket) -> None:
        refuses_and_closes(connection)
        done.wait(60)

    with scripted(refuses_and_waits) as server, asker(way, server.url) as one:
        found = one.ask("POST", [bytes(30 * MEGABYTE)])
        done.set()
    assert found.status == 413


@own_ways
def test_an_answer_that_begins_early_does_not_end_the_request(way: str) -> None:
    def echo(connection: socket.socket) -> None:
        _, body = read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        received = len(body)
        while received < size:
            received += len(connection.recv(MEGABYTE))
        connection.sendall(bytes(size))

    size = 20 * MEGABYTE
    with scripted(echo) as server, asker(way, server.url) as one:
        assert len(one.ask("POST", [bytes(size)]).body) == size


@every_way
def test_a_server_that_says_nothing_is_left_after_the_read_timeout(way: str) -> None:
    def silent(connection: socket.socket) -> None:
        read_request(connection)
        assert connection.recv(1) == b""  # and the connection is closed

    with (
        scripted(silent) as server,
        asker(way, server.url, httpx.Timeout(30, read=0.05)) as one,
        pytest.raises(FAILURES) as caught,
    ):
        one.ask()
    assert isinstance(cause(caught.value), httpx.ReadTimeout)
    if isinstance(caught.value, nablad.ConnectionFailed):
        assert str(caught.value).endswith("; give it more time, timeout=")


@every_way
def test_a_server_that_reads_nothing_is_left_after_the_write_timeout(way: str) -> None:
    left = threading.Event()
    with scripted(lambda connection: left.wait(60) and None) as server:
        with (
            asker(way, server.url, httpx.Timeout(30, write=0.05)) as one,
            pytest.raises(FAILURES) as caught,
        ):
            one.ask("POST", [bytes(30 * MEGABYTE)])
        left.set()
    assert isinstance(cause(caught.value), httpx.WriteTimeout)


@every_way
def test_where_nobody_listens_no_connection_is_made(way: str, where: Path | None) -> None:
    if where and way.startswith("stock"):
        pytest.skip("httpx leaves a socket behind")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"unix:{where}" if where else f"http://127.0.0.1:{taken.getsockname()[1]}"
        with asker(way, url) as one, pytest.raises(FAILURES) as caught:
            one.ask()
    assert isinstance(cause(caught.value), httpx.ConnectError)


@own_ways
def test_where_nobody_takes_callers_the_connect_timeout_ends_the_wait(way: str, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as before:
        listener.bind(path)
        listener.listen(0)
        before.connect(path)  # the queue is full
        with (
            asker(way, f"unix:{path}", httpx.Timeout(30, connect=0.05)) as one,
            pytest.raises(FAILURES) as caught,
        ):
            one.ask()
    assert isinstance(cause(caught.value), httpx.ConnectTimeout)
    assert "no connection within 0.05 s" in str(cause(caught.value))


def test_the_system_may_give_up_before_the_caller_does() -> None:
    with pytest.raises(httpx.ConnectTimeout, match=r"^no connection$"), connecting(None):
        raise TimeoutError


def test_calls_beyond_the_limit_wait_for_a_connection_and_no_longer_than_they_may() -> None:
    begun, done = threading.Event(), threading.Event()

    def held(connection: socket.socket) -> None:
        read_request(connection)
        begun.set()
        done.wait(60)
        connection.sendall(plain(b"at last"))

    limits = httpx.Limits(max_connections=1)
    timeout = httpx.Timeout(30, pool=0.05)

    async def ask_twice(url: str) -> None:
        async with httpx.AsyncClient(transport=NonblockingTransport(limits=limits), timeout=timeout) as http:
            first = asyncio.create_task(http.get(url))
            await asyncio.to_thread(begun.wait, 60)
            with pytest.raises(httpx.PoolTimeout):
                await http.get(url)
            done.set()
            assert (await first).content == b"at last"

    with scripted(held) as server, ThreadPoolExecutor(1) as threads:
        with httpx.Client(transport=BlockingTransport(limits=limits), timeout=timeout) as http:
            first = threads.submit(http.get, server.url)
            begun.wait(60)
            with pytest.raises(httpx.PoolTimeout):
                http.get(server.url)
            done.set()
            assert first.result().content == b"at last"
        begun.clear()
        done.clear()
        asyncio.run(ask_twice(server.url))


@pytest.mark.parametrize("way", [way for way in WAYS if " " in way])
def test_a_cancelled_call_closes_its_connection(way: str, where: Path | None) -> None:
    begun, closed = threading.Event(), threading.Event()

    def silent(connection: socket.socket) -> None:
        read_request(connection)
        begun.set()
        if connection.recv(1) == b"":
            closed.set()

    async def cancelled() -> None:
        task = asyncio.create_task(one.asked("GET", None))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with scripted(silent, says(plain(b"next")), path=where) as server, asker(way, server.url) as one:
        assert one.runner is not None
        one.runner.run(cancelled())
        assert closed.wait(60)
        assert bytes(one.ask().body) == b"next"


def echo(connection: socket.socket) -> None:
    while True:
        head, body = read_request(connection)
        if not head:
            return
        connection.sendall(plain(body))


@pytest.mark.parametrize("way", ["own", "direct", "stock"])
def test_threads_share_a_transport_and_each_gets_its_own_answer(way: str) -> None:
    with scripted(echo) as server, asker(way, server.url) as one, ThreadPoolExecutor(8) as threads:
        bodies = [bytes([number % 256]) * (1 + 997 * number) for number in range(200)]
        found = list(threads.map(lambda body: bytes(one.ask("POST", [body]).body), bodies))
        assert found == bodies
        assert server.connections <= 8


@pytest.mark.parametrize("way", [way for way in WAYS if " " in way])
def test_tasks_share_a_transport_and_each_gets_its_own_answer(way: str) -> None:
    async def all_at_once() -> list[bytes]:
        answers = await asyncio.gather(*(one.asked("POST", [body]) for body in bodies))
        return [bytes(answer.body) for answer in answers]

    bodies = [bytes([number % 256]) * (1 + 997 * number) for number in range(60)]
    with scripted(echo) as server, asker(way, server.url) as one:
        assert one.runner is not None
        assert one.runner.run(all_at_once()) == bodies


def test_connections_are_not_shared_with_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(says(plain(b"ok"))) as server, asker("direct", server.url) as one:
        one.ask()
        monkeypatch.setattr("os.getpid", lambda: -1)
        one.ask()
        assert server.connections == 2


def test_an_asynchronous_client_goes_from_one_loop_to_the_next() -> None:
    with scripted(says(plain(b'{"models": []}', headers=b"Content-Type: application/json\r\n"))) as server:
        client = nablad.AsyncClient(server.url)
        for _ in range(3):
            assert asyncio.run(client.models()) == []
        asyncio.run(client.aclose())
        assert server.connections == 1


# -- addresses


@pytest.mark.parametrize("url", ["unix:", "unix:" + "a" * 200])
@pytest.mark.parametrize("kind", [nablad.Client, nablad.AsyncClient])
def test_a_unix_socket_needs_a_path_that_fits(kind: Callable[[str], object], url: str) -> None:
    with pytest.raises(ValueError, match="Unix socket"):
        kind(url)


@pytest.mark.parametrize(
    ("url", "path"),
    [("unix:/tmp/a", "/tmp/a"), ("unix:///tmp/a", "/tmp/a"), ("unix:a/b", "a/b")],
)
def test_unix_addresses_are_written_in_several_ways(url: str, path: str) -> None:
    found = nablad.transports.address(url)
    assert found is not None
    assert found.path == path


@pytest.mark.parametrize("url", ["https://a", "http://me:secret@a", "http://a?b=c"])
def test_what_the_own_transport_does_not_do_is_left_to_httpx(url: str) -> None:
    assert nablad.transports.address(url) is None


def test_a_proxy_of_the_environment_is_left_to_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    assert nablad.transports.address("http://outside.example") is None
    assert nablad.transports.address("http://inside.example") is not None


def test_a_prefix_of_the_url_goes_before_every_path() -> None:
    def script(connection: socket.socket) -> None:
        head, _ = read_head(connection)
        assert head.startswith(b"GET /behind/a%20proxy/v1/models HTTP/1.1\r\n")
        connection.sendall(plain(b'{"models": []}', headers=b"Content-Type: application/json\r\n"))

    with scripted(script) as server, nablad.Client(f"{server.url}/behind/a proxy/") as client:
        assert client.models() == []
