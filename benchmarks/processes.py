"""Servers as processes of their own, plain sockets to them, and what the client would send."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

import nablad

PATIENCE = 120.0
"""Seconds that a process may take until it is ready."""


class Process:
    """A program for the length of a `with`; `first` is the first line that it printed."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        self.started = time.perf_counter()
        self._running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env
        )
        # A process that says nothing must not be waited for without end.
        watch = threading.Timer(PATIENCE, self._running.kill)
        watch.start()
        try:
            self.first = self.line()
        finally:
            watch.cancel()
        if not self.first:
            self.close()
            raise RuntimeError(f"{' '.join(command)} did not start; what it says is above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._running.pid

    def line(self) -> str:
        """The next line that it prints."""
        assert self._running.stdout is not None
        return self._running.stdout.readline().strip()

    def ask(self, line: str) -> str:
        """Send it a line; its answer is the next line that it prints.

        Raises:
            RuntimeError: where it ends instead.
        """
        assert self._running.stdin is not None
        self._running.stdin.write(f"{line}\n")
        self._running.stdin.flush()
        if not (answer := self.line()):
            raise RuntimeError(f"{self._running.args!r} ended instead of answering {line!r}")
        return answer

    def close(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        self._running.send_signal(number)
        try:
            self._running.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        for stream in (self._running.stdin, self._running.stdout):
            if stream is not None:
                stream.close()


class Server(Process):
    """`nablad serve` on a free port, ready when this returns; programs are tuned only where asked for."""

    def __init__(self, *, env: Mapping[str, str] | None = None, **settings: object) -> None:
        where = {} if "uds" in settings else {"port": 0}
        given = {"tune_after_calls": 0, **where, **settings}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        super().__init__([sys.executable, "-m", "nablad", "serve", *options], env=env)
        self.listens_after = time.perf_counter() - self.started
        try:
            found = re.search(r"(?:http://|unix:)\S+", self.first)
            if not found:
                raise RuntimeError(f"the server did not say where it listens: {self.first!r}")
            self.url = found.group()
            wait_until_ready(self.url, "/health/ready")
        except BaseException:
            self.close()
            raise
        self.ready_after = time.perf_counter() - self.started


def wait_until_ready(url: str, path: str) -> None:
    """Ask until the answer is 200.

    Raises:
        TimeoutError: where it never is.
    """
    until = time.monotonic() + PATIENCE
    unix = url.removeprefix("unix:") if url.startswith("unix:") else None
    with httpx.Client(
        base_url="http://nablad" if unix else url, transport=httpx.HTTPTransport(uds=unix), timeout=PATIENCE
    ) as client:
        while time.monotonic() < until:
            try:
                if client.get(path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.005)
    raise TimeoutError(f"{url} was not ready within {PATIENCE:g} s")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class Sent:
    """A request as bytes."""

    head: bytes
    body: bytes

    @classmethod
    def by(cls, ask: Callable[[nablad.Client], object], **options: Any) -> Sent:
        """What `Client` would send for a call."""
        caught: list[Sent] = []

        def handler(request: httpx.Request) -> httpx.Response:
            body = b"".join(request.stream)
            lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in request.headers.items()]
            caught.append(cls("\r\n".join([*lines, "", ""]).encode(), body))
            raise _Caught

        with nablad.Client(transport=httpx.MockTransport(handler), **options) as client:
            try:
                ask(client)
            except _Caught:
                return caught[0]
        raise RuntimeError("the call sent nothing")


class _Caught(Exception):
    """Nobody answers: the request was all that was wanted."""


class Connection:
    """A kept connection over a plain socket: the least that an HTTP client can do."""

    def __init__(self, url: str, largest: int = 1 << 20) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = memoryview(bytearray(largest))

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def exchange(self, sent: Sent) -> memoryview:
        """Send a request; the body of its answer, valid until the next one.

        Raises:
            RuntimeError: where the answer is not a 200.
        """
        self._socket.sendmsg([sent.head, sent.body])
        filled, end = 0, -1
        while end < 0:
            filled += self._more(filled)
            end = bytes(self._room[:filled]).find(b"\r\n\r\n")
        head = bytes(self._room[:end]).lower()
        length = int(re.search(rb"content-length: *(\d+)", head)[1])  # type: ignore[index] # a broken server
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(head.decode())
        whole = end + 4 + length
        while filled < whole:
            filled += self._more(filled)
        return self._room[end + 4 : whole]

    def _more(self, filled: int) -> int:
        count = self._socket.recv_into(self._room[filled:])
        if count == 0:
            raise RuntimeError("the server closed the connection")
        return count
