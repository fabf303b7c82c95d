"""`nablad models`: what the server hosts."""

from __future__ import annotations

import argparse
from typing import Any

from nablad.client import Client
from nablad.command_line.common import add_url


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("models", help="list the hosted models")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """One line a model."""
    with Client(arguments.url) as client:
        models = client.models()
    if not models:
        print("no models are hosted")
    for model in models:
        arrays = len(model.parameters)
        print(f"{model.name}  {model.parameter_count} parameters in {arrays} arrays  version {model.version}")
    return 0
