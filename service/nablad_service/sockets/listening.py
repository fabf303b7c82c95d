"""Sockets that the server listens on: a port, a Unix socket, or both."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

WAITING = 2048
"""Callers that may wait in line before the application starts."""


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening socket: its port is known and callers wait in line before the application starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(WAITING)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


@dataclass(frozen=True)
class UnixListener:
    """A listening Unix socket and its file, which goes with it: use it in a `with`."""

    socket: socket.socket
    path: Path
    inode: int

    def __enter__(self) -> UnixListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket and remove its file, unless another server has put its own there."""
        self.socket.close()
        try:
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()
        except FileNotFoundError:
            pass


def listen_unix(path: Path, permissions: int, kind: int = socket.SOCK_STREAM) -> UnixListener:
    """A listening Unix socket; the file that a killed server left behind is replaced.

    Raises:
        OSError: the file is no socket, another server listens there, or the folder does not let us.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    # Nobody may connect before the permissions are set.
    mask = os.umask(0o777 & ~permissions)
    try:
        _clear(path, kind)
        listener.bind(str(path))
        path.chmod(permissions)
        listener.listen(WAITING)
        return UnixListener(listener, path, path.lstat().st_ino)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)


def _clear(path: Path, kind: int) -> None:
    """Remove a socket's file that nobody listens on."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(None, "there is a file of that name, and it is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind) as caller:
        caller.setblocking(False)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:  # listening, but busy or of another kind
            pass
    raise FileExistsError(None, "another server listens there")
