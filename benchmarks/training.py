"""A physics-informed network trained for 2,000 steps: in process, by loops around a client, on the server.

    python benchmarks/training.py              # tables, docs/benchmarks/training.md, a plot
    python benchmarks/training.py --quick      # few steps, nothing written
    python benchmarks/training.py --json FILE  # the figures as JSON too

The optimiser in process is optax's: pip install "nablad[dev]".
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import burgers
import httpx
import jax
import numpy as np
import optax
from adam import BETA1, BETA2, EPSILON, RATE, Adam
from measuring import Disagreement
from pages import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Goal, Report, parser, ready_to_measure, table
from processes import Server

import nablad
from nablad.handles import Handle
from nablad.messages import GradientRequest
from nablad_service.engine.engine import Engine
from nablad_service.hosting import ModelStore
from nablad_service.query import Query
from nablad_service.requests.validation import gradient_query

IN_PROCESS, ENGINE = "in process, JAX and optax", "in process, the engine"
RESIDENT, SENT = "Client, points resident", "Client, points sent"
SESSION, LOOP = "session", "/v1/train"
Ask = Callable[[dict[str, Any]], tuple[float, Mapping[str, Any]]]
"""Gives value and gradient at some parameters."""
COLOURS = {IN_PROCESS: GREY, ENGINE: GREEN, RESIDENT: BLUE, SENT: ORANGE, SESSION: RED, LOOP: PURPLE}
OF_IN_PROCESS = {RESIDENT: 1.5, SESSION: 1.15, LOOP: 1.05}
"""Goals: at most so many times what it takes in process."""
OPTIMISER = {"name": "adam", "learning_rate": RATE, "b1": BETA1, "b2": BETA2, "eps": EPSILON}
SAME_FOR, SAME = 50, 1e-3
"""Steps for which the losses of all must agree, and to what part; rounding grows from then on."""

METHOD = """Burgers' equation by a network of {depth} hidden layers of {width}, trained with Adam for
{steps} steps in float32 from the same parameters, at {sizes} points. All take their steps in turn,
{block} at a time, in one run.

*JAX and optax* is what one writes in process: `jax.grad` inside `jax.grad` under `vmap`, loss, gradient
and update in one compiled step, nothing waited for until {block} steps are done. The *Client* loops send
the parameters at every step, receive the gradient and update in NumPy, on one vector: the same Adam.
*Resident* points are put on the server once, *sent* ones travel at every step. *The engine* is the
service's compiled program called directly, with the same Adam in NumPy: the difference to a client is the
wire, the difference to JAX is the differentiation. In a *session* the parameters stay on the server, and
the loop asks for gradient and step, in one call, without waiting for the answers until {block} steps are
done. */v1/train* is the whole loop on the server, {block} steps a run: each run goes on from the save of
the one before, and its time includes that. Programs keep the plan of the static rules: tuning is off.
*Moved* are the bytes of bodies in both directions, as the server counts them."""


@dataclass
class Training:
    """One way to train: `steps` takes so many and gives their losses."""

    steps: Callable[[int], list[float]]
    seconds: list[float] = field(default_factory=list)
    """Of each block."""
    losses: list[float] = field(default_factory=list)
    moved: int = 0
    """Bytes, of all steps."""


def in_process(params: dict[str, Any], points: dict[str, Any]) -> Training:
    """One compiled step of everything."""
    optimiser = optax.adam(RATE, b1=BETA1, b2=BETA2, eps=EPSILON)

    @jax.jit
    def step(params: Any, state: Any, points: Any) -> Any:
        value, gradient = jax.value_and_grad(burgers.loss)(params, points)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    given, at = jax.device_put(points), jax.device_put(params)
    now = [at, optimiser.init(at)]
    # Twice: what a step gives is compiled for anew.
    jax.block_until_ready(step(*step(*now, given)[:2], given))

    def steps(count: int) -> list[float]:
        values = []
        for _ in range(count):
            now[0], now[1], value = step(*now, given)
            values.append(value)
        return [float(value) for value in jax.block_until_ready(values)]

    return Training(steps)


def looped(
    params: dict[str, Any], ask: Callable[[dict[str, Any]], tuple[float, Mapping[str, Any]]]
) -> Training:
    """A loop that asks for value and gradient at each step."""
    adam = Adam(params)
    ask(adam.params)

    def steps(count: int) -> list[float]:
        values = []
        for _ in range(count):
            value, gradient = ask(adam.params)
            adam.step(gradient)
            values.append(value)
        return values

    return Training(steps)


def engine(params: dict[str, Any], points: dict[str, Any], architecture: Any) -> Training:
    """The service's program without the service."""
    started, models = Engine.start(), ModelStore(max_models=1)
    models.put("net", architecture, None, None, 0)

    def query(params: dict[str, Any]) -> Query:
        binding: Any = {"name": "net", "params": params}
        request = GradientRequest(loss=burgers.PROGRAM, models={"model": binding}, inputs=points)
        return gradient_query(request, models.get)

    first = query(params)
    executable = started.compile(started.trace(first))

    def ask(params: dict[str, Any]) -> tuple[float, Mapping[str, Any]]:
        found = executable.run(Query(**{**vars(first), "params": {"model": params}}))
        return float(found["value"]), found["gradients"]["params"]

    return looped(params, ask)


def asked(client: nablad.Client, points: Mapping[str, Any]) -> Ask:
    """The service, by a client."""

    def ask(params: dict[str, Any]) -> tuple[float, Mapping[str, Any]]:
        found = client.gradient(burgers.PROGRAM, inputs=points, model="net", params=params)
        return found.value, found.gradients["params"]

    return ask


def session(client: nablad.Client, points: Mapping[str, Handle], stack: ExitStack) -> Training:
    """A session of the service, and the loop here."""

    def steps(on: nablad.Session, count: int) -> list[float]:
        pending = [on.gradient(burgers.PROGRAM, inputs=points, step=True) for _ in range(count)]
        return [one.result().value for one in pending]

    with client.session(optimiser=OPTIMISER, model="net") as another:
        steps(another, 2)  # what is compiled for one session is there for all
    trained = stack.enter_context(client.session(optimiser=OPTIMISER, model="net"))
    return Training(lambda count: steps(trained, count))


def loop(client: nablad.Client, points: Mapping[str, Handle]) -> Training:
    """A loop of the service's own."""
    taken = [0]

    def run(count: int, name: str) -> list[float]:
        before, taken[0] = taken[0], taken[0] + count
        return [
            report.value
            for report in client.train(
                burgers.PROGRAM,
                model="net",
                inputs=points,
                optimiser=OPTIMISER,
                steps=taken[0],
                report_every=1,
                name=name,
                resume=before > 0,
                progress=False,
            )
        ]

    run(2, "compiled")
    taken[0] = 0
    return Training(lambda count: run(count, "burgers"))


def bodies(url: str) -> int:
    """Bytes of the bodies that a server has received and sent so far."""
    text = httpx.get(f"{url}/metrics").text
    found = re.findall(r"^nablad_(?:received|sent)_bytes_total (\S+)", text, re.MULTILINE)
    return sum(int(float(one)) for one in found)


def measure(count: int, width: int, depth: int, steps: int, block: int) -> dict[str, Training]:
    """All ways, in turn, at so many points."""
    Engine.start()  # before anything is compiled: it allows 64-bit types, and JAX compiles anew
    params, points = burgers.drawn(width, depth), burgers.points(count)
    architecture = burgers.architecture(width, depth)
    with ExitStack() as stack:
        saves = stack.enter_context(TemporaryDirectory(prefix="nablad-"))
        server = stack.enter_context(Server(checkpoints=saves))
        client = stack.enter_context(nablad.Client(server.url))
        client.create_model("net", architecture, params)
        resident = {name: client.put(one) for name, one in points.items()}
        found = {
            IN_PROCESS: in_process(params, points),
            ENGINE: engine(params, points, architecture),
            SENT: looped(params, asked(client, points)),
            RESIDENT: looped(params, asked(client, resident)),
            SESSION: session(client, resident, stack),
            LOOP: loop(client, resident),
        }
        names = list(found)
        for number in range(steps // block):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                before = bodies(server.url)
                started = time.perf_counter()
                found[name].losses += found[name].steps(block)
                found[name].seconds.append(time.perf_counter() - started)
                found[name].moved += bodies(server.url) - before
    expected = np.array(found[IN_PROCESS].losses[:SAME_FOR])
    for name, one in found.items():
        off = float(np.max(np.abs(np.array(one.losses[:SAME_FOR]) / expected - 1)))
        if not off <= SAME:
            raise Disagreement(f"{name}: the loss is off by {off:.3g} within {SAME_FOR} steps")
    return {name: found[name] for name in COLOURS}


def shown(count: int, found: dict[str, Training], block: int) -> str:
    """A table of one number of points: times, and losses along the way."""
    here, steps = sum(found[IN_PROCESS].seconds), len(found[IN_PROCESS].losses)
    at = sorted({0, steps // 20, steps // 4, steps // 2, steps - 1})
    rows = []
    for name, one in found.items():
        total, p50 = sum(one.seconds), float(np.median(one.seconds)) / block * 1e3
        losses = [f"{one.losses[step]:.5g}" for step in at]
        moved = f"{one.moved / steps:,.0f}"
        rows.append([name, f"{total:.2f}", f"{p50:.3f}", f"{total / here:.2f}", moved, *losses])
    head = ["way", "seconds", "p50 of a step, ms", "of in process", "bytes moved a step"]
    head += [f"loss at {step}" for step in at]
    return f"### {count:,} points\n\n{table(head, rows)}"


def report(found: dict[int, dict[str, Training]], width: int, depth: int, block: int) -> Report:
    """Tables, goals, plot."""
    goals = []
    for count, ways in found.items():
        for name, most in OF_IN_PROCESS.items():
            ratio = sum(ways[name].seconds) / sum(ways[IN_PROCESS].seconds)
            goals.append(Goal(f"{name}, {count:,} points, over in process", ratio, most, "x"))
    steps = len(next(iter(found.values()))[IN_PROCESS].losses)

    def draw(figure: Any) -> None:
        figure.set_size_inches(10, 4)
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for axes, (count, ways) in zip(panels, found.items(), strict=True):
            for name, one in ways.items():
                axes.plot(
                    np.cumsum(one.seconds), one.losses[block - 1 :: block], color=COLOURS[name], label=name
                )
            axes.set(title=f"{count:,} points", xlabel="seconds", yscale="log")
            axes.grid(which="both", alpha=0.25)
        panels[0].set_ylabel("loss")
        panels[-1].legend(frameon=False)

    sizes = " and at ".join(f"{count:,}" for count in found)
    return Report(
        "training",
        "Training a network, remote and in process",
        METHOD.format(width=width, depth=depth, steps=steps, sizes=sizes, block=block),
        "\n\n".join(shown(count, ways, block) for count, ways in found.items()),
        goals,
        {
            "points": {
                count: {
                    name: {
                        "seconds": sum(one.seconds),
                        "bytes_a_step": one.moved / len(one.losses),
                        "losses": one.losses,
                    }
                    for name, one in ways.items()
                }
                for count, ways in found.items()
            }
        },
        draw,
        "Loss over time",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    chosen = parser(__doc__).parse_args(arguments)
    sizes, steps, block = ((64,), 60, 10) if chosen.quick else ((4096, 512), 2000, 250)
    width, depth = (8, 2) if chosen.quick else (20, 4)
    with ready_to_measure() as publish:
        found = {count: measure(count, width, depth, steps, block) for count in sizes}
        return publish(chosen, report(found, width, depth, block))


if __name__ == "__main__":
    sys.exit(main())
