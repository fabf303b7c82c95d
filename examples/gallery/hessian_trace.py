"""A penalty on the trace of the Hessian in the parameters, for a flat minimum.

    python examples/gallery/hessian_trace.py

Twenty noisy points of a smooth function and a network with far more parameters, trained with and without the
penalty on four draws of the data. Probes estimate the trace in training; at the end it is computed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import Adam, arguments, figure, local_server, mapped, steps_with_progress

import nablad

# --8<-- [start:program]
PROGRAM = """\
L = mean((model(x)[:, 0] - y)**2)

def curvature(v):
    return dot(v, hvp(L, model.params, v))

estimates = vmap(curvature)(probes)             # E v'Hv = tr H (Hutchinson, 1989)
sharpness = mean(estimates)
L + weight * sharpness
"""

EXACT = """\
L = mean((model(x)[:, 0] - y)**2)
trace(hessian(L, model.params))
"""
# --8<-- [end:program]

POINTS = 20
NOISE = 0.3
WEIGHT = 1e-3
DRAWS = 4
NETWORK = {"preset": "mlp", "sizes": [1, 16, 16, 1], "activation": "tanh"}


@dataclass(frozen=True)
class Run:
    """What one training came to."""

    fit: float
    trace: float
    estimate: float
    standard_error: float
    test: float
    curve: NDArray[Any]
    history: list[float]


def truth(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.sin(2 * x) + 0.5 * x)


def signs(n: int, params: Any, rng: np.random.Generator) -> Any:
    """n probes shaped like the parameters."""
    return mapped(lambda leaf: rng.choice(np.array([-1, 1], np.float32), (n, *leaf.shape)), params)


def run(client: nablad.Client, steps: int, data: dict[str, Any], weight: float, grid: NDArray[Any]) -> Run:
    rng = np.random.default_rng(1)
    params: Any = client.params("net").params
    adam = Adam(rate=1e-2, steps=steps)
    history = []
    for step, show in steps_with_progress(steps, every=max(steps // 2, 1)):
        inputs = {**data, "probes": signs(4, params, rng), "weight": weight}
        asked: dict[str, Any] = {"params": params, "terms": ["L", "sharpness"]}
        found = client.gradient(PROGRAM, model="net", inputs=inputs, **asked)
        params = adam.step(params, found.gradients["params"])
        history.append(found.terms["sharpness"])
        show(step, **found.terms)
    inputs = {**data, "probes": signs(400, params, rng), "weight": weight}
    wanted = ["L", "estimates"]
    last = client.evaluate(PROGRAM, model="net", inputs=inputs, params=params, outputs=wanted).outputs
    exact = client.evaluate(EXACT, model="net", inputs=data, params=params).result
    curve = client.apply("net", grid, params=params)[:, 0]
    error = last["estimates"].std() / np.sqrt(len(last["estimates"]))
    test = np.mean((curve - truth(grid[:, 0])) ** 2)
    return Run(last["L"], exact, last["estimates"].mean(), error, test, curve, history)


def draw(out: Path, data: dict[str, Any], grid: NDArray[Any], without: Run, penalised: Run) -> None:
    pyplot, save = figure(out, "hessian_trace")
    drawn, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    left.plot(grid, truth(grid), color="0.7", linewidth=5, label="truth")
    left.plot(data["x"], data["y"], "o", color="0.1", markersize=5)
    for one, colour, label in ((without, "#d95f02", "without"), (penalised, "#1f6fb4", "with the penalty")):
        left.plot(grid, one.curve, color=colour, linewidth=1.8, label=label)
        right.semilogy(one.history, color=colour, linewidth=0.5, label=f"{label}, four probes")
        right.plot(len(one.history), one.trace, "o", color=colour, markersize=8, label=f"{label}, exact")
    left.set(title="the first draw of the data", xlabel="x", ylim=(-3, 2.2))
    right.set(title="trace of the Hessian in the parameters", xlabel="step", ylim=(0.5, 2e3))
    for ax in (left, right):
        ax.legend(frameon=False, fontsize=9, loc="lower right")
        ax.spines[["top", "right"]].set_visible(False)
    save(drawn)


def main() -> None:
    options = arguments(__doc__ or "", steps=1200)
    rng = np.random.default_rng(0)
    grid = np.linspace(-3, 3, 400, dtype=np.float32)[:, None]
    drawn, pairs = [], []
    with local_server() as url, nablad.Client(url) as client:
        client.create_model("net", NETWORK)
        for _ in range(DRAWS):
            x = np.sort(rng.uniform(-3, 3, POINTS)).astype(np.float32)[:, None]
            y = (truth(x[:, 0]) + NOISE * rng.standard_normal(POINTS)).astype(np.float32)
            drawn.append({"x": x, "y": y})
            pairs.append([run(client, options.steps, drawn[-1], weight, grid) for weight in (0.0, WEIGHT)])
            for name, one in zip(("without", "with"), pairs[-1], strict=True):
                print(
                    f"{name}: L {one.fit:.4f}, trace {one.trace:.1f}, estimated {one.estimate:.1f} ± "
                    f"{one.standard_error:.1f}, test error {one.test:.4f}"
                )
    draw(options.out, drawn[0], grid, *pairs[0])
    without, penalised = zip(*pairs, strict=True)
    for name, runs in (("without", without), ("with", penalised)):
        fit, test = np.mean([one.fit for one in runs]), np.mean([one.test for one in runs])
        print(f"mean {name}: L {fit:.4f}, test error {test:.4f}")
    traces = [np.mean([one.trace for one in runs]) for runs in (penalised, without)]
    print(
        f"reached: mean trace {traces[0]:.1f} (without: {traces[1]:.1f}, the same training without penalty)"
    )


if __name__ == "__main__":
    main()
