"""The Black-Scholes equation by a network that the server trains, against the closed form.

python examples/gallery/black_scholes.py

A sixth of the steps are Adam's in float32, the others L-BFGS's in float64; one request for all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from training import arguments, figure, local_server, reported

import nablad

# --8<-- [start:program]
PROGRAM = """\
def price(t, x):    # t: time to maturity, x: spot over strike
    return model(stack([2 * sqrt(t + 1e-4) - 1, 2 * x - 2]))[0]

def equation(s, x):
    t = s**2    # the uniform s lies dense where the payoff has its kink
    u = price(t, x)
    return d(u, t) - 0.5 * volatility**2 * x**2 * d(u, x, x) - rate * x * d(u, x) + rate * u

inside = mean(vmap(equation)(s, x)**2)
edges = mean((vmap(price)(t_edge, x_edge) - u_edge)**2)
inside + 100 * edges
"""
# --8<-- [end:program]

VOLATILITY, RATE, FARTHEST = 0.25, 0.05, 2.0
NETWORK = {"preset": "mlp", "sizes": [2, 24, 24, 24, 1], "activation": "tanh", "init": "glorot_normal"}


def exact(t: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Price of a European call over its strike (Black and Scholes, 1973)."""
    t, x = np.maximum(t, 1e-12), np.maximum(x, 1e-12)
    spread = VOLATILITY * np.sqrt(t)
    d1 = (np.log(x) + (RATE + VOLATILITY**2 / 2) * t) / spread
    return np.asarray(x * norm.cdf(d1) - np.exp(-RATE * t) * norm.cdf(d1 - spread))


def edges() -> dict[str, NDArray[np.float64]]:
    """The payoff at maturity, zero at x = 0, and what a call far in the money is worth."""
    x, t = np.linspace(0, FARTHEST, 129), np.linspace(0, 1, 40)
    return {
        "t_edge": np.concatenate([0 * x, t, t]),
        "x_edge": np.concatenate([x, 0 * t, 0 * t + FARTHEST]),
        "u_edge": np.concatenate([np.maximum(x - 1, 0), 0 * t, FARTHEST - np.exp(-RATE * t)]),
    }


def train(client: nablad.Client, steps: int) -> tuple[Any, nablad.History, int]:
    """The network's parameters, the reports, and how many steps were Adam's."""
    client.create_model("black_scholes", NETWORK, seed=0)
    first = max(steps // 6, 1)
    rate = {"schedule": "cosine_decay", "init_value": 5e-3, "decay_steps": first, "alpha": 0.05}
    # --8<-- [start:run]
    run = client.train(
        PROGRAM,
        model="black_scholes",
        inputs={"volatility": VOLATILITY, "rate": RATE, **edges()},
        samplers={
            "points": {"distribution": "sobol", "low": [0, 0], "high": [1, 2], "n": 1024, "names": ["s", "x"]}
        },
        phases=[
            {"optimiser": {"name": "adam", "learning_rate": rate}, "steps": first, "dtype": "float32"},
            {
                "optimiser": {"name": "lbfgs", "memory_size": 30},
                "steps": max(steps - first, 1),
                "dtype": "float64",
            },
        ],
        terms=["inside", "edges"],
        report_every=max(steps // 100, 1),
    )
    reported(run)
    # --8<-- [end:run]
    return run.params().params, run.history, first


def draw(out: Path, history: nablad.History, adam_steps: int, t: Any, x: Any, found: Any) -> None:
    pyplot, save = figure(out, "black_scholes")
    drawn, (curve, prices, error) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    history.plot(curve)
    curve.axvline(adam_steps, color="0.7", lw=1)
    curve.set(title="Adam, then L-BFGS")
    curve.locator_params(axis="x", nbins=4)
    for row, colour in ((0, "tab:purple"), (25, "tab:blue"), (50, "tab:green")):
        prices.plot(x[row], exact(t[row], x[row]), color=colour, label=f"exact, {t[row, 0]:.1f} to maturity")
        prices.plot(x[row, ::5], found[row, ::5], "o", ms=3.5, color=colour, mfc="white")
    prices.plot([], [], "o", ms=3.5, color="grey", mfc="white", label="network")
    prices.set(title="price of the call", xlabel="spot / strike", ylabel="price / strike")
    prices.legend(frameon=False, fontsize=8)
    digits = np.clip(np.log10(np.abs(found - exact(t, x)) + 1e-12), -6, 0)
    filled = error.contourf(t, x, digits, np.arange(-6, -0.9, 0.5), cmap="magma")
    drawn.colorbar(filled, ax=error, label="log₁₀ |network - exact|")
    error.set(title="error", xlabel="time to maturity", ylabel="spot / strike")
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=12000)
    t, x = np.meshgrid(np.linspace(0, 1, 51), np.linspace(0, FARTHEST, 101), indexing="ij")
    with local_server() as url, nablad.Client(url) as client:
        params, history, adam_steps = train(client, options.steps)
        place = np.stack([2 * np.sqrt(t + 1e-4) - 1, 2 * x - 2], axis=-1)
        found = client.apply("black_scholes", place, params=params)[..., 0]
    draw(options.out, history, adam_steps, t, x, found)
    error = np.linalg.norm(found - exact(t, x)) / np.linalg.norm(exact(t, x))
    print(f"reached: relative L2 error {error:.2e}")


if __name__ == "__main__":
    main()
