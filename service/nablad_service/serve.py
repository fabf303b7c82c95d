"""`nablad serve`: the server as a process."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError

from nablad_service.app import create_app
from nablad_service.hosting.repository import Repository
from nablad_service.settings import Settings

METAVARS = {"repository": "DIR", "models": "FILE"}


def add_command(subparsers: Any) -> None:
    """Register `serve` with the command line; every setting is an option."""
    parser = subparsers.add_parser(
        "serve",
        help="run the server",
        description="Run the server. Every option is also an environment variable, NABLAD_HOST and so on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, field in Settings.model_fields.items():
        repeated = isinstance(field.default, tuple)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            type=field.annotation if field.annotation in (int, float) else str,
            action="append" if repeated else "store",
            metavar=METAVARS.get(name, name.split("_")[-1].upper()),
            help=f"{field.description} (default: {shown(field.default)})",
        )
    parser.set_defaults(run=run)


def shown(default: Any) -> str:
    """A setting's default in words."""
    return "none" if default in (None, ()) else str(default)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop; the process ends with 0 after a clean stop."""
    given = {name: value for name, value in vars(arguments).items() if name in Settings.model_fields}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        print(f"nablad serve: {fault['loc'][0]}: {fault['msg']}", file=sys.stderr)
        return 2
    logging.getLogger("jax").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        repository = Repository.open(Path(settings.repository)) if settings.repository else None
    except OSError as error:
        print(f"nablad serve: {unusable(settings.repository, error)}", file=sys.stderr)
        return 4
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        print(
            f"nablad serve: cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            "choose another --port, or 0 for a free one",
            file=sys.stderr,
        )
        return 1
    port = listener.getsockname()[1]
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"nablad listens on http://{shown}:{port} (docs at /docs, stop with Ctrl-C)", flush=True)
    config = uvicorn.Config(
        create_app(settings, repository=repository),
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
        # Longer than httpx keeps idle connections, or the two would race for the last word.
        timeout_keep_alive=75,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal that stopped it once more when it is done; a clean stop is no failure.
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])
    # Work on the device cannot be interrupted, and Python would wait for its thread: the calls have had
    # their drain time, so leave.
    sys.stdout.flush()
    logging.shutdown()
    os._exit(0)


def unusable(folder: str | None, error: OSError) -> str:
    """Why a repository cannot be opened, and what to try."""
    if isinstance(error, BlockingIOError):
        return (
            f"another server has the repository {folder} ({error.strerror}); stop it, "
            "or choose another --repository: each server needs one of its own"
        )
    what = error.strerror or str(error)
    return f"the repository {folder} cannot be used: {what}; choose another --repository"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: its port is known and callers wait in line before the application starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener
