"""`nablad gradient`: a loss and its gradients from files."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np

from nablad.client import Client
from nablad.command_line.common import Waiting, add_url
from nablad.command_line.program import add_choices, add_program, read_input, read_program, split
from nablad.results import GradientResult


def add_command(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "gradient",
        help="a loss and its gradients",
        description="Send a loss with inputs from files, print its value, save its gradients.",
        epilog='example: nablad gradient --model net --loss "sum((model(x) - y)**2)" '
        "--input x=x.npy --input y=y.npy --wrt params --out grads.npz",
    )
    add_program(parser)
    add_choices(parser)
    parser.add_argument("--params", metavar="FILE", help=".npz with parameters for this call")
    parser.add_argument("--wrt", action="append", metavar="NAME", help="repeatable (default: params)")
    parser.add_argument("--term", action="append", default=[], metavar="NAME", help="named scalar to print")
    parser.add_argument(
        "--no-tune", dest="tune", action="store_false", help="let this call not count towards tuning"
    )
    parser.add_argument("--out", metavar="FILE", help="save the gradients as .npz")
    parser.add_argument("--explain", action="store_true", help="print how derivatives were computed")
    add_url(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, save."""
    if arguments.out and not arguments.out.endswith(".npz"):
        raise ValueError(f"--out {arguments.out}: gradients are saved as .npz")
    inputs = {name: read_input(value) for name, value in map(split, arguments.input)}
    models = dict(map(split, arguments.bind)) or None
    params = read_input(arguments.params) if arguments.params else None
    wrt = arguments.wrt or ["params"]
    with Client(arguments.url) as client, Waiting("waiting for the server (a first call compiles)"):
        result = client.gradient(
            read_program(arguments.loss),
            inputs=inputs,
            model=arguments.model,
            models=models,
            params=params,
            wrt=wrt,
            terms=arguments.term,
            mode=arguments.mode,
            nesting=arguments.nesting,
            strategies=dict(map(split, arguments.strategy)),
            examples_at_once=arguments.examples_at_once,
            memory_limit=arguments.memory_limit,
            tune=arguments.tune,
        )
    show(result, explain=arguments.explain)
    if arguments.out:
        np.savez(arguments.out, **flat(result.gradients))
        print(f"saved {arguments.out}")
    return 0


def show(result: GradientResult, *, explain: bool) -> None:
    """Value, terms, and the size of each gradient."""
    print(f"value {result.value:.9g}")
    for name, value in result.terms.items():
        print(f"term {name} {value:.9g}")
    for name, array in flat(result.gradients).items():
        print(f"gradient {name} {array.dtype}{array.shape} norm {np.linalg.norm(array):.6g}")
    for caution in result.plan.cautions:
        print(f"caution: line {caution['line']}: {caution['text']}: {caution['message']}", file=sys.stderr)
    if result.non_finite is not None:
        print(f"not finite: {result.non_finite}", file=sys.stderr)
    if explain:
        print(result.plan.explanation)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested gradients under dotted names: parameters as they are called, inputs by their names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    arrays: dict[str, Any] = {}
    for name, value in tree.items():
        below = name if prefix in ("", "params") else f"{prefix}.{name}"
        arrays.update(flat(value, below))
    return arrays
