"""A program with its models and inputs, as the commands that send one take it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np


def add_program(parser: argparse.ArgumentParser) -> None:
    """The options of a program, the models it calls and the inputs it reads."""
    parser.add_argument("--loss", required=True, metavar="FILE_OR_TEXT", help="the program")
    parser.add_argument("--model", metavar="NAME", help="hosted model, bound to the name 'model'")
    parser.add_argument(
        "--bind", action="append", default=[], metavar="NAME=MODEL", help="bind one of several models"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE_OR_NUMBER",
        help=".npy, .npz (a tree of arrays) or a number",
    )


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The options that say how a program is computed."""
    parser.add_argument("--mode", choices=("eval", "train"))
    parser.add_argument("--nesting", default="auto", help="auto, default, or one nesting for all")
    parser.add_argument(
        "--strategy", action="append", default=[], metavar="OPERATOR=STRATEGY", help="pin one; repeatable"
    )
    parser.add_argument("--examples-at-once", type=int, metavar="N", help="compute so many at a time")
    parser.add_argument("--memory-limit", type=int, metavar="BYTES", help="what the computation may take")


def split(pair: str) -> tuple[str, str]:
    """`NAME=VALUE` in two."""
    name, equals, value = pair.partition("=")
    if not equals:
        raise ValueError(f"'{pair}' must be NAME=VALUE")
    return name, value


def read_program(text: str) -> str:
    """A program given as a file's name or as itself."""
    try:
        path = Path(text)
        return path.read_text() if path.is_file() else text
    except (OSError, ValueError):  # a long text is no file name
        return text


def read_input(text: str) -> Any:
    """An array or tree from a file, or a number.

    Raises:
        ValueError: where it is neither.
    """
    try:
        return float(text)
    except ValueError:
        pass
    if not Path(text).is_file():
        raise ValueError(f"there is no file '{text}', and it is not a number")
    loaded = np.load(text, allow_pickle=False)
    return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
