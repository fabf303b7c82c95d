"""One exchange on a connected non-blocking socket, without the waiting.

A generator that yields what it waits for; a driver waits, blocking or not, and sends back what is ready.
Both drivers share everything but the `await`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, TypeAlias

import httpx

from nablad.blocks import Blocks
from nablad.transports.incoming import Answer, Incoming
from nablad.transports.outgoing import Outgoing
from nablad.transports.pool import Connection

READ = 1
WRITE = 2
AT_ONCE = 4 * 1024 * 1024
"""Bytes received before others have a turn."""


class Timeouts(NamedTuple):
    """Seconds for each phase, as httpx has them; None for ever."""

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None

    @classmethod
    def of(cls, timeout: httpx.Timeout) -> Timeouts:
        """The phases of an `httpx.Timeout`."""
        return cls(timeout.connect, timeout.read, timeout.write, timeout.pool)


class Wait(NamedTuple):
    """Wait for the socket: `READ`, `WRITE` or either, for so many seconds at most."""

    what: int
    seconds: float | None
    late: type[httpx.TimeoutException]


Waiting: TypeAlias = "Generator[Wait, int, None]"


class Unanswered(Exception):
    """The connection ended before anything of the answer came; `cause` says how."""

    def __init__(self, cause: httpx.TransportError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Exchange:
    """A request on its way and its answer, on a connection of its own for so long."""

    def __init__(self, connection: Connection, blocks: Blocks, method: str, timeouts: Timeouts) -> None:
        self._socket = connection.socket
        self._timeouts = timeouts
        self._incoming = Incoming(method, connection.scratch, blocks)
        self._complete = False
        self._refused = False
        """The server answered with an error before it had the whole request."""
        self._broken: OSError | None = None

    @property
    def over(self) -> bool:
        """Whether there is no use in sending more."""
        return self._refused or self._broken is not None

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another exchange."""
        return self._incoming.reusable and not self.over

    @property
    def answer(self) -> Answer:
        """The answer, after `receive`."""
        return self._incoming.answer()

    def send(self, outgoing: Outgoing) -> Waiting:
        """Send a part of the request; an error that the server answers meanwhile ends it."""
        watched = READ | WRITE
        while outgoing and not self.over:
            try:
                outgoing.sent(self._socket.sendmsg(outgoing.window()))
            except BlockingIOError:
                ready = yield Wait(watched, self._timeouts.write, httpx.WriteTimeout)
                if ready & READ:
                    self._look()
                    watched = WRITE if self._incoming.status else watched
            except OSError as error:
                # The server may have answered before it closed: that says more than a broken pipe.
                self._broken = error

    def _look(self) -> None:
        """See what the server says before it has everything."""
        try:
            count = self._socket.recv_into(self._incoming.room())
            if count:
                self._complete = self._incoming.came(count)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken = error
            return
        self._refused = not count or self._incoming.status >= 400

    def receive(self) -> Waiting:
        """Receive the answer.

        Raises:
            Unanswered: the connection ended before anything came.
            httpx.TransportError: it ended, or broke off, in the middle.
        """
        incoming = self._incoming
        # An answer takes its time: looking for it at once would be in vain.
        if not self._complete and self._broken is None:
            yield Wait(READ, self._timeouts.read, httpx.ReadTimeout)
        while not self._complete:
            try:
                count = self._socket.recv_into(incoming.room()[:AT_ONCE])
            except BlockingIOError:
                yield Wait(READ, self._timeouts.read, httpx.ReadTimeout)
                continue
            except OSError as error:
                if incoming.begun:
                    raise httpx.ReadError(str(error)) from error
                raise Unanswered(self._failure(error)) from error
            if not count and not incoming.begun:
                raise Unanswered(self._failure(None))
            self._complete = incoming.came(count)

    def _failure(self, error: OSError | None) -> httpx.TransportError:
        if self._broken is not None:
            return httpx.WriteError(
                f"the server closed the connection while it was written to: {self._broken}"
            )
        if error is not None:
            return httpx.ReadError(str(error))
        return httpx.RemoteProtocolError("the server closed the connection without an answer")
