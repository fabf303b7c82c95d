"""Burgers' equation by a network that the server trains: Adam, then L-BFGS in float64.

python examples/gallery/burgers_lbfgs.py

The server draws the points and keeps the loop; what comes back are reports, and the parameters at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from burgers import edges, exact
from training import arguments, figure, local_server, reported

import nablad

# --8<-- [start:program]
PROGRAM = """\
nu = 0.01 / pi

def equation(t, s):
    x = s * abs(s)    # the uniform s lies dense where the shock will be
    u = model(stack([t, x]))[0]
    return d(u, t) + u * d(u, x) - nu * d(u, x, x)

def value(t, x):    # on the edges, where u is known
    return model(stack([t, x]))[0]

inside = mean(vmap(equation)(t, s)**2)
outside = mean((vmap(value)(t_edge, x_edge) - u_edge)**2)
inside + 10 * outside
"""
# --8<-- [end:program]

NETWORK = {"preset": "mlp", "sizes": [2, 20, 20, 20, 20, 1], "activation": "tanh", "init": "glorot_normal"}


def train(client: nablad.Client, steps: int) -> tuple[Any, nablad.History, int]:
    """The network's parameters, the reports, and how many steps were Adam's."""
    client.create_model("burgers_lbfgs", NETWORK, seed=1)
    first = max(2 * steps // 5, 1)
    rate = {"schedule": "cosine_decay", "init_value": 5e-3, "decay_steps": first, "alpha": 0.02}
    # --8<-- [start:run]
    run = client.train(
        PROGRAM,
        model="burgers_lbfgs",
        inputs=edges(),
        samplers={
            "points": {
                "distribution": "sobol",
                "low": [0, -1],
                "high": [1, 1],
                "n": 2048,
                "names": ["t", "s"],
            }
        },
        phases=[
            {"optimiser": {"name": "adam", "learning_rate": rate}, "steps": first, "dtype": "float32"},
            {
                "optimiser": {"name": "lbfgs", "memory_size": 50},
                "steps": max(steps - first, 1),
                "dtype": "float64",
            },
        ],
        terms=["inside", "outside"],
        report_every=max(steps // 100, 1),
    )
    reported(run)
    # --8<-- [end:run]
    return run.params().params, run.history, first


def draw(out: Path, history: nablad.History, adam_steps: int, t: Any, x: Any, found: Any, truth: Any) -> None:
    pyplot, save = figure(out, "burgers_lbfgs")
    drawn, (curve, field, error) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    history.plot(curve)
    curve.axvline(adam_steps, color="0.7", lw=1)
    curve.set(title="Adam, then L-BFGS")
    filled = field.contourf(t, x, found, np.linspace(-1.05, 1.05, 22), cmap="RdBu_r")
    drawn.colorbar(filled, ax=field, label="u", ticks=[-1, -0.5, 0, 0.5, 1])
    field.set(title="network", xlabel="t", ylabel="x")
    digits = np.clip(np.log10(np.abs(found - truth) + 1e-12), -6, 0)
    filled = error.contourf(t, x, digits, np.arange(-6, -0.9, 0.5), cmap="magma")
    drawn.colorbar(filled, ax=error, label="log₁₀ |network - exact|")
    error.set(title="error", xlabel="t", ylabel="x")
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=5000)
    t, x = np.meshgrid(np.linspace(0, 1, 101), np.linspace(-1, 1, 401))
    truth = exact(t, x)
    with local_server() as url, nablad.Client(url) as client:
        params, history, adam_steps = train(client, options.steps)
        found = client.apply("burgers_lbfgs", np.stack([t, x], axis=-1), params=params)[..., 0]
    draw(options.out, history, adam_steps, t, x, found, truth)
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    print(f"reached: relative L2 error {error:.2e}")


if __name__ == "__main__":
    main()
