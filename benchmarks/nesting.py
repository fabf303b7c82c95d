"""How the nestings of inner gradients compare: time, interleaved in one process, and the losses they give.

    python benchmarks/nesting.py              # every row, a table, docs/benchmarks/nesting.md
    python benchmarks/nesting.py --quick      # fewer repetitions, nothing written
    python benchmarks/nesting.py --json FILE  # rows as JSON too

Each row is a loss that holds an inner derivative, with its gradient with respect to the parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nablad.messages import GradientRequest
from nablad_service.engine.engine import Engine, arguments
from nablad_service.hosting import ModelStore
from nablad_service.requests.validation import gradient_query

NESTINGS = ("reverse_over_reverse", "forward_over_reverse")
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "nesting.md"


@dataclass(frozen=True)
class Row:
    """A loss, the widths of its model, and how many examples it sees."""

    name: str
    widths: tuple[int, ...]
    examples: int
    loss: str


PENALTY = "g = grad(sum(model(x)), x)\nmean((norm(g, axis=1, eps=1e-6) - 1)**2)"
HESSIAN_VECTOR = "fit = mean(model(x)**2)\nnorm(hvp(fit, x, v))**2"
PARAMETER_GRADIENT = "fit = mean((model(x) - y)**2)\nfit + 0.1 * norm(grad(fit, model.params))**2"
SLICED = "s = model(x)\nmean(sum(v * vjp(s, x, v), axis=1) + 0.5 * sum(v * s, axis=1)**2)"

ROWS = (
    Row("gradient penalty, width 64", (8, 64, 64, 1), 256, PENALTY),
    Row("gradient penalty, width 256", (8, 256, 256, 1), 256, PENALTY),
    Row("Hessian-vector product, width 64", (8, 64, 64, 1), 256, HESSIAN_VECTOR),
    Row("Hessian-vector product, width 256", (8, 256, 256, 1), 256, HESSIAN_VECTOR),
    Row("norm of the parameter gradient, width 64", (8, 64, 64, 1), 256, PARAMETER_GRADIENT),
    Row("norm of the parameter gradient, width 256", (8, 256, 256, 1), 256, PARAMETER_GRADIENT),
    Row("sliced score matching, width 128", (8, 128, 128, 8), 256, SLICED),
)


def prepare(row: Row, nesting: str) -> tuple[Any, Any]:
    """The compiled program and its arguments, on the device."""
    models = ModelStore(max_models=1)
    sizes = zip(row.widths, row.widths[1:], strict=False)
    layers = [{"dense": list(pair), "activation": "tanh"} for pair in sizes]
    models.put("net", {"layers": [*layers[:-1], {"dense": list(row.widths[-2:])}]}, None, None, 0)
    rng = np.random.default_rng(0)
    known = {
        "x": rng.standard_normal((row.examples, row.widths[0])).astype("float32"),
        "v": rng.choice([-1.0, 1.0], (row.examples, row.widths[0])).astype("float32"),
        "y": rng.standard_normal((row.examples, row.widths[-1])).astype("float32"),
    }
    names = [name for name in known if f"{name})" in row.loss or f"{name} *" in row.loss]
    request = GradientRequest(
        loss=row.loss,
        models={"model": "net"},
        inputs={name: known[name] for name in names},
        nesting=nesting,  # type: ignore[arg-type]
    )
    engine = Engine.start()
    query = gradient_query(request, models.get)
    return engine.compile(engine.trace(query)).compiled, jax.device_put(arguments(query))


def measure(row: Row, repetitions: int) -> dict[str, Any]:
    """Medians of interleaved runs, in milliseconds, and the loss that each nesting gives."""
    ready = {nesting: prepare(row, nesting) for nesting in NESTINGS}
    times: dict[str, list[float]] = {nesting: [] for nesting in NESTINGS}
    losses = {}
    for repetition in range(repetitions + 2):
        for nesting, (program, data) in ready.items():
            started = time.perf_counter()
            result = jax.block_until_ready(program(data))
            if repetition >= 2:  # the first runs warm caches
                times[nesting].append((time.perf_counter() - started) * 1e3)
            losses[nesting] = float(result["value"])
    medians = {nesting: statistics.median(values) for nesting, values in times.items()}
    return {"row": row.name, "ms": medians, "loss": losses}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        "| loss | reverse over reverse | forward over reverse | ratio | loss values |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        reverse, forward = (row["ms"][nesting] for nesting in NESTINGS)
        values = " and ".join(f"{row['loss'][nesting]:.7g}" for nesting in NESTINGS)
        ratio = forward / reverse
        lines.append(f"| {row['row']} | {reverse:.2f} ms | {forward:.2f} ms | {ratio:.2f} | {values} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE", type=Path)
    options = parser.parse_args()
    rows = [measure(row, 10 if options.quick else 60) for row in ROWS]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if not options.quick:
        cores = f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}, {platform.machine()}"
        machine = f"{cores}, JAX {jax.__version__}, float32"
        PAGE.write_text(
            "# Nesting of inner gradients\n\n"
            f"`python benchmarks/nesting.py` on: {machine}. Medians of 60 interleaved runs of the loss with\n"
            "its gradient in the parameters; below 1, forward over reverse is faster. Differences under\n"
            f"15 % are ties.\n\n{table(rows)}\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
