"""Energies and forces: a potential fitted to both, seven Lennard-Jones particles in the plane.

    python examples/gallery/energy_forces.py

The network sees radial symmetry functions of each particle's neighbourhood (Behler and Parrinello, 2007), so
its energy does not change under translation, rotation and exchange. It is also fitted to energies alone.
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
def energy(R):
    r = norm(R[:, None, :] - R[None, :, :], axis=2, eps=1e-6)
    shell = exp(-eta * (r[:, :, None] - radii)**2)
    others = (1 - eye(7))[:, :, None]
    return sum(model(sum(others * shell, axis=1)))     # one network, summed over the particles

E = vmap(energy)(R)
F = -grad(sum(E), R)
energies = mean((E - E_true)**2)
forces = mean((F - F_true)**2)
energies + forces
"""
# --8<-- [end:program]

CONFIGURATIONS = 64
TEMPERATURE = 0.3
ARCHITECTURE = {"preset": "mlp", "sizes": [40, 32, 32, 1], "activation": "silu"}
SHELLS: dict[str, Any] = {"eta": np.float32(60.0), "radii": np.linspace(0.8, 2.4, 40, dtype=np.float32)}


def lennard_jones(R: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Energies and forces of configurations (n, 7, 2), in units of ε and ε/σ."""
    difference = R[:, :, None] - R[:, None]
    r2 = np.sum(difference**2, axis=-1) + np.eye(7) * 1e6
    s6 = r2**-3
    E = 2 * np.sum(s6**2 - s6, axis=(1, 2))
    F = np.sum((24 * (2 * s6**2 - s6) / r2)[..., None] * difference, axis=2)
    return E, F


def configurations(n: int, rng: np.random.Generator) -> NDArray[Any]:
    """Independent draws near equilibrium: Brownian dynamics that begins at the hexagon with its centre."""
    angle = np.arange(6) * np.pi / 3
    hexagon = 1.12 * np.concatenate([np.zeros((1, 2)), np.stack([np.cos(angle), np.sin(angle)], axis=1)])
    R = np.repeat(hexagon[None], n, axis=0)
    dt = 5e-4
    for _ in range(4000):
        F = np.clip(lennard_jones(R)[1] - 0.1 * R, -200, 200)  # a weak trap keeps the particles together
        R += dt * F + np.sqrt(2 * TEMPERATURE * dt) * rng.standard_normal(R.shape)
    return R


def fit(client: nablad.Client, steps: int, weights: dict[str, float], data: dict[str, Any]) -> Any:
    """Parameters fitted to the weighted terms."""
    params = client.params("net").params
    adam = Adam(rate=5e-3, steps=steps)
    for step, show in steps_with_progress(steps):
        found = client.gradient(PROGRAM, model="net", inputs={**data, **SHELLS}, params=params, terms=weights)
        params = adam.step(params, found.gradients["params"])
        show(step, **found.terms)
    return params


def draw(out: Path, R: NDArray[Any], F: NDArray[Any], predicted: dict[str, NDArray[Any]]) -> None:
    pyplot, save = figure(out, "energy_forces")
    colours = dict(zip(predicted, ("#d95f02", "#1f6fb4"), strict=True))
    drawn, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.6))
    one = int(np.argmax(np.min(np.linalg.norm(F, axis=2), axis=1)))  # where every particle is pushed
    x, y = (R[one] - R[one].mean(axis=0)).T
    for centre in zip(x, y, strict=True):
        left.add_patch(pyplot.Circle(centre, 0.5, facecolor="0.95", edgecolor="0.8"))
    arrows: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 14}
    wide = {"width": 0.02, "headwidth": 2, "headlength": 2, "headaxislength": 2}
    left.quiver(x, y, *F[one].T, color="0.55", label="true", **wide, **arrows)
    for name, forces in predicted.items():
        left.quiver(x, y, *forces[one].T, color=colours[name], width=0.006, label=name, zorder=3, **arrows)
        error = (forces - F).ravel()[:3000]
        right.scatter(F.ravel()[:3000], error, s=5, alpha=0.5, color=colours[name], label=name)
    left.set(title="forces on a fresh configuration", aspect="equal", xlim=(-2.3, 2.3), ylim=(-2.6, 1.9))
    left.axis("off")
    left.legend(loc="lower center", ncols=3, frameon=False)
    right.axhline(0, color="0.1", linewidth=0.8)
    right.set(title="fresh configurations", xlim=(-22, 22), ylim=(-4, 4))
    right.set(xlabel="true force component, ε/σ", ylabel="error of the fit, ε/σ")
    right.legend(frameon=False, loc="upper left")
    save(drawn)


def main() -> None:
    options = arguments(__doc__ or "", steps=3000)
    rng = np.random.default_rng(0)
    R = configurations(CONFIGURATIONS + 500, rng)
    E, F = lennard_jones(R)
    print(f"{len(R)} configurations, energies {E.mean():.2f} ± {E.std():.2f} ε, forces {F.std():.2f} ε/σ")
    whole = {"R": R, "E_true": E - E.mean(), "F_true": F}
    train = {name: values[:CONFIGURATIONS].astype(np.float32) for name, values in whole.items()}
    fresh = {name: values[CONFIGURATIONS:].astype(np.float32) for name, values in whole.items()}
    errors, predicted = {}, {}
    with local_server() as url, nablad.Client(url) as client:
        client.create_model("net", ARCHITECTURE, seed=1)
        for name, weights in {
            "energies alone": {"energies": 1.0, "forces": 0.0},
            "energies and forces": {"energies": 1.0, "forces": 1.0},
        }.items():
            params = fit(client, options.steps, weights, train)
            asked: dict[str, Any] = {"inputs": {**fresh, **SHELLS}, "params": params}
            found = client.evaluate(
                PROGRAM, model="net", outputs=["energies", "forces", "F"], **asked
            ).outputs
            errors[name], predicted[name] = np.sqrt(found["forces"]), found["F"]
            print(f"{name}: errors {np.sqrt(found['energies']):.4f} ε and {errors[name]:.4f} ε/σ")
    draw(options.out, R[CONFIGURATIONS:], F[CONFIGURATIONS:], predicted)
    print(
        f"reached: force error {errors['energies and forces']:.4f} ε/σ on fresh configurations "
        f"(without: {errors['energies alone']:.4f}, fitted to energies alone)"
    )


if __name__ == "__main__":
    main()
