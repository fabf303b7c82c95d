"""Burgers' equation by a physics-informed network, against the Cole-Hopf solution.

    python examples/gallery/burgers.py

A few hundred steps of Adam, then Gauss-Newton steps with Levenberg's damping: the server computes the
residuals, their Jacobian in the parameters and the step, and the loop here decides whether to take it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc
from training import Adam, arguments, figure, gauss_newton, local_server, mapped, steps_with_progress

import nablad

# --8<-- [start:program]
PROGRAM = """\
nu = 0.01 / pi

def equation(p, t, x):
    u = model(stack([t, x]), params=p)[0]
    return d(u, t) + u * d(u, x) - nu * d(u, x, x)

def value(p, t, x):    # on the edges, where u is known
    return model(stack([t, x]), params=p)[0]

def residuals(p):
    inside = vmap(equation, in_axes=(None, 0, 0))(p, t, x)
    edges = vmap(value, in_axes=(None, 0, 0))(p, t_edge, x_edge) - u_edge
    return concat([inside / sqrt(t.shape[0]), weight * edges / sqrt(t_edge.shape[0])])
"""

# The Jacobian row by row: one gradient in the parameters a point.
JACOBIAN = """\
def equation_row(p, t, x):
    return ravel(grad(equation(p, t, x), p))

def value_row(p, t, x):
    return ravel(grad(value(p, t, x), p))

inside = vmap(equation_row, in_axes=(None, 0, 0))(model.params, t, x)
edges = vmap(value_row, in_axes=(None, 0, 0))(model.params, t_edge, x_edge)
J = concat([inside / sqrt(t.shape[0]), weight * edges / sqrt(t_edge.shape[0])])
"""
# --8<-- [end:program]

NETWORK = {"preset": "mlp", "sizes": [2, 16, 16, 16, 1], "activation": "tanh", "init": "glorot_normal"}
EDGE_WEIGHT = 10.0


def edges() -> dict[str, NDArray[np.float64]]:
    """The initial values -sin(πx) and the zeros at x = -1 and x = 1."""
    x, t = np.linspace(-1, 1, 160), np.linspace(0, 1, 40)
    return {
        "t_edge": np.concatenate([np.zeros_like(x), t, t]),
        "x_edge": np.concatenate([x, np.full_like(t, -1), np.full_like(t, 1)]),
        "u_edge": np.concatenate([-np.sin(np.pi * x), np.zeros_like(t), np.zeros_like(t)]),
    }


def exact(t: NDArray[np.float64], x: NDArray[np.float64], nodes: int = 100) -> NDArray[np.float64]:
    """The solution after Cole and Hopf, its two integrals by Gauss-Hermite quadrature.

    u = -∫ sin(πy) w dη / ∫ w dη with y = x - η and w = exp(-cos(πy) / (2πν) - η² / (4νt)).
    """
    nu = 0.01 / np.pi
    z, weights = np.polynomial.hermite.hermgauss(nodes)
    y = x[..., None] - np.sqrt(4 * nu * t)[..., None] * z
    exponent = -np.cos(np.pi * y) / (2 * np.pi * nu)
    w = weights * np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    return np.asarray(-np.sum(np.sin(np.pi * y) * w, axis=-1) / np.sum(w, axis=-1))


def train(client: nablad.Client, steps: int) -> dict[str, Any]:
    """The network's parameters after Adam and Gauss-Newton."""
    client.create_model("burgers", NETWORK, seed=1)
    params: Any = client.params("burgers").params
    sobol = qmc.Sobol(2, seed=0)

    def fresh() -> dict[str, Any]:
        t, s = qmc.scale(sobol.random(2048), [0, -1], [1, 1]).T
        return {"t": t, "x": s * np.abs(s), "weight": EDGE_WEIGHT, **edges()}

    warm_up = min(400, (steps + 1) // 2)
    adam, inputs = Adam(rate=5e-3, steps=warm_up, last=1e-4), mapped(np.float32, fresh())
    for step, show in steps_with_progress(warm_up, every=200):
        result = client.gradient(
            PROGRAM + "sum(residuals(model.params)**2)", inputs=inputs, model="burgers", params=params
        )
        params = adam.step(params, result.gradients["params"])
        show(step, loss=result.value)

    program = PROGRAM + JACOBIAN
    return dict(
        gauss_newton(client, program, model="burgers", params=params, inputs=fresh, steps=steps - warm_up)
    )


def draw(out: Path, t: Any, x: Any, found: Any, truth: Any) -> None:
    pyplot, save = figure(out, "burgers")
    drawn, (field, error, slices) = pyplot.subplots(1, 3, figsize=(12, 3.8))
    filled = field.contourf(t, x, found, np.linspace(-1.05, 1.05, 22), cmap="RdBu_r")
    drawn.colorbar(filled, ax=field, label="u", ticks=[-1, -0.5, 0, 0.5, 1])
    field.set(title="network", xlabel="t", ylabel="x")
    digits = np.clip(np.log10(np.abs(found - truth) + 1e-12), -6, 0)
    filled = error.contourf(t, x, digits, np.arange(-6, -0.9, 0.5), cmap="magma")
    drawn.colorbar(filled, ax=error, label="log₁₀ |network - exact|")
    error.set(title="error", xlabel="t", ylabel="x")
    for at, colour in ((0.25, "tab:blue"), (0.5, "tab:orange"), (1.0, "tab:green")):
        column = int(np.argmin(np.abs(t[0] - at)))
        slices.plot(x[:, 0], truth[:, column], color=colour, lw=1.5, label=f"exact, t = {at}")
        slices.plot(x[::10, 0], found[::10, column], "o", ms=3.5, color=colour, mfc="white")
    slices.plot([], [], "o", ms=3.5, color="grey", mfc="white", label="network")
    slices.set(title="the shock forms", xlabel="x", ylabel="u")
    slices.legend(frameon=False, fontsize=8)
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=800)
    t, x = np.meshgrid(np.linspace(0, 1, 101), np.linspace(-1, 1, 401))
    truth = exact(t, x)
    with local_server() as url, nablad.Client(url) as client:
        params = train(client, options.steps)
        found = client.apply("burgers", np.stack([t, x], axis=-1), params=params)[..., 0]
    draw(options.out, t, x, found, truth)
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    print(f"reached: relative L2 error {error:.2e} (published: 6.7e-4, Raissi et al. 2019)")


if __name__ == "__main__":
    main()
