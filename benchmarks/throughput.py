"""Callers of one program side by side, batched and one by one, and a new program compiled next to them.

python benchmarks/throughput.py              # tables, docs/benchmarks/throughput.md, a plot
python benchmarks/throughput.py --quick      # short stretches, nothing written
python benchmarks/throughput.py --json FILE  # the figures as JSON too
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
from crowd import Crowd, Load, Measured, crowd
from measuring import Times
from pages import BLUE, GREY, Goal, Report, parser, ready_to_measure, table
from processes import Server

import nablad

CALLERS = (1, 4, 16, 64)
CROWD = 16
"""Callers beside whom a new program is compiled."""
SETTLING = 0.1
"""Part of a stretch at its start that is not counted."""
BATCHED, ALONE = "batched", "one by one"
SERVERS = {BATCHED: 64, ALONE: 1}
"""What `--max-batch` says; the first is the default."""
GAIN, TAIL, SLOWER, HEALTHY_MS = 4.0, 5.0, 1.2, 20.0

METHOD = """Callers in a closed loop: each has a connection and asks again when it is answered. All ask
for one program with resident parameters, each with an input of its own. *Batched* is the server as it
comes, *one by one* the same with `--max-batch 1`. Stretches of {seconds:g} s, in turn, {rounds} of each;
requests a second are medians over the stretches, p50 and p99 of all their calls together.

All callers are one process beside the server, on the same cores: it sends ready bytes over plain
connections (uvloop) and counts answers without decoding them; the last columns say what server and
callers took of a core for each. It asks for `/health/live` too, every 20 ms.

*Cold* is a program that the server has never seen, asked for alone, and another while {crowd} callers go
on: how many requests a second they got from its arrival to its answer, beside those before it."""


LOADS = (
    Load("small", "small MLP", (4, 16, 8, 1), "mean((model(x) - y)**2)", "params", 4),
    Load("forces", "forces, 1.1 M parameters", (64, 1024, 1024, 1), "sum(model(x) * y)", "x", 1),
)
# Its number makes it new; derivatives of fourth order keep the compiler busy for a while.
COLD = """def u(t, x):
    return model(stack([t, x, t * x, x * x]))[0]
def residual(t, x):
    v = u(t, x)
    return d(v, t) + {number} * v * d(v, x) + d(v, x, x, x, x)
mean(vmap(residual)(t, x)**2)"""


def warm_rate(calls: Any, begin: float, end: float) -> float:
    """Answers a second between two moments."""
    return float(np.sum((calls[:, 0] >= begin) & (calls[:, 0] < end)) / (end - begin))


def steady(
    crowd: Crowd, servers: dict[str, Server], numbers: Sequence[int], rounds: int, seconds: float
) -> dict[tuple[str, int, str], Measured]:
    """Every program, number of callers and server, in turn; the first round warms."""
    found: dict[tuple[str, int, str], Measured] = {}
    for number in range(rounds + 1):
        for load in LOADS:
            for callers in numbers:
                for name, server in servers.items():
                    calls, said = crowd.stretch(server, load, callers, seconds)
                    if number == 0:  # new numbers of callers may be compiled for
                        continue
                    one = found.setdefault((load.model, callers, name), Measured())
                    begin, end = calls[:, 0].min() + SETTLING * seconds, calls[:, 0].max()
                    one.rates.append(warm_rate(calls, begin, end))
                    one.seconds.extend(calls[:, 1])
                    one.callers += said["callers"]
                    one.server += said["server"]
                    one.failed += said["failed"]
        if number == 0:
            crowd.health.clear()
    return found


def beside_a_compilation(crowd: Crowd, server: Server, rounds: int, seconds: float) -> dict[str, list[float]]:
    """How long a new program took, alone and in company, and the requests a second before and meanwhile."""
    found: dict[str, list[float]] = {"alone_s": [], "cold_s": [], "before": [], "meanwhile": []}
    t, x = np.random.default_rng(0).random((2, 64), dtype=np.float32)

    def cold(number: int) -> tuple[float, float]:
        begin = time.monotonic()
        with nablad.Client(server.url) as client:
            client.gradient(COLD.format(number=number), inputs={"t": t, "x": x}, model="small")
        return begin, time.monotonic()

    for number in range(rounds):
        begin, end = cold(2 * number + 2)
        found["alone_s"].append(end - begin)
        span: list[float] = []

        def beside(number: int = 2 * number + 3, span: list[float] = span) -> None:
            time.sleep(1.2 * seconds)
            span.extend(cold(number))

        asking = threading.Thread(target=beside)
        asking.start()
        calls, _ = crowd.stretch(server, LOADS[0], CROWD, 8 * seconds)
        asking.join()
        begin, end = span[0], min(span[1], float(calls[:, 0].max()))
        found["cold_s"].append(span[1] - span[0])
        found["before"].append(warm_rate(calls, begin - seconds, begin))
        found["meanwhile"].append(warm_rate(calls, begin, end))
    return found


def measure(
    numbers: Sequence[int], rounds: int, seconds: float
) -> tuple[dict[tuple[str, int, str], Measured], dict[str, list[float]], Times]:
    """Steady load, load beside a compilation, and health."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(Server(max_batch=most)) for name, most in SERVERS.items()}
        for server in servers.values():
            client = stack.enter_context(nablad.Client(server.url))
            for load in LOADS:
                architecture = {"preset": "mlp", "sizes": list(load.widths), "activation": "tanh"}
                client.create_model(load.model, architecture)
                load.ask(client)
        callers = stack.enter_context(crowd(LOADS, max(CALLERS)))
        found = steady(callers, servers, numbers, rounds, seconds)
        beside = beside_a_compilation(callers, servers[BATCHED], rounds, seconds)
        return found, beside, Times.of(callers.health)


def slowdown(beside: dict[str, list[float]]) -> float:
    """How much longer warm calls take while a new program compiles."""
    return float(np.median(np.array(beside["before"]) / np.array(beside["meanwhile"])))


def goals(
    found: dict[tuple[str, int, str], Measured], beside: dict[str, list[float]], health: Times
) -> list[Goal]:
    """What the issue of serving asks for."""
    most, goals = max(CALLERS), []
    for load in LOADS:
        batched = found[load.model, most, BATCHED]
        gain = batched.rate / found[load.model, most, ALONE].rate
        goals.append(Goal(f"{load.words}, {most} callers, batched over one by one", gain, GAIN, "x", True))
        tail = batched.times.p99 / batched.times.p50
        goals.append(Goal(f"{load.words}, {most} callers, p99 over p50", tail, TAIL, "x"))
    during = f"time of a warm call beside a cold compilation, {CROWD} callers"
    return [
        *goals,
        Goal(during, slowdown(beside), SLOWER, "x"),
        Goal("slowest answer about health", health.highest, HEALTHY_MS, " ms"),
    ]


def report(
    found: dict[tuple[str, int, str], Measured],
    beside: dict[str, list[float]],
    health: Times,
    plan: tuple[int, float],
) -> Report:
    """Tables, goals, plot."""
    words = {load.model: load.words for load in LOADS}
    rows = []
    for (model, callers, name), one in found.items():
        gain = f"{one.rate / found[model, callers, ALONE].rate:.2f}" if name == BATCHED else ""
        figures = [f"{one.rate:.0f}", gain, f"{one.times.p50:.2f}", f"{one.times.p99:.2f}", str(one.failed)]
        own = [f"{spent:.0f}" for spent in one.microseconds.values()]
        rows.append([words[model], str(callers), name, *figures, *own])
    head = ["program", "callers", "server", "requests/s", "gain", "p50 ms", "p99 ms", "failed"]
    head += ["server's us", "caller's us"]
    cold = [
        [f"{alone:.2f}", f"{one:.2f}", f"{before:.0f}", f"{meanwhile:.0f}", f"{before / meanwhile:.2f}"]
        for alone, one, before, meanwhile in zip(*beside.values(), strict=True)
    ]
    cold_head = [
        "cold call alone, s",
        "cold call, s",
        "requests/s before",
        "requests/s meanwhile",
        "time of a call",
    ]
    rest = f"Health was asked {health.count} times: p50 {health.p50:.2f} ms, p99 {health.p99:.2f} ms."

    def draw(figure: Any) -> None:
        figure.set_size_inches(10, 4)
        for axes, load in zip(figure.subplots(1, len(LOADS)), LOADS, strict=True):
            for name, colour in ((BATCHED, BLUE), (ALONE, GREY)):
                rates = [
                    one.rate for (model, _, by), one in found.items() if (model, by) == (load.model, name)
                ]
                if rates:
                    axes.plot(CALLERS, rates, "o-", color=colour, label=name)
            axes.set(title=load.words, xlabel="callers", xscale="log", yscale="log", xticks=CALLERS)
            axes.set_xticklabels(CALLERS)
            axes.grid(which="both", alpha=0.25)
            axes.legend(frameon=False)
        figure.axes[0].set_ylabel("requests a second")

    return Report(
        "throughput",
        "Many callers",
        METHOD.format(rounds=plan[0], seconds=plan[1], crowd=CROWD),
        f"{table(head, rows)}\n\n### Beside a cold compilation\n\n{table(cold_head, cold)}\n\n{rest}",
        goals(found, beside, health),
        {
            "steady": [
                {"program": model, "callers": callers, "server": name, **one.document()}
                for (model, callers, name), one in found.items()
            ],
            "cold": beside,
            "health_ms": asdict(health),
        },
        draw,
        "Requests a second by number of callers",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    chosen = parser(__doc__).parse_args(arguments)
    numbers = (1, max(CALLERS)) if chosen.quick else CALLERS
    plan = (1, 0.25) if chosen.quick else (5, 2.0)
    with ready_to_measure() as publish:
        found, beside, health = measure(numbers, *plan)
        return publish(chosen, report(found, beside, health, plan))


if __name__ == "__main__":
    sys.exit(main())
