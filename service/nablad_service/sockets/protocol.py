"""uvicorn's protocol with one extension of ASGI: a large body is received where the application wants it.

Stock uvicorn hands a body over in pieces, copied four times on their way. Here the application names a block
of memory, and the socket is read into that. It leans on the insides of uvicorn's httptools protocol, so the
stock protocol remains (`--protocol stock`), and the application asks whether the extension is there.
"""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nablad.frame import Buffer
from nablad_service.sockets.receiving import OPEN, RECEIVE_INTO

SMALL = 64 * 1024
"""Bytes that are joined to be written at once."""
LENGTH = b"\r\ncontent-length: "


class ReceivingProtocol(HttpToolsProtocol):
    """uvicorn's protocol for httptools, which offers `RECEIVE_INTO` to the application."""

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        # A pipelined request waits for the one before it: its body comes in the usual way.
        if self.cycle is not before and (before is None or before.response_complete):
            if self.scope["method"] != "HEAD":
                self.cycle.transport = HeadWithBody(self.transport)  # type: ignore[assignment] # all that it uses
            self.scope["extensions"] = {RECEIVE_INTO: self._receive_into, OPEN: self.tasks}  # type: ignore[dict-item] # no dicts

    async def _receive_into(self, block: memoryview) -> int:
        # While a body is incomplete no other request can have begun: it is this one's.
        cycle = self.cycle
        if cycle.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        here = len(cycle.body)
        block[:here] = cycle.body
        cycle.body = bytearray()
        if not cycle.more_body or cycle.disconnected:
            return here
        filling = Filling(self, block[here:])
        # uvloop looks at the kind of a protocol only where reading begins.
        self.transport.pause_reading()
        self.transport.set_protocol(filling)
        self.transport.resume_reading()
        self.flow.read_paused = False
        try:
            return here + await filling.filled
        except asyncio.CancelledError:
            # Half a body cannot be skipped: nothing else could be read from this connection.
            self.transport.close()
            raise

    def filled(self) -> None:
        """The body is there: what follows on the connection is another request."""
        self.transport.pause_reading()
        self.transport.set_protocol(self)
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn does: an answer to one request though another follows it.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.cycle.more_body = False
        # Whoever receives from now on waits for the connection's end, not for a body.
        self.cycle.message_event.clear()
        self.transport.resume_reading()


class HeadWithBody:
    """The transport of an answer: its head goes out with the beginning of its body, in one segment.

    uvicorn writes them one by one; the caller would be woken for the head, and wait once more for the body.
    An answer of unknown length is a stream, whose body may be long in coming: its head does not wait for it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = b""
        """Empty before the head comes, None when it has gone."""
        self.is_closing = transport.is_closing

    def write(self, data: Buffer) -> None:
        """Write, or hold back the head."""
        if self._head is None:
            self._transport.write(data)
        elif not self._head:
            self._head = bytes(data)
            if LENGTH not in self._head:
                self._flush()
        elif len(data) <= SMALL:
            head, self._head = self._head, None
            self._transport.write(head + data)
        else:
            self._flush()
            self._transport.write(data)

    def close(self) -> None:
        """Close when everything is written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = None


class Filling(asyncio.BufferedProtocol):
    """The protocol of a connection while a body comes in: fills a block and nothing else."""

    def __init__(self, protocol: ReceivingProtocol, block: memoryview) -> None:
        self._protocol = protocol
        self._block = block
        self._end = 0
        self.filled: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Settled with the number of bytes when all are there, or the connection is not."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._block[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        if self._end == len(self._block):
            self._protocol.filled()
            self._settle()

    def eof_received(self) -> None:
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _settle(self) -> None:
        # uvloop remembers this protocol for as long as the connection; the block must go sooner.
        self._block = memoryview(bytearray())
        if not self.filled.done():
            self.filled.set_result(self._end)
