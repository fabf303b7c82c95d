"""Megabytes of parameters in, as many of gradient out, beside the least that moving them can cost.

    python benchmarks/bandwidth.py                  # tables, docs/benchmarks/bandwidth.md, a plot
    python benchmarks/bandwidth.py --quick          # small sizes, few rounds, nothing written
    python benchmarks/bandwidth.py --json FILE      # the figures as JSON too
    python benchmarks/bandwidth.py --peers PYTHON   # UM-Bridge and Tesseract are installed there; or none

The memory of servers is read from /proc: it needs Linux.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from echo import fill
from measuring import Block, Times, agree, each, forget_highest, highest, in_turn, resident
from pages import BLUE, GREY, Goal, Report, dots, parser, ready_to_measure, table
from peers import mlp
from peers.starting import NoPeers, environment, peers
from processes import Process, Server

import nablad

MEGABYTE = 10**6
IN_PROCESS, COPY, ECHO = "in process, jax.jit", "one copy in memory", "echo of a plain socket"
CLIENT, SHARED = "Client", "Client, shared memory"
PEERS = {
    "umbridge": "UM-Bridge, HTTPModel",
    "tesseract": "Tesseract, base64",
    "tesseract binref": "Tesseract, answer in a file",
}
LARGEST_TEXT = 2 * MEGABYTE
"""UM-Bridge sends numbers as text: tens of seconds for 100 MB."""
OF_ECHO, COPIES, PEAK, SHARED_COPIES, OVER_TESSERACT = 1.5, 6.0, 2.5, 3.5, 10.0

METHOD = """The gradient of a mean square error in the parameters of a dense layer, float32, for one
example: all parameters travel to the server, as many bytes of gradient travel back. Everything is warm
and taken in turn, {rounds} rounds for the largest size, one caller alone. Each kind of client has a
server of its own; *stock* is one that receives bodies as uvicorn does.

*In process* calls a compiled `jax.value_and_grad` with JAX arrays. *Echo* is a process that receives as
many bytes into one buffer and sends them back: with the computation, the least that a server over TCP can
take. *One copy* is `np.copyto` of the payload between buffers that are in use already, the unit M. *Peak*
is the most memory that the server had during the calls, less what it had before the first of them (with
the model hosted and the compiler warm), in sizes of the payload. Tesseract is served natively; beside
base64 it can leave its answer in a file that both see, which is not remote."""


@dataclass(frozen=True)
class Road:
    """What one kind of client takes for a payload."""

    times: Times
    peak: float | None = None
    """Memory of the server at the most, in payloads; None where it is not ours."""


def roads(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Options of the server and of the client, by name."""
    return {
        CLIENT: ({}, {}),
        "Client, msgpack": ({}, {"format": "msgpack"}),
        "Client, JSON": ({}, {"format": "json"}),
        "Client, stock protocol": ({"protocol": "stock"}, {}),
        "Client, Unix socket": ({"uds": folder / "plain.sock"}, {}),
        SHARED: ({"uds": folder / "shared.sock"}, {"shared_memory": True}),
    }


def echo(stack: ExitStack, size: int) -> Block:
    """Send and receive so many bytes."""
    process = stack.enter_context(
        Process([sys.executable, str(Path(__file__).with_name("echo.py")), str(size)])
    )
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", int(process.first))))
    sent, room = memoryview(bytes(size)), memoryview(bytearray(size))

    def call() -> None:
        connection.sendall(sent)
        fill(connection, room)

    return each(call)


def copy(size: int) -> Block:
    """Copy so many bytes."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return each(lambda: np.copyto(target, source))


def measure(size: int, rounds: int, block: int, python: Path | None) -> dict[str, Road]:
    """All roads for a payload of about so many bytes."""
    width = int(np.sqrt(size / 4))
    widths = (width, width)
    params, x, y = mlp.drawn(widths, 1)
    payload = sum(leaf.nbytes for leaf in params.values())
    expected = jax.device_get(jax.jit(jax.grad(mlp.loss))(params, x, y))
    compiled, given = jax.jit(jax.value_and_grad(mlp.loss)), jax.device_put((params, x, y))
    pids: dict[str, int] = {}
    before: dict[str, int] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nablad-")))
        blocks: dict[str, Block] = {
            COPY: copy(payload),
            IN_PROCESS: each(lambda: jax.block_until_ready(compiled(*given))),
            ECHO: echo(stack, payload),
        }
        for name, (options, wanted) in roads(folder).items():
            server = stack.enter_context(Server(**options))
            client = stack.enter_context(nablad.Client(server.url, **wanted))
            _host_and_warm(client, widths)
            pids[name], before[name] = server.pid, resident(server.pid)
            forget_highest(server.pid)

            def call(client: nablad.Client = client) -> Any:
                return client.gradient(mlp.PROGRAM, inputs={"x": x, "y": y}, model="net", params=params)

            found = call().gradients["params"]
            for leaf, array in expected.items():
                agree(f"{name}, {leaf}", found[leaf], array)
            blocks[name] = each(call)
        if python is not None:
            kinds = [kind for kind in PEERS if payload <= LARGEST_TEXT or kind != "umbridge"]
            started = stack.enter_context(peers(python, kinds, widths, 1))
            blocks |= {PEERS[kind]: one for kind, one in started.items()}
        counts = dict.fromkeys(blocks, block) | {name: 1 for name in blocks if name in PEERS.values()}
        seconds = in_turn(blocks, rounds, counts)
        peaks = {name: (highest(pid) - before[name]) / payload for name, pid in pids.items()}
    return {name: Road(Times.of(one), peaks.get(name)) for name, one in seconds.items()}


def _host_and_warm(client: nablad.Client, widths: Sequence[int]) -> None:
    """Host the model, and have the compiler's own memory taken before that of the calls is looked at."""
    client.create_model("net", {"preset": "mlp", "sizes": list(widths), "activation": "tanh"})
    client.create_model("small", {"preset": "mlp", "sizes": [3, 3, 3], "activation": "tanh"})
    params, x, y = mlp.drawn((3, 3, 3), 1)
    client.gradient(mlp.PROGRAM, inputs={"x": x, "y": y}, model="small", params=params)


def goals(size: str, found: dict[str, Road]) -> list[Goal]:
    """What the issue of serving asks for, at one size."""
    p50 = {name: road.times.p50 for name, road in found.items()}
    here, one_copy, floor = p50[IN_PROCESS], p50[COPY], p50[ECHO] + p50[IN_PROCESS]
    peak = found[CLIENT].peak
    assert peak is not None
    goals = [
        Goal(f"Client at {size} over echo and compute", p50[CLIENT] / floor, OF_ECHO, "x"),
        Goal(f"Client at {size} over in process", (p50[CLIENT] - here) / one_copy, COPIES, " M"),
        Goal(f"peak server memory at {size}", peak, PEAK, "x the payload"),
        Goal(
            f"shared memory at {size} over in process", (p50[SHARED] - here) / one_copy, SHARED_COPIES, " M"
        ),
    ]
    if (tesseract := PEERS["tesseract"]) in p50:
        faster = p50[tesseract] / p50[CLIENT]
        goals.append(Goal(f"{tesseract}, over Client at {size}", faster, OVER_TESSERACT, "x", at_least=True))
    return goals


def shown(size: str, found: dict[str, Road]) -> str:
    """A table of one size."""
    p50 = {name: road.times.p50 for name, road in found.items()}
    here, one_copy, floor = p50[IN_PROCESS], p50[COPY], p50[ECHO] + p50[IN_PROCESS]
    rows = []
    for name, road in found.items():
        own = name not in (COPY, IN_PROCESS, ECHO)
        compared = [f"{(p50[name] - here) / one_copy:.1f}", f"{p50[name] / floor:.2f}"] if own else ["", ""]
        peak = f"{road.peak:.2f}" if road.peak is not None else ""
        rows.append([name, f"{p50[name]:.2f}", f"{road.times.p99:.2f}", *compared, peak])
    head = ["road", "p50 ms", "p99 ms", "over in process, M", "of echo and compute", "peak, payloads"]
    return f"### {size} each way\n\n{table(head, rows)}"


def report(found: dict[str, dict[str, Road]], rounds: int, notes: list[str]) -> Report:
    """Tables, goals, plot."""
    *_, largest = found

    def draw(figure: Any) -> None:
        names = list(next(iter(found.values())))
        figure.set_size_inches(4 * len(found) + 2, 1.2 + 0.35 * len(names))
        for axes, (size, some) in zip(
            figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found.items(), strict=True
        ):
            p50 = [some[name].times.p50 if name in some else None for name in names]
            floor = some[ECHO].times.p50 + some[IN_PROCESS].times.p50
            axes.axvline(floor, color=GREY, lw=1, ls=":")
            dots(axes, names, {"p50": ("s", BLUE, p50)})
            axes.set_xlabel(f"ms for {size} each way; dotted: echo and compute")

    return Report(
        "bandwidth",
        "Large parameters in, large gradients out",
        METHOD.format(rounds=rounds),
        "\n\n".join(shown(size, some) for size, some in found.items()),
        goals(largest, found[largest]),
        {"sizes": {size: {name: asdict(one) for name, one in some.items()} for size, some in found.items()}},
        draw,
        "Times of each road by size",
        notes,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options: Any = parser(__doc__)
    options.add_argument("--peers", metavar="PYTHON", help="where the peers are installed, or none")
    chosen: argparse.Namespace = options.parse_args(arguments)
    plan = {0.4: (2, 2)} if chosen.quick else {1: (30, 10), 10: (20, 4), 100: (15, 1)}
    notes: list[str] = []
    with ready_to_measure() as publish:
        try:
            python = environment(chosen.peers, make=not chosen.quick)
        except NoPeers as error:
            python = None
            notes.append(str(error))
        found = {
            f"{size:g} MB": measure(int(size * MEGABYTE), rounds, block, python)
            for size, (rounds, block) in plan.items()
        }
        return publish(chosen, report(found, list(plan.values())[-1][0], notes))


if __name__ == "__main__":
    sys.exit(main())
