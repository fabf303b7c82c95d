"""A small gradient, in process and over every road to it: what a call costs beside its computation.

    python benchmarks/latency.py                  # a table, docs/benchmarks/latency.md, a plot
    python benchmarks/latency.py --quick          # few calls, nothing written
    python benchmarks/latency.py --json FILE      # the figures as JSON too
    python benchmarks/latency.py --peers PYTHON   # UM-Bridge and Tesseract are installed there; or none

Without --peers they are installed into an environment of their own, kept in the user's cache.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
from measuring import Block, Times, agree, each, each_awaited, in_turn
from pages import BLUE, ORANGE, Goal, Report, dots, parser, ready_to_measure, table
from peers import mlp
from peers.starting import NoPeers, environment, peers
from processes import Connection, Sent, Server

import nablad
from nablad.messages import GradientRequest
from nablad_service.engine.engine import Engine
from nablad_service.hosting import ModelStore
from nablad_service.requests.validation import gradient_query

WIDTHS = (4, 16, 8, 1)
EXAMPLES = 4
IN_PROCESS, ENGINE, RAW = "in process, jax.jit", "engine, without HTTP", "HTTP by a raw socket"
CLIENT, AWAITED, UNIX = "Client", "AsyncClient", "Client, Unix socket"
PEERS = {
    "umbridge": "UM-Bridge, HTTPModel",
    "umbridge kept": "UM-Bridge, kept connection",
    "tesseract": "Tesseract SDK",
}
MORE_THAN_IN_PROCESS, OF_UMBRIDGE, OF_TESSERACT = 0.45, 0.4, 0.25
PHASES = ("decode", "queue", "device", "encode")

METHOD = """The gradient of a mean square error in the {count} float32 parameters of an MLP, {size} bytes,
for {examples} examples: parameters and examples travel to the server each time, the gradient travels
back. All are warm and taken in turn, {block} calls at a time and {calls} each, one caller alone, on one
machine.

*In process* calls a compiled `jax.value_and_grad` with JAX arrays and waits for its result. *Engine* is
the compiled program of the service, NumPy arrays in and out. *Raw socket* sends the bytes of `Client` and
reads the answer without decoding it: the difference to `Client` is the client's. The peers compute the
same gradient with the same JAX in an environment of their own, the parameters as one vector. UM-Bridge's
client opens a connection each time; the same request over a kept one is what its server could do.
Tesseract is served natively and asked for a vector-Jacobian product."""


def in_process(params: dict[str, Any], x: Any, y: Any) -> Block:
    """The least that anybody pays: arrays stay on the device."""
    compiled = jax.jit(jax.value_and_grad(mlp.loss))
    given = jax.device_put((params, x, y))
    return each(lambda: jax.block_until_ready(compiled(*given)))


def engine(models: ModelStore, params: dict[str, Any], x: Any, y: Any) -> Block:
    """The service's program without HTTP."""
    started = Engine.start()
    binding: Any = {"name": "net", "params": params}
    request = GradientRequest(loss=mlp.PROGRAM, models={"model": binding}, inputs={"x": x, "y": y})
    query = gradient_query(request, models.get)
    executable = started.compile(started.trace(query))
    return each(lambda: executable.run(query))


def measure(rounds: int, block: int, peers_python: str | None, *, quick: bool) -> tuple[Any, ...]:
    """Times by road, what the server says of a call, and notes of what was left out."""
    params, x, y = mlp.drawn(WIDTHS, EXAMPLES)
    expected = jax.jit(jax.grad(mlp.loss))(params, x, y)
    architecture = {"preset": "mlp", "sizes": list(WIDTHS), "activation": "tanh"}
    notes: list[str] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nablad-"))
        server = stack.enter_context(Server(port=0, uds=f"{folder}/sock"))
        client = stack.enter_context(nablad.Client(server.url))
        runner = stack.enter_context(asyncio.Runner())
        awaited = nablad.AsyncClient(server.url)
        stack.callback(lambda: runner.run(awaited.aclose()))
        client.create_model("net", architecture)
        near = stack.enter_context(nablad.Client(f"unix:{folder}/sock"))
        models = ModelStore(max_models=1)
        models.put("net", architecture, None, None, 0)

        def asked(by: Any) -> Any:
            return by.gradient(mlp.PROGRAM, inputs={"x": x, "y": y}, model="net", params=params)

        found = asked(client).gradients["params"]
        for name, leaf in expected.items():
            agree(CLIENT, found[name], leaf)
        sent = Sent.by(asked)
        raw = stack.enter_context(Connection(server.url))
        phases: list[list[float]] = []

        def call() -> None:
            timing = asked(client).timing
            phases.append([getattr(timing, f"{phase}_ms") for phase in PHASES])

        blocks = {
            IN_PROCESS: in_process(params, x, y),
            ENGINE: engine(models, params, x, y),
            RAW: each(lambda: raw.exchange(sent)),
            CLIENT: each(call),
            AWAITED: each_awaited(runner, lambda: asked(awaited)),
            UNIX: each(lambda: asked(near)),
        }
        try:
            python = environment(peers_python, make=not quick)
            started = stack.enter_context(peers(python, list(PEERS), WIDTHS, EXAMPLES))
            blocks |= {PEERS[kind]: one for kind, one in started.items()}
        except NoPeers as error:
            notes.append(str(error))
        seconds = in_turn(blocks, rounds, block)
        answer = len(raw.exchange(sent))
    medians = dict(zip(PHASES, np.median(phases, axis=0).tolist(), strict=True))
    notes.append(
        f"A request has {len(sent.body)} bytes and {len(sent.head)} of headers, its answer {answer}."
    )
    return {name: Times.of(one) for name, one in seconds.items()}, medians, notes


def goals(times: dict[str, Times]) -> list[Goal]:
    """What the issue of serving asks for."""
    client, here = times[CLIENT].p50, times[IN_PROCESS].p50
    found = [Goal("Client p50 over in process", client - here, MORE_THAN_IN_PROCESS, " ms")]
    for kind, share in (("umbridge", OF_UMBRIDGE), ("tesseract", OF_TESSERACT)):
        if PEERS[kind] in times:
            found.append(
                Goal(f"Client p50 over that of {PEERS[kind]}", client / times[PEERS[kind]].p50, share)
            )
    return found


def report(times: dict[str, Times], phases: dict[str, float], notes: list[str], block: int) -> Report:
    """Table, goals, plot."""
    here = times[IN_PROCESS].p50
    rows = [
        [
            name,
            f"{one.p50:.3f}",
            f"{one.p99:.3f}",
            f"{one.p50 - here:.3f}",
            f"{times[CLIENT].p50 / one.p50:.2f}",
        ]
        for name, one in times.items()
    ]
    head = ["road", "p50 ms", "p99 ms", "p50 over in process, ms", "Client / this"]
    said = ", ".join(f"{phase} {found:.3f}" for phase, found in phases.items())
    count = sum(int(np.prod(shape)) for shape in mlp.shapes(WIDTHS).values())

    def draw(figure: Any) -> None:
        figure.set_size_inches(8, 1.2 + 0.4 * len(times))
        axes = figure.add_subplot()
        marks = {
            "p50": ("s", BLUE, [one.p50 for one in times.values()]),
            "p99": ("|", ORANGE, [one.p99 for one in times.values()]),
        }
        dots(axes, list(times), marks)
        axes.set_xlabel(f"ms for one gradient of {count} parameters")

    return Report(
        "latency",
        "A small gradient, remote and in process",
        METHOD.format(count=count, size=4 * count, examples=EXAMPLES, block=block, calls=times[CLIENT].count),
        f"{table(head, rows)}\n\nOf a call by `Client` the server says, medians in ms: {said}.",
        goals(times),
        {"ms": {name: asdict(one) for name, one in times.items()}, "server_ms": phases},
        draw,
        "p50 and p99 of each road",
        notes,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options: Any = parser(__doc__)
    options.add_argument("--peers", metavar="PYTHON", help="where the peers are installed, or none")
    chosen: argparse.Namespace = options.parse_args(arguments)
    rounds, block = (3, 10) if chosen.quick else (60, 50)
    with ready_to_measure() as publish:
        times, phases, notes = measure(rounds, block, chosen.peers, quick=chosen.quick)
        return publish(chosen, report(times, phases, notes, block))


if __name__ == "__main__":
    sys.exit(main())
