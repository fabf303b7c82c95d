"""`nablad warm`: a program compiled before somebody waits for it."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from nablad.arrays import DTYPES
from nablad.client import Client
from nablad.command_line.common import Waiting, add_url
from nablad.command_line.program import add_program, read_input, read_program, split


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "warm",
        help="compile a loss before it is called",
        description="Compile a loss for inputs of given shapes, and forms of it for several calls at once.",
        epilog='example: nablad warm --model net --loss "mean((model(x) - y)**2)" '
        "--shape x=float32:64,2 --shape y=float32:64,1 --batch-size 16",
    )
    add_program(parser)
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME=DTYPE:LENGTHS",
        help="an input that needs no data, float32:64,2",
    )
    parser.add_argument("--wrt", action="append", metavar="NAME", help="repeatable (default: params)")
    parser.add_argument("--evaluate", action="store_true", help="an evaluation, without outer gradient")
    parser.add_argument("--mode", choices=("eval", "train"))
    parser.add_argument(
        "--batch-size", type=int, action="append", default=[], metavar="N", help="for N calls; repeatable"
    )
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile, and tell what took how long."""
    inputs = {name: read_input(value) for name, value in map(split, arguments.input)}
    inputs |= {name: shaped(value) for name, value in map(split, arguments.shape)}
    with Client(arguments.url) as client, Waiting("compiling"):
        programs = client.warm(
            read_program(arguments.loss),
            inputs=inputs,
            model=arguments.model,
            models=dict(map(split, arguments.bind)) or None,
            wrt=None if arguments.evaluate else arguments.wrt or ["params"],
            mode=arguments.mode,
            batch_sizes=arguments.batch_size,
        )
    for one in programs:
        what = "one call" if one.calls == 1 else f"{one.calls} calls at once"
        how = one.reason or (
            f"compiled in {one.milliseconds:.0f} ms" if one.compiled else "was there already"
        )
        print(f"{what}: {how}")
    return 0


def shaped(text: str) -> Any:
    """`float32:64,2` as an array of that kind, which takes no room.

    Raises:
        ValueError: where it is none.
    """
    dtype, _, lengths = text.partition(":")
    if dtype not in DTYPES:
        raise ValueError(f"'{text}' must be DTYPE:LENGTHS, float32:64,2 say; there is no dtype '{dtype}'")
    try:
        shape = tuple(int(length) for length in lengths.split(",") if length)
        return np.broadcast_to(np.zeros((), dtype), shape)
    except ValueError:
        raise ValueError(f"'{text}' must be DTYPE:LENGTHS, float32:64,2 say") from None
