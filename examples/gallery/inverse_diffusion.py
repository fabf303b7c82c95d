"""An unknown diffusion coefficient, found together with the field from ten measurements.

    python examples/gallery/inverse_diffusion.py

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
def equation(t, x):
    y = model(stack([t, x]))[0]
    source = exp(-t) * (pi**2 - 1) * sin(pi * x)
    return d(y, t) - C * d(y, x, x) - source

inside = mean(vmap(equation)(t, x)**2)
edges = mean((model(edge)[:, 0] - y_edge)**2)
measured = mean((model(place)[:, 0] - y_place)**2)
inside + edges + measured
"""
# --8<-- [end:program]

NETWORK = {"preset": "mlp", "sizes": [2, 32, 32, 32, 1], "activation": "tanh", "init": "glorot_uniform"}
TERMS = ["inside", "edges", "measured"]


def exact(t: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """y = exp(-t) sin(πx), the solution for C = 1."""
    return np.asarray(np.exp(-t) * np.sin(np.pi * x))


def data() -> dict[str, NDArray[np.float64]]:
    """DeepXDE's numbers of points: 50 inside, 30 on the edges, and ten measurements at t = 1."""
    t, x = qmc.scale(qmc.Sobol(2, seed=0).random(64)[:50], [0, -1], [1, 1]).T
    x0, t1 = np.linspace(-1, 1, 10), np.linspace(0.1, 1, 10)
    t_edge = np.concatenate([0 * x0, t1, t1])
    x_edge = np.concatenate([x0, 0 * t1 - 1, 0 * t1 + 1])
    place = np.stack([np.ones(10), np.linspace(-1, 1, 10)], axis=1)
    edge = np.stack([t_edge, x_edge], axis=1)
    known = {"y_edge": exact(*edge.T), "y_place": exact(*place.T)}
    return {"t": t, "x": x, "edge": edge, "place": place, **known}


def train(client: nablad.Client, steps: int) -> tuple[Any, list[float]]:
    """The network's parameters with the coefficient, and the coefficient after each step."""
    client.create_model("diffusion", NETWORK, seed=0)
    unknown: Any = {"params": client.params("diffusion").params, "C": np.float32(2.0)}
    inputs, path = data(), [2.0]

    def asked(unknown: Any, inputs: Any) -> nablad.GradientResult:
        return client.gradient(
            PROGRAM,
            inputs={**inputs, "C": unknown["C"]},
            model="diffusion",
            params=unknown["params"],
            wrt=["params", "C"],
            terms=TERMS,
        )

    first = max(steps // 5, 1)
    adam, inputs32 = Adam(rate=3e-3, steps=first, last=3e-4), mapped(np.float32, inputs)
    for step, show in steps_with_progress(first, every=max(first // 2, 1)):
        result = asked(unknown, inputs32)
        unknown = adam.step(unknown, result.gradients)
        path.append(float(unknown["C"]))
        show(step, loss=result.value, C=path[-1])

    def value_and_gradients(unknown: Any) -> tuple[float, Any]:
        result = asked(unknown, inputs)
        return result.value, result.gradients

    progress = steps_with_progress(steps - first)

    def seen(_: int, unknown: Any, value: float) -> None:
        step, show = next(progress)
        path.append(float(unknown["C"]))
        show(step, loss=value, C=path[-1])

    return lbfgs(value_and_gradients, unknown, steps=steps - first, seen=seen), path


def draw(out: Path, path: list[float], adam_steps: int, t: Any, x: Any, found: Any) -> None:
    pyplot, save = figure(out, "inverse_diffusion")
    drawn, (coefficient, distance, field) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    coefficient.plot(path, color="tab:blue", label="C")
    coefficient.axhline(1, color="black", lw=1, ls="--", label="true value")
    coefficient.set(title="the coefficient", xlabel="step", ylabel="C")
    distance.semilogy(np.abs(np.array(path) - 1), color="tab:blue", label="|C - 1|")
    distance.set(title="its error", xlabel="step", ylabel="|C - 1|")
    for axes in (coefficient, distance):
        axes.axvline(adam_steps, color="0.7", lw=1, label="Adam, then L-BFGS")
        axes.legend(frameon=False, fontsize=8)
    for row, colour in ((0, "tab:purple"), (25, "tab:blue"), (50, "tab:green")):
        field.plot(x[row], exact(t[row], x[row]), color=colour, label=f"exact, t = {t[row, 0]:.1f}")
        field.plot(x[row, ::5], found[row, ::5], "o", ms=3.5, color=colour, mfc="white")
    field.plot([], [], "o", ms=3.5, color="grey", mfc="white", label="network")
    field.set(title="the field", xlabel="x", ylabel="y")
    field.legend(frameon=False, fontsize=8, loc="upper left")
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=2500)
    t, x = np.meshgrid(np.linspace(0, 1, 51), np.linspace(-1, 1, 101), indexing="ij")
    with local_server() as url, nablad.Client(url) as client:
        unknown, path = train(client, options.steps)
        found = client.apply("diffusion", np.stack([t, x], axis=-1), params=unknown["params"])[..., 0]
    draw(options.out, path, max(options.steps // 5, 1), t, x, found)
    error = np.linalg.norm(found - exact(t, x)) / np.linalg.norm(exact(t, x))
    print(f"relative L2 error of the field {error:.2e}")
    print(f"reached: C {path[-1]:.6f} (exact: 1)")


if __name__ == "__main__":
    main()
