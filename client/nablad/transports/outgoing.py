"""What goes out, without the socket: the head of a request, and buffers as they lie."""

from __future__ import annotations

import re
from collections.abc import Iterable

import httpx

from nablad.frame import Buffer

AT_ONCE = 1024
"""Buffers that one system call takes (`IOV_MAX`)."""
FORBIDDEN = re.compile(rb"[\x00\r\n]")


class Outgoing:
    """Buffers on their way: `window()` is what to send next, `sent` says how many bytes of it went."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self._views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        self._first = 0

    def __bool__(self) -> bool:
        return self._first < len(self._views)

    def window(self) -> list[memoryview]:
        """The next buffers, as many as go at once."""
        return self._views[self._first : self._first + AT_ONCE]

    def sent(self, count: int) -> None:
        """Leave `count` bytes behind."""
        while count:
            view = self._views[self._first]
            if count < len(view):
                self._views[self._first] = view[count:]
                return
            count -= len(view)
            self._first += 1


def head(method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request.

    Raises:
        httpx.LocalProtocolError: a name or value would break out of its line.
    """
    lines = [method.encode("ascii") + b" " + target + b" HTTP/1.1"]
    for name, value in headers:
        if FORBIDDEN.search(name) or FORBIDDEN.search(value):
            raise httpx.LocalProtocolError(f"the header {name!r} has a line break or a zero in it")
        lines.append(name + b": " + value)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def in_chunks(piece: Buffer) -> list[Buffer]:
    """A piece of a body without `Content-Length`, framed as a chunk; an empty piece would end the body."""
    return [b"%x\r\n" % len(piece), piece, b"\r\n"] if len(piece) else []
