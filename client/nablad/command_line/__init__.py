"""`nablad`: the command line. Commands of other packages join through the entry points `nablad.commands`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from nablad._version import __version__
from nablad.command_line import gradient, models, operators, plan, train, warm
from nablad.errors import NabladError

# Commands of the service extra, and what they do, for people who have only the thin client.
SERVICE_COMMANDS = {"serve": "run the server"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 1 when it was refused, 2 when it was called wrongly."""
    parser = argparse.ArgumentParser(
        prog="nablad",
        description="Gradients of losses that contain derivatives, computed by a server.",
    )
    parser.add_argument("--version", action="version", version=f"nablad {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (gradient, train, plan, warm, models, operators):
        module.add_command(commands)
    _add_service_commands(commands)
    arguments = parser.parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read, `head` say, has read enough. Python would write the rest once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (NabladError, OSError, ValueError) as error:
        print(f"nablad: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _add_service_commands(commands: Any) -> None:
    found = {point.name: point for point in entry_points(group="nablad.commands")}
    for name, summary in SERVICE_COMMANDS.items():
        try:
            found[name].load()(commands)
        except (ImportError, KeyError) as error:
            _add_missing(commands, name, summary, str(error))


def _add_missing(commands: Any, name: str, summary: str, reason: str) -> None:
    # Any words may follow; with another prefix character none of them is taken for an option.
    parser = commands.add_parser(
        name, help=f"{summary} (needs the service extra)", prefix_chars="\0", add_help=False
    )
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)

    def run(arguments: argparse.Namespace) -> int:
        print(f"nablad {name} needs the service extra ({reason}). Type:", file=sys.stderr)
        print('  pip install "nablad[service]"', file=sys.stderr)
        return 2

    parser.set_defaults(run=run)
