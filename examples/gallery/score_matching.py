"""Exact score matching: the score of a mixture of Gaussians from samples alone.

    python examples/gallery/score_matching.py

The score ∇ log p of the mixture is known, so the learned field can be measured against it.
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
s = model(x)
mean(divergence(s, x) + 0.5 * sum(s**2, axis=1))    # tr ∂s/∂x + ½|s|²
"""
# --8<-- [end:program]

BATCH = 512
CENTRES = np.array([[-1.6, -1.1], [1.6, -1.1], [0.0, 1.5]])
SPREADS = np.array([[0.7, 0.4], [0.5, 0.5], [0.9, 0.35]])
WEIGHTS = np.array([0.4, 0.25, 0.35])
NETWORK = {"preset": "mlp", "sizes": [2, 64, 64, 2], "activation": "silu"}


def mixture(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    which = rng.choice(3, size=n, p=WEIGHTS)
    return (CENTRES[which] + SPREADS[which] * rng.standard_normal((n, 2))).astype(np.float32)


def density_and_score(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """p and ∇ log p of the mixture at points (..., 2)."""
    z = (x[..., None, :] - CENTRES) / SPREADS
    p = WEIGHTS * np.exp(-0.5 * np.sum(z**2, axis=-1)) / (2 * np.pi * np.prod(SPREADS, axis=-1))
    total = np.sum(p, axis=-1)
    return total, np.sum(p[..., None] * -z / SPREADS, axis=-2) / total[..., None]


def draw(out: Path, grid: NDArray[Any], learned: NDArray[Any]) -> None:
    pyplot, save = figure(out, "score_matching")
    density, score = density_and_score(grid)
    drawn, axes = pyplot.subplots(1, 2, figsize=(9.6, 5.1))
    coarse = (slice(3, None, 6), slice(3, None, 6))
    for ax, field, title in zip(axes, (score, learned), ("∇ log p, exact", "s, learned"), strict=True):
        ax.contourf(grid[..., 0], grid[..., 1], density, 14, cmap="Blues", alpha=0.8)
        size = np.linalg.norm(field, axis=-1, keepdims=True)
        arrows = field / np.sqrt(size)  # lengths grow as the root of the score
        ax.quiver(*grid[coarse].T, *arrows[coarse].T, color="0.15", scale=70, width=0.0032)
        ax.set(title=title, aspect="equal", xticks=[], yticks=[])
    save(drawn)


def main() -> None:
    options = arguments(__doc__ or "", steps=4000)
    rng = np.random.default_rng(0)
    adam = Adam(rate=5e-3, steps=options.steps)
    with local_server() as url, nablad.Client(url) as client:
        client.create_model("score", NETWORK)
        params: Any = client.params("score").params
        for step, show in steps_with_progress(options.steps):
            inputs = {"x": mixture(BATCH, rng)}
            found = client.gradient(PROGRAM, model="score", inputs=inputs, params=params)
            params = adam.step(params, found.gradients["params"])
            show(step, loss=found.value)
        fresh = mixture(100_000, rng)
        learned = client.apply("score", fresh, params=params)
        loss = client.evaluate(PROGRAM, model="score", inputs={"x": fresh}, params=params).result
        axis = np.linspace(-3.2, 3.2, 120, dtype=np.float32)
        grid = np.stack(np.meshgrid(axis, axis), axis=-1)
        field = client.apply("score", grid, params=params)
    draw(options.out, grid, field)
    score = density_and_score(fresh)[1]
    size = np.mean(np.sum(score**2, axis=1))
    print(f"objective {loss:.4f} on fresh points; -½ E|∇ log p|² there is {-0.5 * size:.4f}")
    divergence = np.mean(np.sum((learned - score) ** 2, axis=1))
    print(f"reached: Fisher divergence {divergence:.4f}, {divergence / size:.2%} of E|∇ log p|² (exact: 0)")


if __name__ == "__main__":
    main()
