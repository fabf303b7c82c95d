"""From nothing to an answer: a server's start, its first programs, and those that it knew before a restart.

python benchmarks/cold_start.py              # a table, docs/benchmarks/cold_start.md, a plot
python benchmarks/cold_start.py --quick      # one round, nothing written
python benchmarks/cold_start.py --json FILE  # the figures as JSON too
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import burgers
import numpy as np
from pages import BLUE, GREY, Goal, Report, dots, parser, ready_to_measure, table
from processes import Server

import nablad

WIDTH, POINTS = 20, 512
LISTENS, READY = "server: start to listening", "server: start to ready"
NEW, SECOND, WARM = "first new program", "second new program", "the same once more"
KNOWN_READY, KNOWN = "restarted: start to ready", "restarted: first known program"
THIN = "a client's process, to the answer of a warm server"
JAX_NEW, JAX_KNOWN = "a process with JAX, to its first gradient", "the same with JAX's cache on disk"
COMPILES = 0.5
"""Of the compile time of a new program, at most what a known one may take after a restart."""

METHOD = """Burgers' equation by a network of {depth} hidden layers of {width} at {points} points: loss
and gradient. Everything is timed from outside, {rounds} rounds in turn, medians shown. Files of Python
and of JAX are in the page cache of the system.

A server starts with a repository and an empty `--cache`, gets one program that nobody has seen, another
one, and the first once more. It is stopped and started again with the same two folders, and asked for the
first program, which it knew. Beside it stand whole processes from `python` to an answer: one with JAX
that computes the same by itself, without and with JAX's compile cache on disk, and one with the thin
client that asks a warm server."""

IN_PROCESS = """
import burgers, jax
step = jax.jit(jax.value_and_grad(burgers.loss))
jax.block_until_ready(step(burgers.drawn({width}, {depth}), burgers.points({points})))
"""
BY_CLIENT = """
import sys, numpy, nablad
given = dict(numpy.load(sys.argv[2]))
with nablad.Client(sys.argv[1]) as client:
    client.gradient(sys.argv[3], inputs=given, model="net")
"""


def whole_process(code: str, *arguments: str, env: Mapping[str, str] | None = None) -> float:
    """Seconds from the start of a Python to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, env={**os.environ, **(env or {})}, cwd=Path(__file__).parent)
    return time.perf_counter() - started


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def one_round(folder: Path, depth: int, *, quick: bool) -> dict[str, float]:
    """Seconds of everything, once, from empty folders."""
    points, found = burgers.points(POINTS), {}
    folders = {"repository": folder / "models", "cache": folder / "cache"}
    values = folder / "points.npz"
    np.savez(values, **points)

    def ask(client: nablad.Client, program: str = burgers.PROGRAM) -> Any:
        return client.gradient(program, inputs=points, model="net")

    with Server(**folders) as server, nablad.Client(server.url) as client:
        found[LISTENS], found[READY] = server.listens_after, server.ready_after
        client.create_model("net", burgers.architecture(WIDTH, depth))
        found[NEW], answer = timed(lambda: ask(client))
        found[f"compiling {NEW}"] = answer.timing.compile_ms / 1e3
        found[SECOND], _ = timed(lambda: ask(client, burgers.PROGRAM.replace("10 *", "20 *")))
        found[WARM], _ = timed(lambda: ask(client))
        found[THIN] = whole_process(BY_CLIENT, server.url, str(values), burgers.PROGRAM)
    with Server(**folders) as server, nablad.Client(server.url) as client:
        found[KNOWN_READY] = server.ready_after
        found[KNOWN], answer = timed(lambda: ask(client))
        found[f"compiling {KNOWN}"] = answer.timing.compile_ms / 1e3
    if quick:
        return found
    code = IN_PROCESS.format(width=WIDTH, depth=depth, points=POINTS)
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    found[JAX_NEW] = whole_process(code)
    whole_process(code, env=kept)
    found[JAX_KNOWN] = whole_process(code, env=kept)
    return found


def report(found: Mapping[str, Sequence[float]], rounds: int, depth: int) -> Report:
    """Table, goals, plot."""
    medians = {name: float(np.median(seconds)) for name, seconds in found.items()}
    shown = [name for name in found if not name.startswith("compiling ")]
    rows = []
    for name in shown:
        compiling = medians.get(f"compiling {name}")
        spread = f"{min(found[name]):.3f} to {max(found[name]):.3f}"
        rows.append(
            [name, f"{medians[name]:.3f}", spread, f"{compiling:.3f}" if compiling is not None else ""]
        )
    head = ["what", "seconds", "least to most", "of which compiling"]
    share = medians[f"compiling {KNOWN}"] / medians[f"compiling {NEW}"]

    def draw(figure: Any) -> None:
        figure.set_size_inches(8, 1.2 + 0.35 * len(shown))
        axes = figure.add_subplot()
        marks = {
            "whole": ("s", BLUE, [medians[name] for name in shown]),
            "compiling": ("o", GREY, [medians.get(f"compiling {name}") for name in shown]),
        }
        dots(axes, shown, marks)
        axes.set_xlabel("seconds")

    return Report(
        "cold_start",
        "From nothing to an answer",
        METHOD.format(depth=depth, width=WIDTH, points=POINTS, rounds=rounds),
        table(head, rows),
        [Goal("compiling a known program after a restart, over a new one", share, COMPILES, "x")],
        {"seconds": {name: list(seconds) for name, seconds in found.items()}},
        draw,
        "Seconds until each is there",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    chosen = parser(__doc__).parse_args(arguments)
    rounds, depth = (1, 1) if chosen.quick else (7, 4)
    found: dict[str, list[float]] = defaultdict(list)
    with ready_to_measure() as publish:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="nablad-") as folder:
                for name, seconds in one_round(Path(folder), depth, quick=chosen.quick).items():
                    found[name].append(seconds)
        return publish(chosen, report(found, rounds, depth))


if __name__ == "__main__":
    sys.exit(main())
