"""Adversarial examples and two remedies that differentiate the loss in the input, on two moons.

    python examples/gallery/adversarial.py

Double backpropagation penalises the input gradient (Drucker and LeCun, 1992); the other remedy trains on the
examples of the fast gradient sign method (Goodfellow et al., 2015). The attack is projected gradient descent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import Adam, arguments, figure, local_server, steps_with_progress

import nablad

# --8<-- [start:program]
PROGRAM = """\
def cross_entropy(x):
    return softplus(-y * model(x)[:, 0])           # labels y are -1 and 1

g = grad(sum(cross_entropy(x)), x)
x_fgsm = x + eps * stop_gradient(sign(g))

clean = mean(cross_entropy(x))
penalty = mean(sum(g**2, axis=1))
attacked = mean(cross_entropy(x_fgsm))
clean + penalty + attacked                         # weighted by the request
"""

ATTACK = """\
def ascend(i, moved):
    g = grad(sum(softplus(-y * model(moved)[:, 0])), moved)
    return clip(moved + 0.1 * eps * sign(g), x - eps, x + eps)

fori(40, ascend, x)
"""
# --8<-- [end:program]

EPS = 0.15
POINTS = 100
NOISE = 0.2
NETWORK = {"preset": "mlp", "sizes": [2, 64, 64, 1], "activation": "relu"}
WAYS = {
    "plain": {"clean": 1.0, "penalty": 0.0, "attacked": 0.0},
    "double backpropagation": {"clean": 1.0, "penalty": 0.3, "attacked": 0.0},
    "FGSM training": {"clean": 0.5, "penalty": 0.0, "attacked": 0.5},
}


def two_moons(n: int, noise: float, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    angle = rng.uniform(0, np.pi, n)
    upper = rng.random(n) < 0.5
    outer = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = np.where(upper[:, None], outer, [1.0, 0.5] - outer) + noise * rng.standard_normal((n, 2))
    return x.astype(np.float32), np.where(upper, 1, -1).astype(np.float32)


def train(client: nablad.Client, steps: int, weights: dict[str, float], data: dict[str, Any]) -> Any:
    params: Any = client.params("net").params
    adam = Adam(rate=3e-3, steps=steps)
    for step, show in steps_with_progress(steps):
        found = client.gradient(PROGRAM, model="net", inputs=data, params=params, terms=weights)
        params = adam.step(params, found.gradients["params"])
        show(step, **found.terms)
    return params


def draw(out: Path, panels: dict[str, Any], axes_xy: tuple[Any, Any], data: dict[str, Any]) -> None:
    pyplot, save = figure(out, "adversarial")
    drawn, axes = pyplot.subplots(1, 3, figsize=(12, 3.55), sharex=True, sharey=True)
    for ax, (title, (logits, accuracy, attacked)) in zip(axes, panels.items(), strict=True):
        ax.contourf(*axes_xy, np.tanh(logits / 2), 20, cmap="PuOr", vmin=-2.5, vmax=2.5)
        ax.contour(*axes_xy, logits, [0], colors="0.1", linewidths=1.4)
        colours = np.where(data["y"] > 0, "#4b2a85", "#a34c00")
        ax.scatter(*data["x"].T, s=12, c=colours)
        ax.set(title=f"{title}\n{accuracy:.1%}, under attack {attacked:.1%}", aspect="equal")
        ax.set(xticks=[], yticks=[])
    save(drawn)


def main() -> None:
    options = arguments(__doc__ or "", steps=2000)
    rng = np.random.default_rng(0)
    x, y = two_moons(POINTS, NOISE, rng)
    fresh, labels = two_moons(5000, NOISE, rng)
    train_data = {"x": x, "y": y, "eps": EPS}
    across, up = np.linspace(-1.7, 2.7, 200, dtype=np.float32), np.linspace(-1.2, 1.7, 140, dtype=np.float32)
    grid = np.stack(np.meshgrid(across, up), axis=-1)
    panels = {}
    with local_server() as url, nablad.Client(url) as client:
        client.create_model("net", NETWORK)
        for title, weights in WAYS.items():
            params = train(client, options.steps, weights, train_data)

            def accuracy(points: NDArray[Any], params: Any = params) -> float:
                return float(np.mean(client.apply("net", points, params=params)[:, 0] * labels > 0))

            asked: dict[str, Any] = {"x": fresh, "y": labels, "eps": EPS}
            moved = client.evaluate(ATTACK, model="net", inputs=asked, params=params).result
            logits = client.apply("net", grid, params=params)[..., 0]
            panels[title] = logits, accuracy(fresh), accuracy(moved)
            print(f"{title}: accuracy {panels[title][1]:.1%}, under attack {panels[title][2]:.1%}")
    draw(options.out, panels, (across, up), train_data)
    plain, penalised = panels["plain"][2], panels["double backpropagation"][2]
    print(f"reached: accuracy under attack {penalised:.1%} (without: {plain:.1%}, plain training)")


if __name__ == "__main__":
    main()
