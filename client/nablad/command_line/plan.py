"""`nablad plan`: what would run and why, drawn as a tree."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nablad.client import Client
from nablad.command_line.common import Waiting, add_url
from nablad.command_line.program import add_choices, add_program, read_input, read_program, split


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plan",
        help="how a loss would be computed, and why",
        description="Draw the strategies of each inner derivative of a loss with their costs; runs nothing.",
        epilog='example: nablad plan --model net --loss "sum(grad(sum(model(x)), x)**2)" --input x=x.npy',
    )
    add_program(parser)
    add_choices(parser)
    parser.add_argument("--wrt", action="append", metavar="NAME", help="repeatable (default: params)")
    parser.add_argument("--evaluate", action="store_true", help="plan an evaluation, without outer gradient")
    parser.add_argument("--svg", metavar="FILE", help="save the drawing as a picture too")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and draw."""
    with Client(arguments.url) as client, Waiting("waiting for the server"):
        report = client.plan(
            read_program(arguments.loss),
            inputs={name: read_input(value) for name, value in map(split, arguments.input)},
            model=arguments.model,
            models=dict(map(split, arguments.bind)) or None,
            wrt=None if arguments.evaluate else arguments.wrt or ["params"],
            mode=arguments.mode,
            nesting=arguments.nesting,
            strategies=dict(map(split, arguments.strategy)),
            examples_at_once=arguments.examples_at_once,
            memory_limit=arguments.memory_limit,
        )
    print(report)
    if arguments.svg:
        Path(arguments.svg).write_text(report.svg(), encoding="utf-8")
        print(f"saved {arguments.svg}")
    return 0
