"""MAML on sinusoids: an initialisation from which one gradient step on ten points learns a new sinusoid.

    python examples/gallery/maml.py

The experiment of Finn, Abbeel and Levine (2017), section 5.1, second derivatives included. Beside it stands a
network pretrained on all sinusoids at once, adapted with the step size that suits it best.
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
def loss(p, x, y):
    return mean((model(x, params=p) - y)**2)

def adapted(x, y):
    return model.params - rate * grad(loss(model.params, x, y), model.params)

def task(x, y, x_query, y_query):
    return loss(adapted(x, y), x_query, y_query)

errors = vmap(task)(x, y, x_query, y_query)
mean(errors)
"""
# --8<-- [end:program]

RATE = 0.01
SHOTS = 10
TASKS = 50
NETWORK = {"preset": "mlp", "sizes": [1, 40, 40, 1], "activation": "relu", "init": "he_normal"}
ADAPTED = """\
L = mean((model(x) - y)**2)
model(grid, params=model.params - rate * grad(L, model.params))
"""

Sinusoids = tuple[NDArray[Any], NDArray[Any]]


def sinusoids(n: int, rng: np.random.Generator) -> Sinusoids:
    """Amplitudes and phases of n tasks."""
    return rng.uniform(0.1, 5.0, (n, 1, 1)), rng.uniform(0, np.pi, (n, 1, 1))


def points(tasks: Sinusoids, n: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """n points (x, y) of each task."""
    amplitude, phase = tasks
    x = rng.uniform(-5, 5, (len(amplitude), n, 1))
    return x.astype(np.float32), (amplitude * np.sin(x - phase)).astype(np.float32)


def batch(tasks: int, queries: int, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """The program's inputs for as many fresh tasks."""
    drawn = sinusoids(tasks, rng)
    (x, y), (x_query, y_query) = points(drawn, SHOTS, rng), points(drawn, queries, rng)
    return {"x": x, "y": y, "x_query": x_query, "y_query": y_query}


def train(client: nablad.Client, steps: int, rate: float) -> Any:
    """Meta-trained parameters; with rate 0 the same program is ordinary pretraining on all tasks."""
    rng = np.random.default_rng(1)
    params: Any = client.params("net").params
    adam = Adam(rate=4e-3, steps=steps)
    for step, show in steps_with_progress(steps):
        inputs: dict[str, Any] = {**batch(TASKS, SHOTS, rng), "rate": rate}
        found = client.gradient(PROGRAM, model="net", inputs=inputs, params=params)
        params = adam.step(params, found.gradients["params"])
        show(step, loss=found.value)
    return params


def interval(values: NDArray[Any]) -> float:
    """Half the 95 % confidence interval of the mean."""
    return float(1.96 * values.std() / np.sqrt(len(values)))


def draw(out: Path, panels: dict[str, Any]) -> None:
    pyplot, save = figure(out, "maml")
    drawn, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for ax, (title, (grid, truth, shots, before, after)) in zip(axes, panels.items(), strict=True):
        ax.plot(grid, truth, color="0.6", linewidth=4, label="the sinusoid")
        ax.plot(grid, before, color="#d95f02", linestyle=":", label="before")
        ax.plot(grid, after, color="#1f6fb4", linewidth=2, label="after one gradient step")
        ax.plot(*shots, "^", color="0.1", label="the ten points")
        ax.set(title=title, xlabel="x", xlim=(-5, 5))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    save(drawn)


def main() -> None:
    options = arguments(__doc__ or "", steps=7000)
    rng = np.random.default_rng(0)
    tests, tuning = batch(1000, 100, rng), batch(1000, 100, rng)
    shown = np.full((1, 1, 1), 4.0), np.full((1, 1, 1), 2.6)
    shots = points(shown, SHOTS, rng)
    grid = np.linspace(-5, 5, 200, dtype=np.float32)[:, None]
    truth = shown[0][0] * np.sin(grid - shown[1][0])
    errors, panels = {}, {}
    with local_server() as url, nablad.Client(url) as client:
        client.create_model("net", NETWORK)

        def tested(data: dict[str, Any], params: Any, rate: float) -> NDArray[Any]:
            asked: dict[str, Any] = {"inputs": {**data, "rate": rate}, "outputs": ["errors"]}
            return np.asarray(client.evaluate(PROGRAM, model="net", params=params, **asked).outputs["errors"])

        for title, rate, steps in (("MAML", RATE, options.steps), ("pretrained", 0.0, options.steps // 3)):
            params = train(client, steps, rate)
            if rate == 0:
                rate = min((0.001, 0.003, 0.01, 0.03, 0.1), key=lambda r: tested(tuning, params, r).mean())
                print(f"{title}: best step size {rate}")
            before, after = tested(tests, params, 0.0).mean(), tested(tests, params, rate)
            errors[title] = after.mean()
            print(f"{title}: {before:.3f} before the step, {after.mean():.3f} ± {interval(after):.3f} after")
            asked = {"x": shots[0][0], "y": shots[1][0], "grid": grid}
            curves = [
                client.evaluate(ADAPTED, model="net", params=params, inputs={**asked, "rate": r}).result
                for r in (0.0, rate)
            ]
            panels[title] = grid, truth, (shots[0].ravel(), shots[1].ravel()), *curves
    draw(options.out, panels)
    reached, without = errors["MAML"], errors["pretrained"]
    print(f"reached: mean squared error {reached:.3f} (without: {without:.3f}, pretrained on all sinusoids)")


if __name__ == "__main__":
    main()
