"""A server that does what a test says, connection by connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Script: TypeAlias = Callable[[socket.socket], None]


class Scripted:
    """A listening socket; every connection follows the next script, the last script all that come after."""

    def __init__(self, scripts: tuple[Script, ...], path: Path | None) -> None:
        self._scripts = scripts
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
            self.url = f"unix:{path}"
        self.connections = 0
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            thread = threading.Thread(target=self._follow, args=(script, connection))
            self._threads.append(thread)
            thread.start()

    def _follow(self, script: Script, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            try:
                script(connection)
            except (BrokenPipeError, ConnectionResetError):
                pass
            except BaseException as error:
                self.failures.append(error)

    def close(self) -> None:
        """Wait for the scripts; what went wrong in one is raised here."""
        # Closing alone does not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for failure in self.failures:
            raise failure


@contextmanager
def scripted(*scripts: Script, path: Path | None = None) -> Iterator[Scripted]:
    """A scripted server for the length of a `with`, on a Unix socket where a `path` is given."""
    server = Scripted(scripts, path)
    try:
        yield server
    finally:
        server.close()


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """A request's head, and what came of its body with it; both empty where the connection ended."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b"", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def read_request(connection: socket.socket, at_once: int = 1 << 20) -> tuple[bytes, bytes]:
    """A request's head and its body of announced length."""
    head, body = read_head(connection)
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    received = bytearray(body)
    while head and len(received) < length:
        more = connection.recv(min(at_once, length - len(received)))
        if not more:
            raise ConnectionResetError
        received += more
    return head, bytes(received)


def says(answer: bytes, times: int = 1 << 30) -> Script:
    """A script that gives the same answer to every request."""

    def script(connection: socket.socket) -> None:
        for _ in range(times):
            head, _ = read_request(connection)
            if not head:
                return
            connection.sendall(answer)

    return script


def plain(body: bytes, status: str = "200 OK", headers: bytes = b"") -> bytes:
    """An answer with its length."""
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status.encode(), headers, len(body), body)
