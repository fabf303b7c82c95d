"""`nablad serve`: its options."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from pydantic import ValidationError

from nablad_service.settings import Settings

METAVARS = {
    "repository": "DIR",
    "checkpoints": "DIR",
    "models": "FILE",
    "uds": "PATH",
    "shared_memory": "BOOL",
}


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
    begin_with_large_pages()
    # JAX takes a second to import, which other commands need not wait for.
    from nablad_service.serving import serve

    return serve(settings)


def begin_with_large_pages() -> None:
    """Begin this process anew with arrays on large pages, where that is the allocator's to choose.

    XLA takes fresh memory for what a program returns: a hundred megabytes are 25,000 pages of the usual size,
    each of which interrupts. glibc reads the wish for larger ones when a process begins, and never again.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
