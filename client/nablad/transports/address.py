"""Where a server listens: `http://host:port/prefix` or `unix:/path`."""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

UNIX = "unix:"
FORMS = "write http://HOST:PORT, https://HOST or unix:/PATH"
AGAIN = 0.005
"""Seconds until another try, where a Unix socket's queue of callers is full."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, taken apart."""

    url: str
    """As it was given."""
    host: str
    """The value of `Host`."""
    prefix: str
    """What every path begins with, without the last slash."""
    place: tuple[str, int] | str
    """Host and port, or the path of a Unix socket."""

    @property
    def path(self) -> str | None:
        """The path of the Unix socket, where it is one."""
        return self.place if isinstance(self.place, str) else None


def address(url: str) -> Address | None:
    """The address in a URL; None where only httpx's own transport will do.

    That is for https, for user names in the URL, and where the environment names a proxy for it.

    Raises:
        ValueError: it is no URL of the kind, or a Unix socket's path is missing or too long.
    """
    if url.startswith(UNIX):
        path = url.removeprefix(UNIX)
        if path.startswith("//"):
            path = "/" + path.lstrip("/")
        longest = 107 if sys.platform == "linux" else 103
        if not path or len(os.fsencode(path)) > longest:
            raise ValueError(f"{url!r} names no Unix socket: its path has 1 to {longest} bytes")
        return Address(url, "localhost", "", path)
    try:
        given = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address: {error}; {FORMS}") from None
    if given.scheme not in ("http", "https") or not given.host:
        raise ValueError(f"{url!r} is no address; {FORMS}")
    if given.scheme != "http" or given.userinfo or given.query or proxied(given.host):
        return None
    host = given.raw_host.decode("ascii")
    shown = given.netloc.decode("ascii")
    return Address(url, shown, given.raw_path.decode("ascii").rstrip("/"), (host, given.port or 80))


def proxied(host: str) -> bool:
    """Whether the environment names a proxy for plain HTTP to `host`."""
    named = urllib.request.getproxies()
    return bool(named.get("http") or named.get("all")) and not urllib.request.proxy_bypass(host)


@contextmanager
def connecting(seconds: float | None) -> Iterator[None]:
    """Turns what goes wrong on the way to a connection into httpx's exceptions.

    Raises:
        httpx.ConnectError: nothing listens there, or the host has no address.
        httpx.ConnectTimeout: it took longer than `seconds`, or than the system waits.
    """
    try:
        yield
    except TimeoutError as error:
        within = "" if seconds is None else f" within {seconds:g} s"
        raise httpx.ConnectTimeout(f"no connection{within}") from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error


def connected(place: tuple[str, int] | str, seconds: float | None) -> socket.socket:
    """A connected non-blocking socket.

    Raises:
        httpx.TransportError: as `connecting` does.
    """
    with connecting(seconds):
        if isinstance(place, str):
            return connected_unix(place, seconds)
        sock = socket.create_connection(place, seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock


def connected_unix(path: str, seconds: float | None) -> socket.socket:
    """A connected non-blocking Unix socket; waits while the server's queue is full."""
    end = None if seconds is None else time.monotonic() + seconds
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                if end is not None and time.monotonic() > end:
                    raise TimeoutError from None
                time.sleep(AGAIN)
    except BaseException:
        sock.close()
        raise
