"""What the engine makes of nested derivatives, beside the nesting that is written by hand in JAX.

    python benchmarks/nested_ad.py              # every row: a table, docs/benchmarks/nested_ad.md, a plot
    python benchmarks/nested_ad.py --quick      # small sizes, few rounds, nothing written
    python benchmarks/nested_ad.py --json FILE  # rows as JSON too
    python benchmarks/nested_ad.py --rows conv  # only the rows whose names hold a word

Each row is a loss that holds inner derivatives; its value and its gradient in the parameters are computed by

    naive      jax.grad, jacobian (which is jacrev), hessian and vmap, one inside the other, under jit
    variants   every way that the engine knows for the program
    auto       the variant that the server's tuner picks: pruned by costs, timed in two rounds

all compiled beforehand, in one process, in turn. Naive code and engine call the same model function, so what
differs is the differentiation. All results must agree, else there is no page.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import Clock, machine, platform

from nablad.messages import GradientRequest
from nablad_service.engine.costs import Cost, cost
from nablad_service.engine.engine import Engine
from nablad_service.engine.executable import Executable
from nablad_service.engine.plan import Plan
from nablad_service.engine.planner import (
    EXAMPLES,
    Choices,
    Variant,
    chunk_sizes,
)
from nablad_service.engine.race import RUNS, RUNS_AT_LAST, Result, Round, race
from nablad_service.engine.timing import SHORT, steady
from nablad_service.hosting import ModelStore
from nablad_service.query import Query, arguments
from nablad_service.requests.validation import gradient_query

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
TOLERANCE = 1e-4
"""Of the loss, and of the largest entry of the gradient, in float32."""
TIE = 0.15
"""Ratios this close to 1 are no difference."""
TOO_SLOW = 10.0
"""Times the fastest at which a variant gets no more rounds than those that warm it up."""
TOO_LARGE = 4 * 2**30
"""Bytes by count beyond which a variant is not run."""

Function = Callable[..., Any]


# -- the rows


@dataclass(frozen=True)
class Row:
    """A loss as a program and as `by_hand(f, p, **inputs)`, with f(p, x) the model."""

    name: str
    architecture: Mapping[str, Any]
    program: str
    inputs: Mapping[str, tuple[int, ...] | None]
    """Shapes; None is a tree like the parameters. Signs where the name begins with v, else normal."""
    by_hand: Function
    train: bool = False


def mlp(*sizes: int, activation: str = "tanh") -> dict[str, Any]:
    return {"preset": "mlp", "sizes": list(sizes), "activation": activation}


def conv_net(pixels: int, channels: int) -> dict[str, Any]:
    return {
        "layers": [
            {"conv": [3, channels, 3], "padding": "same", "activation": "tanh"},
            {"conv": [channels, channels, 3], "padding": "same", "activation": "tanh"},
            {"flatten": True},
            {"dense": [channels * pixels**2, 1]},
        ]
    }


def transformer(size: int) -> dict[str, Any]:
    attend = {"residual": [{"layernorm": size}, {"attention": {"heads": 4, "size": size}}]}
    think = [{"dense": [size, 4 * size], "activation": "gelu"}, {"dense": [4 * size, size]}]
    block = [attend, {"residual": [{"layernorm": size}, *think]}]
    return {"layers": [*block, *block, {"mean": 0}, {"dense": [size, 1]}]}


def norms(width: int) -> dict[str, Any]:
    first = {"dense": [8, width], "activation": "tanh"}
    return {"layers": [first, {"batchnorm": width}, {"dense": [width, 8]}]}


PENALTY = "g = grad(sum(model(x)), x)\nmean((sqrt(sum(g**2, axis={axes}) + 1e-6) - 1)**2)"
BATCHED = "mean(batched_jacobian(model(x), x)**2)"
JACOBIAN = "mean(jacobian(model(x), x)**2)"
PRODUCT = "fit = mean(model(x)**2)\nsum(hvp(fit, x, v)**2)"
CURVATURE = "fit = mean(model(x)**2)\nsum(v * hvp(fit, x, v))"
FIELD = "t = points[:, 0]\nx = points[:, 1]\nu = model(stack([t, x], axis=1))[:, 0]\n"
SECOND = FIELD + "mean(d(u, x, x)**2)"
FOURTH = FIELD + "mean(d(u, x, x, x, x)**2)"
KDV = FIELD + "mean((d(u, t) + 6 * u * d(u, x) + d(u, x, x, x))**2)"
LAPLACIAN = "u = model(x)[:, 0]\nmean((laplacian(u, x) + u)**2)"
HUTCHINSON = "mean(hutchinson_trace(model(x), x, v)**2)"
DIVERGENCE = "mean(divergence(model(x), x)**2)"
NORM = "mean(sum(jacobian(model(x)[:, 0], model.params)**2, axis=1))"
KERNEL_DIAGONAL = """def entry(x):
    return norm(grad(model(x)[0], model.params))**2
mean(vmap(entry)(x)**2)"""
KERNEL = "J = jacobian(model(x)[:, 0], model.params)\nmean((J @ J.T)**2)"
TRACE = (
    "fit = mean((model(x) - y)**2)\nfit + 0.01 * hutchinson_trace(grad(fit, model.params), model.params, v)"
)
SCORE = "s = model(x)\nmean(divergence(s, x) + 0.5 * sum(s**2, axis=1))"
SLICED = "s = model(x)\nmean(sum(v * vjp(s, x, v), axis=1) + 0.5 * sum(v * s, axis=1)**2)"
FORCES = "e = model(x)\nf = -grad(sum(e), x)\nmean((e - energy)**2) + mean((f - force)**2)"
MAML = """def loss(p, x, y):
    return mean((model(x, params=p) - y)**2)
adapted = model.params - 0.1 * grad(loss(model.params, x, y), model.params)
loss(adapted, xq, yq)"""


def rows(n: int, width: int) -> list[Row]:
    """All rows, for n examples and networks of a width."""
    few, pixels, channels, places = max(n // 8, 2), 12, max(width // 4, 2), 16
    fewer = max(n // 32, 2)
    size = max(width // 2, 4)
    images, sequences = (few, 3, pixels, pixels), (few, places, size)
    scalar, field = mlp(8, width, width, 1), mlp(2, width, width, 1)
    small = mlp(4, width // 2, width // 2, 1)
    conv, attention = conv_net(pixels, channels), transformer(size)
    flow, twice = mlp(16, width, width, 16), {"x": images, "v": images}
    potential = {"preset": "potential", "sizes": [12, width, width, 1]}
    pairs = {"x": (few, 4), "y": (few, 1), "xq": (few, 4), "yq": (few, 1)}
    return [
        Row("gradient penalty, MLP", scalar, PENALTY.format(axes=1), {"x": (n, 8)}, penalty),
        Row("gradient penalty, conv", conv, PENALTY.format(axes=(1, 2, 3)), {"x": images}, penalty),
        Row(
            "gradient penalty, transformer", attention, PENALTY.format(axes=(1, 2)), {"x": sequences}, penalty
        ),
        Row("batched Jacobian, 3 to 32", mlp(3, width, width, 32), BATCHED, {"x": (n, 3)}, batched),
        Row("batched Jacobian, 32 to 3", mlp(32, width, width, 3), BATCHED, {"x": (n, 32)}, batched),
        Row("batched Jacobian, 8 to 8", mlp(8, width, width, 8), BATCHED, {"x": (n, 8)}, batched),
        Row("Jacobian, batchnorm in train mode", norms(width), JACOBIAN, {"x": (fewer, 8)}, jacobian, True),
        Row("HVP, MLP", scalar, PRODUCT, {"x": (n, 8), "v": (n, 8)}, hvp_squared),
        Row("HVP, conv", conv, PRODUCT, twice, hvp_squared),
        Row("d/dparams of v'Hv, MLP", scalar, CURVATURE, {"x": (n, 8), "v": (n, 8)}, curvature),
        Row("d/dparams of v'Hv, conv", conv, CURVATURE, twice, curvature),
        Row("u_xx", field, SECOND, {"points": (n, 2)}, second),
        Row("u_xxxx", field, FOURTH, {"points": (n, 2)}, fourth),
        Row("KdV", field, KDV, {"points": (n, 2)}, kdv),
        *(
            Row(f"Laplacian, d = {d}", mlp(d, width, width, 1), LAPLACIAN, {"x": (n, d)}, laplacian)
            for d in (2, 10, 64)
        ),
        Row("Hutchinson, 1 probe", flow, HUTCHINSON, {"x": (n, 16), "v": (n, 16)}, hutchinson_one),
        Row("Hutchinson, 16 probes", flow, HUTCHINSON, {"x": (n, 16), "v": (16, n, 16)}, hutchinson_many),
        Row("divergence, d = 8", mlp(8, width, width, 8), DIVERGENCE, {"x": (n, 8)}, divergence),
        Row("parameter Jacobian norm", small, NORM, {"x": (few, 4)}, parameter_norm),
        Row("NTK, diagonal", small, KERNEL_DIAGONAL, {"x": (few, 4)}, kernel_diagonal),
        Row("NTK, Gram matrix", small, KERNEL, {"x": (few, 4)}, kernel),
        Row("Hessian trace in the parameters", small, TRACE, {**pairs_of(n), "v": None}, hessian_trace),
        Row("score matching", mlp(8, width, width, 8), SCORE, {"x": (n, 8)}, score_matching),
        Row("sliced score matching", flow, SLICED, {"x": (n, 16), "v": (n, 16)}, sliced),
        Row(
            "energies and forces", potential, FORCES, {"x": (n, 12), "energy": (n,), "force": (n, 12)}, forces
        ),
        Row("MAML step", small, MAML, pairs, maml),
    ]


def pairs_of(n: int) -> dict[str, tuple[int, ...]]:
    return {"x": (n, 4), "y": (n, 1)}


# -- the same losses, by hand


def each(function: Function, *xs: Any) -> Any:
    return jax.vmap(function)(*xs)


def penalty(f: Function, p: Any, x: Any) -> Any:
    g = each(jax.grad(lambda x: f(p, x)[0]), x)
    return jnp.mean((jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) + 1e-6) - 1) ** 2)


def batched(f: Function, p: Any, x: Any) -> Any:
    return jnp.mean(each(jax.jacobian(partial(f, p)), x) ** 2)


def jacobian(f: Function, p: Any, x: Any) -> Any:
    return jnp.mean(jax.jacobian(partial(f, p))(x) ** 2)


def hvp(function: Function, x: Any, v: Any) -> Any:
    return jax.grad(lambda x: jnp.vdot(jax.grad(function)(x), v))(x)


def hvp_squared(f: Function, p: Any, x: Any, v: Any) -> Any:
    return jnp.sum(hvp(lambda x: jnp.mean(f(p, x) ** 2), x, v) ** 2)


def curvature(f: Function, p: Any, x: Any, v: Any) -> Any:
    return jnp.vdot(v, hvp(lambda x: jnp.mean(f(p, x) ** 2), x, v))


def field(f: Function, p: Any) -> Function:
    return lambda t, x: f(p, jnp.stack([t, x]))[0]


def second(f: Function, p: Any, points: Any) -> Any:
    u_xx = jax.grad(jax.grad(field(f, p), 1), 1)
    return jnp.mean(each(u_xx, *points.T) ** 2)


def fourth(f: Function, p: Any, points: Any) -> Any:
    u_xxxx = field(f, p)
    for _ in range(4):
        u_xxxx = jax.grad(u_xxxx, 1)
    return jnp.mean(each(u_xxxx, *points.T) ** 2)


def kdv(f: Function, p: Any, points: Any) -> Any:
    u = field(f, p)
    u_t, u_x = jax.grad(u, 0), jax.grad(u, 1)
    u_xxx = jax.grad(jax.grad(u_x, 1), 1)
    residual = each(lambda t, x: u_t(t, x) + 6 * u(t, x) * u_x(t, x) + u_xxx(t, x), *points.T)
    return jnp.mean(residual**2)


def laplacian(f: Function, p: Any, x: Any) -> Any:
    def u(x: Any) -> Any:
        return f(p, x)[0]

    return jnp.mean(each(lambda x: jnp.trace(jax.hessian(u)(x)) + u(x), x) ** 2)


def quadratic(f: Function, p: Any, x: Any, v: Any) -> Any:
    """v'Jv of one example."""
    return jnp.vdot(v, jax.jvp(partial(f, p), (x,), (v,))[1])


def hutchinson_one(f: Function, p: Any, x: Any, v: Any) -> Any:
    return jnp.mean(each(partial(quadratic, f, p), x, v) ** 2)


def hutchinson_many(f: Function, p: Any, x: Any, v: Any) -> Any:
    estimates = each(lambda v: each(partial(quadratic, f, p), x, v), v)
    return jnp.mean(jnp.mean(estimates, axis=0) ** 2)


def trace(f: Function, p: Any, x: Any) -> Any:
    """The trace of the Jacobian of one example."""
    return jnp.trace(jax.jacobian(partial(f, p))(x))


def divergence(f: Function, p: Any, x: Any) -> Any:
    return jnp.mean(each(partial(trace, f, p), x) ** 2)


def parameter_norm(f: Function, p: Any, x: Any) -> Any:
    J = jax.jacobian(lambda p: f(p, x)[:, 0])(p)
    return sum(jnp.sum(leaf**2) for leaf in J.values()) / len(x)


def kernel_diagonal(f: Function, p: Any, x: Any) -> Any:
    g = jax.vmap(jax.grad(lambda p, x: f(p, x)[0]), (None, 0))(p, x)
    diagonal = sum(jnp.sum(leaf.reshape(len(x), -1) ** 2, axis=1) for leaf in g.values())
    return jnp.mean(diagonal**2)


def kernel(f: Function, p: Any, x: Any) -> Any:
    J = jax.jacobian(lambda p: f(p, x)[:, 0])(p)
    flat = jnp.concatenate([leaf.reshape(len(x), -1) for leaf in J.values()], axis=1)
    return jnp.mean((flat @ flat.T) ** 2)


def inner(a: Any, b: Any) -> Any:
    return sum(jnp.vdot(a[name], b[name]) for name in a)


def hessian_trace(f: Function, p: Any, x: Any, y: Any, v: Any) -> Any:
    def fit(p: Any) -> Any:
        return jnp.mean((f(p, x) - y) ** 2)

    Hv = jax.grad(lambda p: inner(jax.grad(fit)(p), v))(p)
    return fit(p) + 0.01 * inner(v, Hv)


def score_matching(f: Function, p: Any, x: Any) -> Any:
    return jnp.mean(each(lambda x: trace(f, p, x) + 0.5 * jnp.sum(f(p, x) ** 2), x))


def sliced(f: Function, p: Any, x: Any, v: Any) -> Any:
    def one(x: Any, v: Any) -> Any:
        s, pull = jax.vjp(partial(f, p), x)
        return jnp.vdot(v, pull(v)[0]) + 0.5 * jnp.vdot(v, s) ** 2

    return jnp.mean(each(one, x, v))


def forces(f: Function, p: Any, x: Any, energy: Any, force: Any) -> Any:
    e, slope = each(jax.value_and_grad(partial(f, p)), x)
    return jnp.mean((e - energy) ** 2) + jnp.mean((-slope - force) ** 2)


def maml(f: Function, p: Any, x: Any, y: Any, xq: Any, yq: Any) -> Any:
    def loss(p: Any, x: Any, y: Any) -> Any:
        return jnp.mean((f(p, x) - y) ** 2)

    adapted = jax.tree.map(lambda p, g: p - 0.1 * g, p, jax.grad(loss)(p, x, y))
    return loss(adapted, xq, yq)


# -- one row


class Disagreement(Exception):
    """A variant computes something else than the code by hand."""


@dataclass(frozen=True)
class Outcome:
    """What was found for a row: medians, names of variants, counts."""

    row: str
    naive_ms: float
    default_ms: float
    auto_ms: float
    best_ms: float
    best: str
    auto: str
    naive_flops: float
    auto_flops: float
    naive_peak_bytes: int
    auto_peak_bytes: int
    variants: int
    """Different ones that were run."""
    left_out: int
    """Different ones that were not: too large."""
    naive_loss: float
    auto_loss: float

    @property
    def speed(self) -> float:
        """Time of auto in times that of naive: below 1 is faster."""
        return self.auto_ms / self.naive_ms

    @property
    def regret(self) -> float:
        """Time of auto in times that of the best variant."""
        return self.auto_ms / self.best_ms

    def document(self) -> dict[str, Any]:
        """The row as it stands in a JSON file."""
        inside = ("default_ms", "variants", "left_out", "naive_loss", "auto_loss")
        return {name: value for name, value in asdict(self).items() if name not in inside}


def asked(row: Row) -> Query:
    """The row as a query, with its model hosted and its data drawn."""
    models = ModelStore(max_models=1)
    params = models.put("net", dict(row.architecture), None, None, 0).params
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> Any:
        drawn = rng.choice([-1.0, 1.0], shape) if name.startswith("v") else rng.standard_normal(shape)
        return np.asarray(drawn, "float32")

    inputs = {
        name: {leaf: draw(name, array.shape) for leaf, array in params.items()}
        if shape is None
        else draw(name, shape)
        for name, shape in row.inputs.items()
    }
    binding: Any = {"name": "net", "mode": "train" if row.train else "eval"}
    request = GradientRequest(loss=row.program, models={"model": binding}, inputs=inputs)
    return gradient_query(request, models.get)


def naive(row: Row, query: Query) -> tuple[Any, Cost]:
    """The loss by hand with its gradient, compiled, and what it costs by count."""
    model = query.models["model"]

    def compute(given: Any) -> tuple[Any, Any]:
        state = given["state"].get("model", {})

        def f(p: Any, x: Any) -> Any:
            return model.apply(p, state, x, train=row.train)[0]

        return jax.value_and_grad(lambda p: row.by_hand(f, p, **given["inputs"]))(given["params"]["model"])

    traced = jax.jit(compute).trace(arguments(query))
    return traced.lower().compile(), cost(traced.jaxpr)


def label(choices: Sequence[tuple[int, str]], plan: Plan) -> str:
    """What a variant does other than the default, in words."""
    planned = {one.node: one for one in plan.derivatives}
    words = [
        f"{name} examples at a time"
        if node == EXAMPLES
        else f"{planned[node].operator} of order {planned[node].order}: {name}"
        for node, name in sorted(choices, reverse=True)
    ]
    return ", ".join(words) or "default"


class Variants:
    """All variants of a program that were looked at, compiled and compared with the code by hand."""

    def __init__(self, engine: Engine, query: Query, compare: Callable[[str, Any], None]) -> None:
        self.engine, self.query, self._compare = engine, query, compare
        self.found = engine.variants(query)
        self.looked_at = len(self.found)
        """Of these the planner counts the costs; the others are there to be compared."""
        self.compiled: dict[int, Executable] = {}
        self.losses: dict[int, float] = {}

    def all(self) -> None:
        """Compile each strategy for all examples and in chunks; those that are too large are left out."""
        number = self.engine.examples(self.query)
        sizes = chunk_sizes(self.found[0].cost.peak_bytes, number) if number else ()
        for one in self.found[: self.looked_at]:
            for size in sizes:
                self.position({**one.strategies, EXAMPLES: str(size)})
        for index, one in enumerate(self.found):
            if one.same_as is None and (not index or one.cost.peak_bytes <= TOO_LARGE):
                self.executable(index)

    def position(self, choices: Choices) -> int | None:
        """Where the variant of some choices is; None where it cannot be traced."""
        wanted = tuple(sorted(choices.items()))
        for index, one in enumerate(self.found):
            if one.choices == wanted:
                return index
        self.found += self.engine.counted(self.query, [dict(choices)])
        return len(self.found) - 1 if self.found[-1].choices == wanted else None

    def executable(self, index: int) -> Executable:
        """The variant at a position, compiled."""
        if index not in self.compiled:
            choices = self.found[index].choices
            executable = self.engine.compile(self.engine.trace(self.query, dict(choices)))
            answer = executable.run(self.query)
            self.compiled[index] = executable
            self._compare(label(choices, self.compiled[0].plan), answer)
            self.losses[index] = float(answer["value"])
        return self.compiled[index]

    def tuned(self) -> int:
        """The variant that the server's tuner (`nablad_service.planning.tuning`) would choose."""
        contest = race(self.found, self._counted, self.engine.examples(self.query))
        try:
            _, asked = next(contest)
            while True:
                _, asked = contest.send(self._times(asked))
        except StopIteration as end:
            result: Result = end.value
            return result.chosen

    def _counted(self, trials: Sequence[Choices]) -> list[Variant]:
        more = self.engine.counted(self.query, trials)
        self.found += more
        return more

    def _times(self, asked: Round) -> dict[int, float]:
        timing = asked.timing()
        index = next(timing)
        try:
            while True:
                index = timing.send(steady(partial(self.executable(index).run, self.query)))
        except StopIteration as end:
            medians: dict[int, float] = end.value
            return medians


NAIVE = -1
"""Stands among the positions of variants."""


def timed(
    programs: Mapping[int, Any], data: Any, rounds: int, seconds: float
) -> tuple[dict[int, float], dict[int, float]]:
    """Medians in milliseconds, the programs in turn, the answer ready on the device.

    The rounds end after so many seconds, with ten at least. Those of odd and of even rounds come apart: the
    least of many noisy times is too small, so the best is picked with the ones and shown with the others.
    """
    times: dict[int, list[float]] = {index: [] for index in programs}

    def run(index: int) -> None:
        times[index].append(steady(lambda: jax.block_until_ready(programs[index](data))) * 1e3)

    for _ in range(2):  # warms up
        for index in programs:
            run(index)
    limit = TOO_SLOW * min(runs[-1] for runs in times.values())
    racing = [index for index, runs in times.items() if index == NAIVE or min(runs) <= limit]
    for index in racing:
        times[index].clear()
    began = time.perf_counter()
    for turn in range(rounds):
        if turn >= 10 and time.perf_counter() - began > seconds:
            break
        for index in racing:
            run(index)
    odd = {index: statistics.median(runs[::2]) for index, runs in times.items()}
    return odd, {index: statistics.median(runs[1::2] or runs) for index, runs in times.items()}


def compare(what: str, found: Mapping[str, Any], loss: Any, gradient: Mapping[str, Any]) -> None:
    """Refuse a loss or a gradient that is not the one by hand.

    Raises:
        Disagreement: with the leaf that is farthest off.
    """
    value = float(found["value"])
    if not abs(value - float(loss)) <= TOLERANCE * abs(float(loss)):
        raise Disagreement(f"{what}: the loss is {value:.9g}, by hand {float(loss):.9g}")
    largest = max(float(np.abs(leaf).max(initial=0.0)) for leaf in gradient.values())
    given = found["gradients"]["params"]
    off = {name: float(np.abs(np.asarray(given[name]) - leaf).max()) for name, leaf in gradient.items()}
    worst = max(off, key=off.__getitem__)
    if not all(error <= TOLERANCE * largest for error in off.values()):  # NaN is no agreement
        detail = f"the gradient in {worst} is off by {off[worst]:.3g}, its largest entry is {largest:.3g}"
        raise Disagreement(f"{what}: {detail}")


def measure(row: Row, rounds: int, seconds: float, *, quick: bool = False) -> Outcome:
    """Compile, compare and time a row; `quick` only the variants that the tuner would run.

    Raises:
        Disagreement: where value or gradient of a variant are not those by hand.
    """
    engine, query = Engine.start(), asked(row)
    by_hand, naive_cost = naive(row, query)
    loss, gradient = jax.device_get(by_hand(arguments(query)))
    variants = Variants(
        engine, query, lambda name, answer: compare(f"{row.name}, {name}", answer, loss, gradient)
    )
    variants.executable(0)
    chosen = variants.tuned()
    if not quick:
        variants.all()
    found, compiled, plan = variants.found, variants.compiled, variants.compiled[0].plan
    programs = {NAIVE: by_hand, **{index: one.compiled for index, one in compiled.items()}}
    others, medians = timed(programs, jax.device_put(arguments(query)), rounds, seconds)
    best = min(compiled, key=others.__getitem__)
    return Outcome(
        row=row.name,
        naive_ms=medians[NAIVE],
        default_ms=medians[0],
        auto_ms=medians[chosen],
        best_ms=medians[best],
        best=label(found[best].choices, plan),
        auto=label(found[chosen].choices, plan),
        naive_flops=naive_cost.flops,
        auto_flops=found[chosen].cost.flops,
        naive_peak_bytes=naive_cost.peak_bytes,
        auto_peak_bytes=found[chosen].cost.peak_bytes,
        variants=len(compiled),
        left_out=sum(one.cost.peak_bytes > TOO_LARGE for one in found),
        naive_loss=float(loss),
        auto_loss=variants.losses[chosen],
    )


# -- what is shown


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table."""
    lines = [
        "| loss | naive ms | default ms | auto ms | best ms | auto / naive | best of n variants "
        "| regret of auto | Mflop naive, auto | peak MB naive, auto | loss naive, auto |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in outcomes:
        milliseconds = (one.naive_ms, one.default_ms, one.auto_ms, one.best_ms)
        times = " | ".join(f"{value:.2f}" for value in milliseconds)
        flops = f"{one.naive_flops / 1e6:.1f}, {one.auto_flops / 1e6:.1f}"
        peaks = f"{one.naive_peak_bytes / 1e6:.2f}, {one.auto_peak_bytes / 1e6:.2f}"
        losses = f"{one.naive_loss:.6g}, {one.auto_loss:.6g}"
        best = f"{one.best} ({one.variants})"
        ratios = f"{one.speed:.2f} | {best} | {one.regret:.2f}"
        lines.append(f"| {one.row} | {times} | {ratios} | {flops} | {peaks} | {losses} |")
    return "\n".join(lines)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def listed(outcomes: Sequence[Outcome], ratio: Callable[[Outcome], float]) -> str:
    return ", ".join(f"{one.row} ({ratio(one):.2f})" for one in outcomes)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Geometric means, and where the engine loses: to the code by hand, to its own best."""
    speeds = [one.speed for one in outcomes]
    default = [one.default_ms / one.naive_ms for one in outcomes]
    best = [one.best_ms / one.naive_ms for one in outcomes]
    faster = sum(ratio < 1 - TIE for ratio in speeds)
    slower = sorted((one for one in outcomes if one.speed > 1 + TIE), key=lambda one: -one.speed)
    ties = len(outcomes) - faster - len(slower)
    means = [geometric_mean(ratios) for ratios in (default, speeds, best)]
    bytes_alive = geometric_mean([one.auto_peak_bytes / one.naive_peak_bytes for one in outcomes])
    regrets = geometric_mean([one.regret for one in outcomes])
    worst = sorted(outcomes, key=lambda one: -one.regret)[:3]
    lines = [
        f"- Time in times that of the naive nesting, geometric means of {len(outcomes)} rows: "
        f"default {means[0]:.2f}, auto {means[1]:.2f}, best {means[2]:.2f}.",
        f"- Auto is faster than naive in {faster} rows, ties in {ties} (within {TIE:.0%}), "
        f"is slower in {len(slower)}{': ' if slower else ''}{listed(slower, lambda one: one.speed)}.",
        f"- Regret of auto, geometric mean {regrets:.2f}; the worst: "
        f"{listed(worst, lambda one: one.regret)}.",
    ]
    heavier = [one for one in outcomes if one.auto_peak_bytes > (1 + TIE) * one.naive_peak_bytes]
    more = listed(heavier, lambda one: one.auto_peak_bytes / one.naive_peak_bytes)
    lines.append(
        f"- Bytes alive at the peak of auto, by count: geometric mean {bytes_alive:.2f} of those of naive"
        f"{', but more in: ' if more else ''}{more}."
    )
    if left_out := sum(one.left_out for one in outcomes):
        gib = TOO_LARGE // 2**30
        lines.append(f"- Variants that were not run, since they count more than {gib} GiB: {left_out}.")
    return "\n".join(lines)


def page_of(kind: str) -> Path:
    """Where the page of a kind of device is kept."""
    return FOLDER / ("nested_ad.md" if kind == "cpu" else f"nested_ad_{kind}.md")


def beside() -> str:
    """Where the same was measured on another device."""
    other = "cpu" if platform() != "cpu" else "gpu"
    if page_of(other).exists():
        return f"The same on another device: [{other}]({page_of(other).name})."
    return f"No {other.upper()} was at hand; the program writes a page of its own there, beside this one."


def page(outcomes: Sequence[Outcome], rounds: int, others: str) -> str:
    """The page of the documentation."""
    return f"""# Nested derivatives against JAX by hand

`python benchmarks/nested_ad.py` (with `pip install "nablad[service,gallery,folx]"`) on: {machine()}, float32;
{others}. `--quick` takes small sizes,
`--rows WORD` some of the rows, `--json FILE` writes them as JSON.

Each row is a loss with its gradient in the parameters. *Naive* is that loss with `jax.grad`, `jax.jacobian`
(which is `jacrev`), `jax.hessian` and `jax.vmap` one inside the other, under `jax.jit`. *Default* is the
engine's static rule, *auto* what the tuner picks from its costs and {RUNS} runs or more of each
candidate, then {RUNS_AT_LAST} or more of the best, *best* the fastest of all variants, each strategy for all
examples at once and in chunks. The times are other runs than the tuner's: medians of up to {rounds} rounds in
one process, all programs in turn, answers ready on the device; which variant is best is found in every other
round, and shown with the times of the rest. Each run shorter than {SHORT * 1e3:.0f} ms follows one of the
same program that is not counted, as in training. A variant that took {TOO_SLOW:.0f} times the fastest while
warming up has only that time. Naive and engine call the same model function, and all losses and gradients
agree with the naive ones to {TOLERANCE:g}. Ratios below 1 are faster; {TIE:.0%} is a tie.

{beside()}

## In short

{summary(outcomes)}

![Times of naive, auto and best, by row]({page_of(platform()).with_suffix(".png").name})

## All rows

Operations and bytes are counted from the traced computation after equal steps are merged, as `POST /v1/plan`
does; the compiled program may need less memory.

{table(outcomes)}
"""


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Naive, auto and best in milliseconds, a line for each row, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.27 * len(outcomes)))
    places = range(len(outcomes), 0, -1)
    for place, one in zip(places, outcomes, strict=True):
        faster = one.auto_ms < one.naive_ms
        axes.plot([one.naive_ms, one.auto_ms], [place] * 2, color="#9ccc9c" if faster else "#e0a0a0", lw=3)
    marks = {"naive": ("o", "#555555", 38), "auto": ("s", "#1f6fb4", 38), "best": ("|", "#d95f02", 110)}
    for name, (mark, colour, size) in marks.items():
        times = [getattr(one, f"{name}_ms") for one in outcomes]
        axes.scatter(times, places, size, marker=mark, color=colour, label=name, zorder=3)
    axes.set_yticks(list(places), [one.row for one in outcomes])
    axes.set_ylim(0.3, len(outcomes) + 0.7)
    axes.set_xscale("log")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_xlabel("ms for the loss and its gradient; green: auto is faster than naive, red: slower")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--rows", metavar="WORD", default="")
    options = parser.parse_args()
    rounds, seconds = (10, 1.0) if options.quick else (100, 15.0)
    began, outcomes, wrong = Clock.now(), [], 0
    for row in rows(256, 32) if options.quick else rows(2048, 64):
        if options.rows not in row.name:
            continue
        try:
            one = measure(row, rounds, seconds, quick=options.quick)
        except Disagreement as error:
            print(f"WRONG  {error}", file=sys.stderr, flush=True)
            wrong += 1
            continue
        outcomes.append(one)
        print(
            f"{one.row}: naive {one.naive_ms:.2f} ms, auto {one.auto_ms:.2f} ms", file=sys.stderr, flush=True
        )
    others = Clock.now().others_since(began)
    if outcomes:
        print(f"{table(outcomes)}\n\n{summary(outcomes)}\n\n{machine()}, float32; {others}")
    if options.json:
        options.json.write_text(json.dumps([one.document() for one in outcomes], indent=1))
    if wrong:
        return 1
    if not options.quick and not options.rows:
        path = page_of(platform())
        path.write_text(page(outcomes, rounds, others))
        draw(outcomes, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
