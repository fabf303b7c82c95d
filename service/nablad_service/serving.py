"""The server as a process: it listens, serves until told to stop, and ends cleanly."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI

from nablad.shared_memory import SUFFIX
from nablad_service.app import create_app
from nablad_service.engine.dispatch import run_where_called
from nablad_service.hosting.repository import Repository
from nablad_service.settings import Settings
from nablad_service.sockets.listening import listen_tcp, listen_unix
from nablad_service.training.saves import Saves

T = TypeVar("T")


def serve(settings: Settings) -> int:
    """Serve until told to stop, and end the process with 0; returns another code where it cannot begin."""
    run_where_called()
    logging.getLogger("jax").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        repository = opened(settings.repository, Repository.open, "repository")
        saves = opened(
            settings.checkpoints, lambda folder: Saves(folder, keep=settings.saves_kept), "checkpoints"
        )
    except CannotOpen as error:
        print(f"nablad serve: {error}", file=sys.stderr)
        return 4
    with ExitStack() as stack:
        try:
            listeners = listen(settings, stack)
            memory = listen_for_memory(settings, stack)
        except CannotListen as error:
            print(f"nablad serve: {error}", file=sys.stderr)
            return 1
        print(announced(listeners), flush=True)
        app = create_app(settings, repository=repository, saves=saves, memory=memory)
        config = uvicorn.Config(
            app,
            log_level="warning",
            http=protocol(settings),
            # Nothing here asks who called, nor is every call logged; uvicorn would find out for each.
            proxy_headers=False,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
            # Longer than clients keep idle connections, or the two would race for the last word.
            timeout_keep_alive=75,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises the signal that stopped it once more when it is done; a clean stop is no failure.
            signal.signal(number, lambda *_: None)
        Server(config, app).run(sockets=listeners)
    # Work on the device cannot be interrupted, and Python would wait for its thread: the calls have had
    # their drain time, so leave.
    sys.stdout.flush()
    logging.shutdown()
    os._exit(0)


class Server(uvicorn.Server):
    """uvicorn's server, which has those end before it waits for calls that would not: loops, whose stream of
    events goes on, and calls of sessions that wait for others."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.sessions.stop_waiting()
        await self._app.state.runs.close()
        await super().shutdown(sockets)


def protocol(settings: Settings) -> Any:
    """The protocol class for uvicorn, or the name of its own choice."""
    if settings.protocol == "stock" or importlib.util.find_spec("httptools") is None:
        return "auto"
    from nablad_service.sockets.protocol import ReceivingProtocol

    return ReceivingProtocol


class CannotOpen(Exception):
    """A folder cannot be used; the message says why and what to try."""


def opened(folder: str | None, open_folder: Callable[[Path], T], setting: str) -> T | None:
    """What keeps the folder of a setting; None where none is named.

    Raises:
        CannotOpen: the folder cannot be used, or another server has it.
    """
    if folder is None:
        return None
    named = f"the {setting} {folder}"
    try:
        return open_folder(Path(folder))
    except BlockingIOError as error:
        hint = f"stop it, or choose another --{setting}: each server needs one of its own"
        raise CannotOpen(f"another server has {named} ({error.strerror}); {hint}") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise CannotOpen(f"{named} cannot be used: {why}; choose another --{setting}") from error


class CannotListen(Exception):
    """An address cannot be listened on; the message says why and what to try."""


def listen(settings: Settings, stack: ExitStack) -> list[socket.socket]:
    """The sockets that the settings ask for; `stack` closes them.

    Raises:
        CannotListen: an address is taken, or not ours to take.
    """
    listeners = []
    if settings.listens_on_port:
        host, port = settings.host, settings.port
        try:
            listeners.append(stack.enter_context(listen_tcp(host, port)))
        except OSError as error:
            hint = "choose another --port, or 0 for a free one"
            raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}; {hint}") from error
    if settings.uds:
        listeners.append(_listen_unix(settings, settings.uds, socket.SOCK_STREAM, stack))
    return listeners


def listen_for_memory(settings: Settings, stack: ExitStack) -> socket.socket | None:
    """The socket where callers hand shared memory over, beside the Unix socket; `stack` closes it."""
    if not settings.uds or not settings.shared_memory or sys.platform != "linux":
        return None
    return _listen_unix(settings, settings.uds + SUFFIX, socket.SOCK_SEQPACKET, stack)


def _listen_unix(settings: Settings, path: str, kind: int, stack: ExitStack) -> socket.socket:
    try:
        permissions = int(settings.uds_permissions, 8)
        return stack.enter_context(listen_unix(Path(path), permissions, kind)).socket
    except OSError as error:
        why = error.strerror or str(error)
        raise CannotListen(f"cannot listen on {path}: {why}; choose another --uds") from error


def announced(listeners: Sequence[socket.socket]) -> str:
    """The line that tells where the server listens."""
    urls = []
    for listener in listeners:
        name = listener.getsockname()
        if listener.family == socket.AF_UNIX:
            urls.append(f"unix:{name}")
        else:
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            urls.append(f"http://{host}:{name[1]}")
    return f"nablad listens on {' and '.join(urls)} (docs at /docs, stop with Ctrl-C)"
