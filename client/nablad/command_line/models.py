"""`nablad models`: what the server hosts, and how to change it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nablad.client import Client
from nablad.command_line.common import Waiting, add_url
from nablad.command_line.tensors import check_kind, read_tensors, write_tensors
from nablad.messages import ModelInfo


def add_command(commands: Any) -> None:
    """Register the command and the ones below it."""
    parser = commands.add_parser(
        "models",
        help="list the hosted models, host and remove them",
        description="Without a further word: list the hosted models, and what could not be loaded.",
        epilog="example: nablad models put net --architecture net.json --params weights.npz",
    )
    add_url(parser)
    parser.set_defaults(run=run)
    below = parser.add_subparsers(metavar="WHAT")

    put = _add(below, "put", put_model, "host a model, or replace the parameters of one")
    source = put.add_mutually_exclusive_group()
    source.add_argument("--architecture", metavar="FILE", help="layers, .json")
    source.add_argument("--stablehlo", metavar="FILE", help="what jax.export serialised")
    put.add_argument("--params", metavar="FILE", help="parameters, .npz or .safetensors")
    put.add_argument("--state", metavar="FILE", help="state, likewise")
    put.add_argument("--seed", type=int, default=0, help="of parameters that are drawn (default: 0)")

    params = _add(below, "params", save_params, "save the resident parameters of a model")
    params.add_argument("--out", metavar="FILE", required=True, help=".npz or .safetensors")
    params.add_argument("--state-out", metavar="FILE", help="where to save the state, likewise")

    _add(below, "delete", delete_model, "remove a model from the server and its repository")
    _add(below, "load", load_model, "read a model from the server's repository")
    _add(below, "unload", unload_model, "take a model out of memory; the repository keeps it")


def _add(
    below: Any, word: str, action: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = below.add_parser(word, help=summary, description=summary)
    parser.add_argument("name", metavar="NAME")
    # No default of its own: it would take the place of a --url that stands before the word.
    parser.add_argument("--url", default=argparse.SUPPRESS, help="where the server listens")
    parser.set_defaults(run=action)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """One line a model, then one for each that failed."""
    with Client(arguments.url) as client:
        models, failed = client.models(), client.failed_models()
    if not models:
        print("no models are hosted")
    for model in models:
        print(line(model))
    for failure in failed:
        print(f"{failure.name or failure.place}  FAILED  {failure.place}: {failure.reason}")
    return 0


def line(model: ModelInfo) -> str:
    """What there is to know of a model at a glance."""
    inputs = ", ".join(f"{name} {_shape(shape)}" for name, shape in model.inputs.items())
    size = f"{model.parameter_count} parameters in {len(model.parameters)} arrays"
    kind = model.source if model.loaded else f"{model.source}, unloaded"
    return f"{model.name}  {kind}  {inputs}  {size}  version {model.version}"


def _shape(shape: list[int | None] | None) -> str:
    if shape is None:
        return "(...)"
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def put_model(arguments: argparse.Namespace) -> int:
    """Host a model from files; without a source, replace the parameters of the one that is hosted."""
    params = read_tensors(arguments.params) if arguments.params else None
    state = read_tensors(arguments.state) if arguments.state else None
    with Client(arguments.url) as client, Waiting("waiting for the server"):
        if arguments.architecture:
            architecture = _json(arguments.architecture)
            client.create_model(arguments.name, architecture, params, state, arguments.seed)
        elif arguments.stablehlo:
            artifact = Path(arguments.stablehlo).read_bytes()
            client.create_model(arguments.name, None, params, state, stablehlo=artifact)
        elif params is not None:
            client.set_params(arguments.name, params, state)
        else:
            raise ValueError("nothing to put: give --architecture, --stablehlo or --params")
        print(line(client.model(arguments.name)))
    return 0


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from None


def save_params(arguments: argparse.Namespace) -> int:
    """The resident parameters, and the state where asked for, in files."""
    files = [file for file in (arguments.out, arguments.state_out) if file]
    for file in files:
        check_kind(file)  # before anything travels
    with Client(arguments.url) as client, Waiting("waiting for the server"):
        resident = client.params(arguments.name)
    for file, tensors in zip(files, (resident.params, resident.state), strict=False):
        write_tensors(file, tensors)
    print(f"saved {' and '.join(files)}, version {resident.version}")
    return 0


def delete_model(arguments: argparse.Namespace) -> int:
    """Remove a model."""
    with Client(arguments.url) as client:
        client.delete_model(arguments.name)
    print(f"deleted {arguments.name}")
    return 0


def load_model(arguments: argparse.Namespace) -> int:
    """Read a model from the repository."""
    with Client(arguments.url) as client, Waiting("waiting for the server"):
        print(line(client.load_model(arguments.name)))
    return 0


def unload_model(arguments: argparse.Namespace) -> int:
    """Take a model out of memory."""
    with Client(arguments.url) as client:
        print(line(client.unload_model(arguments.name)))
    return 0
