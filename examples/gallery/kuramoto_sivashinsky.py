"""A travelling front of the Kuramoto-Sivashinsky equation: a loss with a fourth derivative in it.

    python examples/gallery/kuramoto_sivashinsky.py

A fifth of the steps are Adam's in float32, the others L-BFGS's in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc
from training import Adam, arguments, figure, lbfgs, local_server, mapped, steps_with_progress

import nablad

# --8<-- [start:program]
PROGRAM = """\
def u(t, x):
    return model(stack([t, x / 10]))[0]

def equation(t, x):
    v = u(t, x)
    return d(v, t) + v * d(v, x) + d(v, x, x) + d(v, x, x, x, x)

def slope(t, x):
    v = u(t, x)
    return d(v, x)

inside = mean(vmap(equation)(t, x)**2)
initial = mean((vmap(u)(0 * x0, x0) - u0)**2)
ends = mean((vmap(u)(t1, x1) - u1)**2) + mean((vmap(slope)(t1, x1) - slope1)**2)
"""
# --8<-- [end:program]

NETWORK = {"preset": "mlp", "sizes": [2, 24, 24, 24, 1], "activation": "tanh", "init": "glorot_normal"}
WEIGHTS = {"inside": 1.0, "initial": 10.0, "ends": 10.0}
SPEED, HALF_WIDTH, END = 2.0, 10.0, 2.0


def exact(t: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """c + (15/19) k (11 tanh³ z - 9 tanh z) where k = √(11/19), z = k (x + 4 - ct) / 2."""
    k = np.sqrt(11 / 19)
    z = np.tanh(k / 2 * (x + 4 - SPEED * t))
    return np.asarray(SPEED + 15 / 19 * k * (11 * z**3 - 9 * z))


def exact_slope(t: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The derivative of `exact` in x."""
    k = np.sqrt(11 / 19)
    z = np.tanh(k / 2 * (x + 4 - SPEED * t))
    return np.asarray(15 / 19 * k * (33 * z**2 - 9) * (1 - z**2) * k / 2)


def data() -> dict[str, NDArray[np.float64]]:
    """Points inside, and the exact values at t = 0 and at both ends."""
    t, x = qmc.scale(qmc.Sobol(2, seed=0).random(2048), [0, -HALF_WIDTH], [END, HALF_WIDTH]).T
    x0, times = np.linspace(-HALF_WIDTH, HALF_WIDTH, 200), np.linspace(0, END, 50)
    t1, x1 = np.concatenate([times, times]), np.repeat([-HALF_WIDTH, HALF_WIDTH], times.size)
    known = {"u0": exact(0 * x0, x0), "u1": exact(t1, x1), "slope1": exact_slope(t1, x1)}
    return {"t": t, "x": x, "x0": x0, "t1": t1, "x1": x1, **known}


def train(client: nablad.Client, steps: int) -> Any:
    """The network's parameters after Adam and L-BFGS."""
    client.create_model("front", NETWORK, seed=0)
    params: Any = client.params("front").params

    def asked(params: Any, inputs: Any) -> nablad.GradientResult:
        return client.gradient(PROGRAM + "inside", inputs=inputs, model="front", params=params, terms=WEIGHTS)

    inputs = data()
    first = max(steps // 5, 1)
    adam, inputs32 = Adam(rate=5e-3, steps=first, last=5e-4), mapped(np.float32, inputs)
    for step, show in steps_with_progress(first, every=max(first // 4, 1)):
        result = asked(params, inputs32)
        params = adam.step(params, result.gradients["params"])
        show(step, loss=result.value, **result.terms)

    def value_and_gradients(params: Any) -> tuple[float, Any]:
        result = asked(params, inputs)
        return result.value, result.gradients["params"]

    progress = steps_with_progress(steps - first)

    def seen(_: int, params: Any, value: float) -> None:
        step, show = next(progress)
        show(step, loss=value)

    return lbfgs(value_and_gradients, params, steps=steps - first, seen=seen)


def draw(out: Path, t: Any, x: Any, found: Any, truth: Any) -> None:
    pyplot, save = figure(out, "kuramoto_sivashinsky")
    drawn, (front, error) = pyplot.subplots(1, 2, figsize=(10, 3.8), width_ratios=[1.2, 1])
    for column, colour in zip((0, 33, 66, 100), ("0.6", "tab:blue", "tab:orange", "tab:red"), strict=True):
        front.plot(x[:, column], truth[:, column], color=colour, label=f"exact, t = {t[0, column]:.2f}")
        front.plot(x[::6, column], found[::6, column], "o", ms=3.5, color=colour, mfc="white")
    front.plot([], [], "o", ms=3.5, color="grey", mfc="white", label="network")
    front.set(title="a front of speed 2", xlabel="x", ylabel="u", ylim=(-0.2, 5.2))
    front.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    digits = np.clip(np.log10(np.abs(found - truth) + 1e-12), -6, -1)
    filled = error.contourf(t, x, digits, np.arange(-6, -0.9, 0.5), cmap="magma")
    drawn.colorbar(filled, ax=error, label="log₁₀ |network - exact|")
    error.set(title="error", xlabel="t", ylabel="x")
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=2000)
    t, x = np.meshgrid(np.linspace(0, END, 101), np.linspace(-HALF_WIDTH, HALF_WIDTH, 241))
    truth = exact(t, x)
    with local_server() as url, nablad.Client(url) as client:
        params = train(client, options.steps)
        found = client.apply("front", np.stack([t, x / 10], axis=-1), params=params)[..., 0]
    draw(options.out, t, x, found, truth)
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    print(f"reached: relative L2 error {error:.2e} (exact: the front of Kuramoto and Tsuzuki 1976)")


if __name__ == "__main__":
    main()
