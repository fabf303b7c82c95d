"""A Wasserstein GAN with gradient penalty on eight Gaussians.

    python examples/gallery/wgan_gp.py

Critic and generator are two hosted models with a program each; the critic takes three steps for one of the
generator (Gulrajani et al., 2017).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import Adam, arguments, figure, local_server, steps_with_progress

import nablad

# --8<-- [start:program]
CRITIC = """\
fake = stop_gradient(generator(z))
between = a * real + (1 - a) * fake
slope = norm(grad(sum(critic(between)), between), axis=1, eps=1e-8)
penalty = mean((slope - 1)**2)                    # a 1-Lipschitz critic has slope at most 1
distance = mean(critic(real)) - mean(critic(fake))
-distance + penalty
"""

GENERATOR = """\
-mean(critic(generator(z)))
"""
# --8<-- [end:program]

BATCH = 256
ANGLES = np.arange(8) * np.pi / 4
CENTRES = 2.0 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
SPREAD = 0.15
NETWORK = {"preset": "mlp", "sizes": [2, 64, 64, 64, 2], "activation": "relu", "init": "he_uniform"}


def eight_gaussians(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    x = CENTRES[rng.integers(8, size=n)] + SPREAD * rng.standard_normal((n, 2))
    return x.astype(np.float32)


def noise(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.standard_normal((n, 2), dtype=np.float32)


def sliced_wasserstein(x: NDArray[Any], y: NDArray[Any], directions: int = 256) -> float:
    """Sliced 1-Wasserstein distance of two samples of one size (Rabin et al., 2011)."""
    angles = (np.arange(directions) + 0.5) * np.pi / directions
    slices = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.mean(np.abs(np.sort(x @ slices, axis=0) - np.sort(y @ slices, axis=0))))


def modes(x: NDArray[Any]) -> tuple[int, float]:
    """Gaussians with half their share of x within three standard deviations, and the share of all such x."""
    squared = np.sum((x[:, None] - CENTRES) ** 2, axis=-1)
    near = np.min(squared, axis=1) < (3 * SPREAD) ** 2
    counts = np.bincount(np.argmin(squared, axis=1)[near], minlength=8)
    return int(np.sum(counts >= len(x) / 16)), float(np.mean(near))


def play(client: nablad.Client, steps: int, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters of both models after the game."""
    nets = ("critic", "generator")
    params: dict[str, Any] = {net: client.params(net).params for net in nets}
    adams = {net: Adam(2e-3, steps * (3 if net == "critic" else 1), beta1=0.5, beta2=0.9) for net in nets}

    def turn(net: str, program: str, inputs: dict[str, Any], terms: list[str]) -> dict[str, float]:
        asked: dict[str, Any] = {"inputs": inputs, "terms": terms, "wrt": [f"{net}.params"]}
        found = client.gradient(program, models={name: name for name in nets}, params=params, **asked)
        params[net] = adams[net].step(params[net], found.gradients[f"{net}.params"])
        return found.terms

    for step, show in steps_with_progress(steps):
        for _ in range(3):
            draws = {"real": eight_gaussians(BATCH, rng), "z": noise(BATCH, rng)}
            draws["a"] = rng.random((BATCH, 1), dtype=np.float32)
            terms = turn("critic", CRITIC, draws, ["distance", "penalty"])
        turn("generator", GENERATOR, {"z": noise(BATCH, rng)}, [])
        show(step, **terms)
    return params


def draw(
    out: Path, made: NDArray[Any], axis: NDArray[Any], levels: NDArray[Any], slope: NDArray[Any]
) -> None:
    pyplot, save = figure(out, "wgan_gp")
    drawn, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 5), width_ratios=(3, 2))
    left.contourf(axis, axis, levels, 24, cmap="PuOr", alpha=0.5)
    left.contour(axis, axis, levels, 24, colors="0.4", linewidths=0.4, linestyles="solid")
    for centre in CENTRES:
        left.add_patch(pyplot.Circle(centre, 3 * SPREAD, facecolor="none", edgecolor="0.1", linewidth=0.8))
    left.scatter(*made[:2000].T, s=2.5, color="#123c69")
    left.set(title="generated points, level sets of the critic", aspect="equal", xticks=[], yticks=[])
    right.hist(slope, bins=60, range=(0, 2), density=True, color="#7a5ba6")
    right.axvline(1, color="0.1", linewidth=0.8)
    right.set(title="slope of the critic at interpolates", xlabel="|∇D|", yticks=[])
    right.spines[["top", "right", "left"]].set_visible(False)
    save(drawn)


def main() -> None:
    options = arguments(__doc__ or "", steps=2000)
    axis = np.linspace(-3, 3, 121, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    rng = np.random.default_rng(0)
    n = 20_000
    with local_server() as url, nablad.Client(url) as client:
        client.create_model("critic", {**NETWORK, "sizes": [2, 64, 64, 64, 1]}, seed=1)
        client.create_model("generator", NETWORK, seed=2)
        params = play(client, options.steps, rng)
        real, z = eight_gaussians(n, rng), noise(n, rng)
        made = client.apply("generator", z, params=params["generator"])
        levels = client.apply("critic", grid, params=params["critic"])[..., 0]
        inputs = {"real": real, "z": z, "a": rng.random((n, 1), dtype=np.float32)}
        asked: dict[str, Any] = {"models": {name: name for name in params}, "params": params}
        slope = client.evaluate(CRITIC, inputs=inputs, outputs=["slope"], **asked).outputs["slope"]
    draw(options.out, made, axis, levels, slope)
    covered, near = modes(made)
    print(f"{covered} of 8 Gaussians covered, {near:.1%} of the points within 3σ of one")
    print(f"slope of the critic at interpolates {slope.mean():.3f} ± {slope.std():.3f}")
    floor = sliced_wasserstein(real, eight_gaussians(n, rng))
    reached = sliced_wasserstein(real, made)
    print(f"reached: sliced Wasserstein distance {reached:.4f} (exact: {floor:.4f}, two draws of the truth)")


if __name__ == "__main__":
    main()
