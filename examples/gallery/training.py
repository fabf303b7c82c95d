"""What every run of the gallery needs beside its loss: an optimiser, progress, and a place for its picture.

Where the loop belongs to the caller, the server answers gradients, and the lines here turn them into new
parameters. Runs that leave the loop to the server need none of that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # examples/, where local_server.py is
from local_server import local_server as local_server

Tree = Mapping[str, Any]
"""Arrays by name, or such mappings by name."""


@dataclass
class Adam:
    """Adam (Kingma and Ba, 2015, algorithm 1) on trees of NumPy arrays, with a cosine decay to `last`."""

    rate: float = 1e-3
    steps: int | None = None
    """Length of the decay; without it the rate is constant."""
    last: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    count: int = 0
    first: Any = field(default=None, repr=False)
    second: Any = field(default=None, repr=False)

    def step(self, params: Any, gradients: Any) -> Any:
        """New parameters; the old ones are not changed."""
        if self.count == 0:
            self.first = self.second = mapped(np.zeros_like, params)
        self.count += 1
        self.first = mapped(lambda m, g: self.beta1 * m + (1 - self.beta1) * g, self.first, gradients)
        self.second = mapped(lambda v, g: self.beta2 * v + (1 - self.beta2) * g**2, self.second, gradients)
        scale1, scale2 = 1 - self.beta1**self.count, 1 - self.beta2**self.count
        rate = self.learning_rate()

        def moved(p: NDArray[Any], m: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(p - rate * (m / scale1) / (np.sqrt(v / scale2) + 1e-8), p.dtype)

        return mapped(moved, params, self.first, self.second)

    def learning_rate(self) -> float:
        """The rate of this step."""
        if self.steps is None:
            return self.rate
        share = min(self.count / self.steps, 1.0)
        return self.last + (self.rate - self.last) * 0.5 * (1 + float(np.cos(np.pi * share)))


@dataclass
class Damping:
    """The damping of a Gauss-Newton step after Levenberg, Marquardt and Nielsen (1999)."""

    mu: float = 1e-2
    growth: float = 2.0

    def accepts(self, loss: float, loss_there: float, predicted: float) -> bool:
        """Whether to take the step that leads to `loss_there`; adapts `mu` for the next one.

        `predicted` is the decrease that the linear model of the residuals promised.
        """
        gain = (loss - loss_there) / max(float(predicted), 1e-300)
        if not gain > 0:
            self.mu, self.growth = self.mu * self.growth, self.growth * 2
            return False
        self.mu, self.growth = max(self.mu * max(1 / 3, 1 - (2 * gain - 1) ** 3), 1e-14), 2.0
        return True


# --8<-- [start:gauss_newton]
GAUSS_NEWTON = """\
r = residuals(model.params)
g = J.T @ r
step = solve(J.T @ J + mu * eye(J.shape[1]), g)
params = unravel_like(ravel(model.params) - step, model.params)

loss = sum(r**2)
loss_there = sum(residuals(params)**2)
predicted = dot(step, mu * step + g)    # the decrease if the residuals were linear
loss
"""
# --8<-- [end:gauss_newton]


def gauss_newton(
    client: Any,
    program: str,
    *,
    model: str,
    params: Any,
    inputs: Callable[[], Mapping[str, Any]],
    steps: int,
    renew: int = 10,
    seen: Callable[[int, Any, float], None] | None = None,
) -> Any:
    """Damped Gauss-Newton steps in float64, on new inputs (points, mostly) every `renew` steps.

    The program defines `residuals(p)` and their Jacobian `J` at the model's parameters. `seen(step, params,
    loss)` is called after each step.
    """
    params, damping, data = mapped(np.float64, params), Damping(), inputs()
    outputs = ["loss", "params", "loss_there", "predicted"]
    for step, show in steps_with_progress(steps):
        given = {**data, "mu": damping.mu}
        answer = client.evaluate(
            program + GAUSS_NEWTON, inputs=given, outputs=outputs, model=model, params=params
        ).outputs
        if damping.accepts(answer["loss"], answer["loss_there"], answer["predicted"]):
            params = answer["params"]
        show(step, loss=answer["loss"], damping=damping.mu)
        if seen:
            seen(step, params, float(answer["loss"]))
        if step % renew == 0:
            data = inputs()
    return params


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` leaf by leaf over trees of one shape."""
    if isinstance(tree, Mapping):
        return {name: mapped(function, tree[name], *(other[name] for other in others)) for name in tree}
    return function(tree, *others)


def flattened(tree: Any) -> NDArray[np.float64]:
    """All leaves of a tree in one float64 vector, in the order of the tree."""
    if isinstance(tree, Mapping):
        return np.concatenate([flattened(leaf) for leaf in tree.values()])
    return np.ravel(np.asarray(tree, np.float64))


def unflattened(vector: NDArray[Any], like: Any) -> Any:
    """A vector in the shape of a tree: the inverse of `flattened`."""
    rest = iter(np.split(vector, np.cumsum(leaf_sizes(like))[:-1]))
    return mapped(lambda leaf: next(rest).reshape(np.shape(leaf)), like)


def leaf_sizes(tree: Any) -> list[int]:
    """How many numbers each leaf holds."""
    if isinstance(tree, Mapping):
        return [size for leaf in tree.values() for size in leaf_sizes(leaf)]
    return [int(np.size(tree))]


def lbfgs(
    value_and_gradients: Callable[[Any], tuple[float, Any]],
    params: Any,
    *,
    steps: int,
    seen: Callable[[int, Any, float], None] | None = None,
) -> Any:
    """L-BFGS with SciPy's line search, in float64, from these parameters: `steps` steps at most.

    `seen(step, params, value)` is called after each step.
    """
    from scipy.optimize import minimize

    def asked(vector: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        value, gradients = value_and_gradients(unflattened(vector, params))
        return value, flattened({name: gradients[name] for name in params})

    count = 0

    def after(intermediate_result: Any) -> None:
        nonlocal count
        count += 1
        if seen:
            seen(count, unflattened(intermediate_result.x, params), float(intermediate_result.fun))

    options = {"maxiter": steps, "maxfun": 2 * steps + 20, "maxcor": 50, "ftol": 0.0, "gtol": 0.0}
    found = minimize(asked, flattened(params), jac=True, method="L-BFGS-B", callback=after, options=options)
    return unflattened(found.x, params)


def arguments(description: str, *, steps: int) -> argparse.Namespace:
    """The options that all runs take."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--steps", type=int, default=steps, help=f"optimiser steps (default {steps})")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the picture (default: here)")
    return parser.parse_args()


def steps_with_progress(steps: int, *, every: int | None = None) -> Iterator[tuple[int, Callable[..., None]]]:
    """Step numbers from 1, each with a function that prints named figures of it now and then."""
    every = every or max(steps // 10, 1)
    began = time.perf_counter()

    def show(step: int, figures: Mapping[str, float]) -> None:
        if step % every == 0 or step in (1, steps):
            words = "  ".join(f"{name} {float(value):.3e}" for name, value in figures.items())
            print(f"step {step:6d} of {steps}  {time.perf_counter() - began:6.1f} s  {words}", flush=True)

    for step in range(1, steps + 1):
        yield step, lambda step=step, **figures: show(step, figures)


def reported(run: Any, lines: int = 10) -> None:
    """Read a run of the server to its end, and print some of its reports."""
    every = max((run.total or lines) // lines, 1)
    shown = 0
    for report in run:
        if report.step >= shown or report.step == run.total:
            shown = report.step + every
            words = "  ".join(f"{name} {value:.3e}" for name, value in report.terms.items())
            print(
                f"step {report.step:6d}  {report.seconds:6.1f} s  loss {report.value:.3e}  {words}",
                flush=True,
            )
    print(f"{run.ended.reason} after {run.ended.seconds:.1f} s")


def figure(out: Path, name: str) -> Any:
    """A matplotlib module set up for the gallery and a function that saves its figure as `name`.png."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("the picture needs matplotlib: pip install 'nablad[gallery]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    def save(drawn: Any) -> None:
        out.mkdir(parents=True, exist_ok=True)
        drawn.tight_layout()
        path = out / f"{name}.png"
        drawn.savefig(path, dpi=110)
        with Image.open(path) as picture:  # 256 colours are a third of the bytes
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        print(f"picture in {path}")

    return pyplot, save
