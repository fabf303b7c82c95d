"""Idle connections, kept for the next exchange."""

from __future__ import annotations

import os
import select
import socket
import time
from dataclasses import dataclass, field

import httpx

from nablad.transports.incoming import ROOM

# Shorter than the 75 s for which `nablad serve` keeps a connection: who closes first is not left to chance.
DEFAULT_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=60.0)


@dataclass(eq=False, slots=True)
class Connection:
    """A connected non-blocking socket, and room for the heads of answers."""

    socket: socket.socket
    used: bool = False
    """Whether it carried an exchange before: then the server may have closed it by now."""
    idle_since: float = 0.0
    prompt: bool = False
    """Whether its last answer came within the time for which it may be polled."""
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(ROOM)))

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class Idle:
    """The idle connections of a transport; the one used last is taken first. Not safe for threads."""

    def __init__(self, limits: httpx.Limits) -> None:
        kept = limits.max_keepalive_connections
        self._most = kept if kept is not None else 2**31
        self._expiry = limits.keepalive_expiry
        self._connections: list[Connection] = []
        self._process = os.getpid()

    def take(self) -> Connection | None:
        """A connection that still stands, if there is one."""
        if self._process != os.getpid():
            # After a fork the connections are the parent's, whom this does not close them for.
            self.close()
            self._process = os.getpid()
        while self._connections:
            connection = self._connections.pop()
            late = self._expiry is not None and time.monotonic() - connection.idle_since > self._expiry
            if not late and not _readable(connection.socket):
                return connection
            connection.close()
        return None

    def put(self, connection: Connection) -> None:
        """Keep a connection for the next exchange."""
        connection.used = True
        connection.idle_since = time.monotonic()
        self._connections.append(connection)
        if len(self._connections) > self._most:
            self._connections.pop(0).close()

    def close(self) -> None:
        """Close all of them."""
        while self._connections:
            self._connections.pop().close()


class IdleByPlace:
    """The idle connections of a transport to all its places. Not safe for threads."""

    def __init__(self, limits: httpx.Limits) -> None:
        self._limits = limits
        self._idle: dict[tuple[str, int] | str, Idle] = {}

    def at(self, place: tuple[str, int] | str) -> Idle:
        """Those to one place."""
        found = self._idle.get(place)
        if found is None:
            found = self._idle[place] = Idle(self._limits)
        return found

    def close(self) -> None:
        """Close all of them."""
        for idle in self._idle.values():
            idle.close()


def _readable(sock: socket.socket) -> bool:
    """Whether an idle connection has something to say: it was closed, or says what nobody asked for."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))
