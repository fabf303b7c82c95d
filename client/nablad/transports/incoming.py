"""An answer as it comes in, without the socket: where the next bytes go, and when all are there.

The plain answer, HTTP/1.1 with one `Content-Length`, is read here, its body into one block of that length.
Whatever is not plain (chunks, no length, interim answers, anything odd) is left to h11 from its first byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import h11
import httpx

from nablad.blocks import Blocks
from nablad.frame import Buffer

Headers: TypeAlias = "Sequence[tuple[bytes, bytes]]"

ROOM = 64 * 1024
"""Bytes for the head of an answer, and for the whole of a small one."""
STATUS = re.compile(rb"HTTP/1\.1 ([2-5]\d\d)(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00-\x08\x0a-\x1f\x7f]*)")
WITHOUT_BODY = (204, 304)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: status, headers (names in lower case), and the body where it was received."""

    status: int
    headers: Headers
    body: Buffer

    def header(self, name: bytes) -> str | None:
        """The first header of that name (in lower case), if there is one."""
        for one, value in self.headers:
            if one == name:
                return value.decode("latin-1")
        return None

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        """An answer that httpx has read."""
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        body: Buffer | None = response.extensions.get("body")
        if body is None or "content-encoding" in response.headers:
            # httpx has taken the coding off.
            headers = [header for header in headers if header[0] != b"content-encoding"]
            body = response.content
        return cls(response.status_code, headers, body)


class Incoming:
    """One answer: fill `room()` from the socket, tell `came` how many bytes, until it says that is all."""

    def __init__(self, method: str, scratch: memoryview, blocks: Blocks) -> None:
        self._blocks = blocks
        self._method = method
        self._scratch = scratch
        self._end = 0
        self._status = 0
        self._headers: Headers = ()
        self._body: memoryview | bytearray | None = None
        self._odd: h11.Connection | None = None
        self._chunks: list[bytes] = []
        self.reusable = False
        """Whether the connection may carry another exchange, once the answer is complete."""

    @property
    def begun(self) -> bool:
        """Whether anything came."""
        return bool(self._end)

    @property
    def status(self) -> int:
        """The status, once the head is there; 0 before."""
        return self._status

    def room(self) -> memoryview:
        """Where the next bytes belong."""
        if self._odd is not None:
            return self._scratch
        if self._body is not None:
            return self._body[self._end :]  # type: ignore[return-value] # a block: small bodies come whole
        return self._scratch[self._end :]

    def came(self, count: int) -> bool:
        """Take note of `count` bytes in `room()`, 0 for the end of the connection; true when all are there.

        Raises:
            httpx.RemoteProtocolError: what came is no answer, or it ended early.
        """
        if self._odd is not None:
            return self._take_odd(bytes(self._scratch[:count]))
        if not count:
            raise httpx.RemoteProtocolError("the server closed the connection in the middle of its answer")
        self._end += count
        if self._body is not None:
            return self._end == len(self._body)
        return self._take_head()

    def answer(self) -> Answer:
        """The answer, when it is complete."""
        body = b"".join(self._chunks) if self._body is None else self._body
        return Answer(self._status, self._headers, memoryview(body))

    def _take_head(self) -> bool:
        data = bytes(self._scratch[: self._end])
        close = data.find(b"\r\n\r\n")
        if close < 0:
            if len(data) < len(self._scratch):
                return False
            raise httpx.RemoteProtocolError(f"the head of the answer has more than {len(data)} bytes")
        length = self._plain(data[:close])
        if length is None:
            self._odd = h11.Connection(h11.CLIENT)
            self._odd.send(h11.Request(method=self._method, target="/", headers=[("Host", "nablad")]))
            self._odd.send(h11.EndOfMessage())
            return self._take_odd(data)
        start = close + 4
        if len(data) - start >= length:
            # More than that was not asked for: what follows on this connection could not be trusted.
            self.reusable = self.reusable and len(data) - start == length
            self._body = bytearray(data[start : start + length])
            return True
        self._body = self._blocks.lend(length)
        self._body[: len(data) - start] = self._scratch[start : self._end]
        self._end = len(data) - start
        return False

    def _plain(self, head: bytes) -> int | None:
        """The length of the body, if the answer is plain."""
        first, *lines = head.split(b"\r\n")
        status = STATUS.fullmatch(first)
        if status is None or self._method == "HEAD" or int(status[1]) in WITHOUT_BODY:
            return None
        headers = []
        length = None
        reusable = True
        for line in lines:
            header = HEADER.fullmatch(line)
            if header is None:
                return None
            name, value = header[1].lower(), header[2].strip(b" \t")
            headers.append((name, value))
            if name == b"content-length":
                if length is not None or not value.isdigit() or len(value) > 18:
                    return None
                length = int(value)
            elif name == b"transfer-encoding":
                return None
            elif name == b"connection":
                reusable = value.lower() == b"keep-alive"
        if length is not None:
            self._status, self._headers, self.reusable = int(status[1]), headers, reusable
        return length

    def _take_odd(self, data: bytes) -> bool:
        odd = self._odd
        assert odd is not None
        try:
            odd.receive_data(data)
            while True:
                event = odd.next_event()
                if isinstance(event, h11.Response):
                    self._status, self._headers = event.status_code, list(event.headers)
                elif isinstance(event, h11.Data):
                    self._chunks.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    done = odd.our_state is h11.DONE and odd.their_state is h11.DONE
                    self.reusable = done and not odd.trailing_data[0]
                    return True
                elif event is h11.NEED_DATA:
                    return False
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error
