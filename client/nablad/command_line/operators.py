"""`nablad operators`: the operator table of the server."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from nablad.client import Client
from nablad.command_line.common import add_url


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser("operators", help="list the operators of the loss language")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Signatures and sentences, by family."""
    with Client(arguments.url) as client:
        table = client.operators()
    width = max(len(operator.signature) for operator in table)
    for family, rows in itertools.groupby(table, key=lambda operator: operator.family):
        print(f"\n{family}")
        for operator in rows:
            also = f" (also {', '.join(operator.aliases)})" if operator.aliases else ""
            print(f"  {operator.signature:<{width}}  {operator.doc}{also}")
    return 0
