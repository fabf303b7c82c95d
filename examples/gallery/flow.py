"""A continuous normalising flow, kept simple by kinetic and Jacobian penalties, on a two-armed spiral.

    python examples/gallery/flow.py

FFJORD's log density by Hutchinson's estimate (Grathwohl et al., 2019) and RNODE's two penalties (Finlay et
al., 2020). The spiral is a Gaussian turned by an angle that grows with the radius. That keeps areas, so
the entropy is the Gaussian's.
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
h = 1 / times.shape[0]

def path(x, e):
    def rates(t, y):
        z = y[:2]
        f = model(concat([z, [t]]))
        eJ = vjp(f, z, e)
        return concat([f, [TRACE, sum(f**2), sum(eJ**2)]])

    def runge_kutta(y, t):
        k1 = rates(t, y)
        k2 = rates(t + h / 2, y + h / 2 * k1)
        k3 = rates(t + h / 2, y + h / 2 * k2)
        k4 = rates(t + h, y + h * k3)
        y1 = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (y1, y1[:2])

    return scan(runge_kutta, concat([x, zeros(3)]), times)

y, way = vmap(path)(x, e)
log_p = y[:, 2] - 0.5 * sum(y[:, :2]**2, axis=1) - log(2 * pi)
nll = -mean(log_p)
kinetic = mean(y[:, 3])                # ∫ |f|² dt
roughness = mean(y[:, 4])              # ∫ |e'∂f/∂z|² dt
nll + 0.01 * kinetic + 0.01 * roughness
"""
TRAINING = PROGRAM.replace("TRACE", "dot(eJ, e)")  # Hutchinson's estimate, one probe for the whole path
EXACT = PROGRAM.replace("TRACE", "divergence(f, z)")
# --8<-- [end:program]

BATCH = 256
SIGMAS = np.array([1.6, 0.3])
TWIST = 0.9
NETWORK = {"preset": "mlp", "sizes": [3, 64, 64, 2], "activation": "silu"}
ENTROPY = 1 + np.log(2 * np.pi) + np.sum(np.log(SIGMAS))


def spiral(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    x = SIGMAS * rng.standard_normal((n, 2))
    return turned(x, 1).astype(np.float32)


def turned(x: NDArray[Any], sign: int) -> NDArray[Any]:
    """Points turned about the origin by an angle that grows with their radius."""
    angle = sign * TWIST * np.linalg.norm(x, axis=-1)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], axis=-1)


def log_density(x: NDArray[Any]) -> NDArray[Any]:
    """The logarithm of the true density."""
    z = turned(x, -1) / SIGMAS
    return np.asarray(-0.5 * np.sum(z**2, axis=-1) - np.log(2 * np.pi) - np.sum(np.log(SIGMAS)))


def probes(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.choice(np.array([-1, 1], np.float32), (n, 2))


def times(n: int) -> NDArray[np.float32]:
    """Beginnings of n equal steps from 0 to 1."""
    return (np.arange(n) / n).astype(np.float32)


def draw(out: Path, grid: NDArray[Any], log_p: NDArray[Any], begin: NDArray[Any], way: NDArray[Any]) -> None:
    pyplot, save = figure(out, "flow")
    drawn, axes = pyplot.subplots(1, 3, figsize=(12, 4.3))
    densities = {"true density": log_density(grid), "learned density": log_p}
    for ax, (title, values) in zip(axes, densities.items(), strict=False):
        ax.imshow(np.exp(values), origin="lower", extent=(-4, 4, -4, 4), cmap="magma_r", vmin=0, vmax=0.33)
        ax.set(title=title)
    paths = np.concatenate([begin[:, None], way], axis=1)
    axes[2].plot(*paths.T, color="0.5", linewidth=0.5)
    axes[2].scatter(*paths[:, 0].T, s=7, color="#b5367a", label="data, t = 0", zorder=3)
    axes[2].scatter(*paths[:, -1].T, s=7, color="#1f6fb4", label="base, t = 1", zorder=3)
    axes[2].set(title="paths", xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    axes[2].legend(loc="upper left", frameon=False, fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    save(drawn)


def main() -> None:
    options = arguments(__doc__ or "", steps=1000)
    rng = np.random.default_rng(0)
    adam = Adam(rate=5e-3, steps=options.steps)
    terms = ["nll", "kinetic", "roughness"]
    axis = np.linspace(-4, 4, 121, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    with local_server() as url, nablad.Client(url) as client:
        client.create_model("field", NETWORK)
        params: Any = client.params("field").params
        for step, show in steps_with_progress(options.steps):
            inputs = {"x": spiral(BATCH, rng), "e": probes(BATCH, rng), "times": times(4)}
            found = client.gradient(TRAINING, model="field", inputs=inputs, params=params, terms=terms)
            params = adam.step(params, found.gradients["params"])
            show(step, **found.terms)

        def exact(x: NDArray[Any]) -> dict[str, Any]:
            inputs = {"x": x, "e": probes(len(x), rng), "times": times(16)}
            wanted = ["log_p", "way", *terms]
            return client.evaluate(EXACT, model="field", inputs=inputs, params=params, outputs=wanted).outputs

        fresh = spiral(len(grid) ** 2, rng)
        measured, on_grid = exact(fresh), exact(grid.reshape(-1, 2))
    draw(options.out, grid, on_grid["log_p"].reshape(grid.shape[:2]), fresh[:150], measured["way"][:150])
    excess = log_density(fresh) - measured["log_p"]
    print(
        "kinetic energy {kinetic:.2f}, roughness {roughness:.2f}, exact divergence, 16 steps".format(
            **measured
        )
    )
    mass = np.exp(on_grid["log_p"]).sum() * (axis[1] - axis[0]) ** 2
    print(f"the learned density has mass {mass:.4f} on the picture's square")
    print(f"Kullback-Leibler divergence {excess.mean():.4f} ± {excess.std() / np.sqrt(len(excess)):.4f} nats")
    nll = ENTROPY + excess.mean()
    print(f"reached: negative log likelihood {nll:.4f} nats (exact: {ENTROPY:.4f}, entropy of the truth)")


if __name__ == "__main__":
    main()
