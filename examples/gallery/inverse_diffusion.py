"""An unknown diffusion coefficient, found together with the field from ten measurements.

    python examples/gallery/inverse_diffusion.py

A fifth of the steps are Adam's in float32, the others L-BFGS's in float64; the server keeps the loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc
from training import arguments, figure, local_server, reported

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
coefficient = 1 * C    # a name of its own, to be reported
inside + edges + measured
"""
# --8<-- [end:program]

NETWORK = {"preset": "mlp", "sizes": [2, 32, 32, 32, 1], "activation": "tanh", "init": "glorot_uniform"}
TERMS = ["inside", "edges", "measured", "coefficient"]


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


def train(client: nablad.Client, steps: int) -> tuple[nablad.TrainedParams, nablad.History, int]:
    """The network's parameters with the coefficient, the reports, and how many steps were Adam's."""
    client.create_model("diffusion", NETWORK, seed=0)
    first = max(steps // 5, 1)
    rate = {"schedule": "cosine_decay", "init_value": 3e-3, "decay_steps": first, "alpha": 0.1}
    # --8<-- [start:run]
    run = client.train(
        PROGRAM,
        model="diffusion",
        trained={"C": 2.0},
        inputs=data(),
        phases=[
            {"optimiser": {"name": "adam", "learning_rate": rate}, "steps": first, "dtype": "float32"},
            {
                "optimiser": {"name": "lbfgs", "memory_size": 50},
                "steps": max(steps - first, 1),
                "dtype": "float64",
            },
        ],
        terms=TERMS,
        report_every=max(steps // 500, 1),
    )
    reported(run)
    # --8<-- [end:run]
    return run.params(), run.history, first


def draw(out: Path, history: nablad.History, adam_steps: int, t: Any, x: Any, found: Any) -> None:
    pyplot, save = figure(out, "inverse_diffusion")
    drawn, (coefficient, distance, field) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    path = np.array(history.terms["coefficient"])
    coefficient.plot(history.step, path, color="tab:blue", label="C")
    coefficient.axhline(1, color="black", lw=1, ls="--", label="true value")
    coefficient.set(title="the coefficient", xlabel="step", ylabel="C")
    distance.semilogy(history.step, np.abs(path - 1), color="tab:blue", label="|C - 1|")
    distance.semilogy(history.step, history.value, color="black", lw=1, label="loss")
    distance.set(title="its error, and the loss", xlabel="step")
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
        trained, history, adam_steps = train(client, options.steps)
        found = client.apply("diffusion", np.stack([t, x], axis=-1), params=trained.params)[..., 0]
    draw(options.out, history, adam_steps, t, x, found)
    error = np.linalg.norm(found - exact(t, x)) / np.linalg.norm(exact(t, x))
    print(f"relative L2 error of the field {error:.2e}")
    print(f"reached: C {float(trained.trained['C']):.6f} (exact: 1)")


if __name__ == "__main__":
    main()
