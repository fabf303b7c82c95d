"""A Hamiltonian network on a mass and a spring, beside a network that learns the vector field itself.

    python examples/gallery/hamiltonian.py

Data, networks and training are those of Greydanus, Dzamba and Yosinski (2019).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import arguments, figure, local_server, mapped, reported

import nablad

# --8<-- [start:program]
HAMILTONIAN = """\
H = sum(model(z))
dH = grad(H, z)
velocity = stack([dH[:, 1], -dH[:, 0]], axis=1)    # dq/dt = ∂H/∂p, dp/dt = -∂H/∂q
"""
DIRECT = """\
velocity = model(z)
"""
LOSS = """\
misfit = mean((velocity - dz)**2)
misfit + decay / 2 * dot(model.params, model.params)
"""

# The path of one state by Runge and Kutta's method of fourth order: all steps in one call.
PATH = """\
def field(z):
    dH = grad(sum(model(z)), z)
    return FIELD

def step(z, t):
    k1 = field(z)
    k2 = field(z + h / 2 * k1)
    k3 = field(z + h / 2 * k2)
    k4 = field(z + h * k3)
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), z

last, path = scan(step, start, times)
path
"""
# --8<-- [end:program]

DECAY = 1e-4
WIDTH = 200


def spring(seed: int = 0) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Training and test data: 25 noisy trajectories of 30 points each, with H = q² + p², as published."""
    random, states, velocities = np.random.RandomState(seed), [], []
    t = 2 * np.linspace(0, 3, 30)
    for _ in range(50):
        start = random.rand(2) * 2 - 1
        q0, p0 = start / np.linalg.norm(start) * (random.rand() * 0.9 + 0.1)
        q, p = q0 * np.cos(t) + p0 * np.sin(t), p0 * np.cos(t) - q0 * np.sin(t)
        velocities.append(np.stack([2 * p, -2 * q], axis=1))
        states.append(np.stack([q + 0.1 * random.randn(30), p + 0.1 * random.randn(30)], axis=1))
    z, dz = (np.concatenate(rows).astype(np.float32) for rows in (states, velocities))
    return {"z": z[:750], "dz": dz[:750]}, {"z": z[750:], "dz": dz[750:]}


def host(client: nablad.Client, name: str, outputs: int) -> Any:
    """Two hidden layers with orthogonal weights; gives the parameters."""
    layers = [
        {"dense": [2, WIDTH], "activation": "tanh"},
        {"dense": [WIDTH, WIDTH], "activation": "tanh"},
        {"dense": [WIDTH, outputs], "bias": False},
    ]
    client.create_model(name, {"layers": layers})
    random = np.random.default_rng(0)

    def orthogonal(leaf: NDArray[Any]) -> NDArray[Any]:
        if leaf.ndim < 2:
            return leaf
        tall = np.linalg.qr(random.standard_normal((max(leaf.shape), min(leaf.shape))))[0]
        return np.asarray(tall if leaf.shape[0] >= leaf.shape[1] else tall.T, leaf.dtype)

    return mapped(orthogonal, client.params(name).params)


def train(client: nablad.Client, name: str, program: str, params: Any, steps: int) -> tuple[Any, Any, float]:
    """The trained parameters, the reports, and the loss on the test data."""
    data, test = spring()
    # --8<-- [start:run]
    run = client.train(
        program + LOSS,
        model=name,
        params=params,
        inputs={**data, "decay": DECAY},
        optimiser={"name": "adam", "learning_rate": 1e-3},
        steps=steps,
        terms=["misfit"],
        report_every=max(steps // 100, 1),
    )
    reported(run, lines=5)
    # --8<-- [end:run]
    trained = run.params().params
    found = client.evaluate(
        program + LOSS, inputs={**test, "decay": DECAY}, outputs=["misfit"], model=name, params=trained
    )
    return trained, run.history, float(found.outputs["misfit"])


def path(client: nablad.Client, name: str, field: str, params: Any, times: NDArray[Any]) -> NDArray[Any]:
    """The rolled-out states from (q, p) = (1, 0)."""
    given = {"start": np.array([1.0, 0.0]), "times": times, "h": times[1] - times[0]}
    program = PATH.replace("FIELD", field)
    return np.asarray(client.evaluate(program, inputs=given, model=name, params=params).result)


def draw(
    out: Path, times: NDArray[Any], paths: dict[str, NDArray[Any]], histories: list[nablad.History]
) -> None:
    pyplot, save = figure(out, "hamiltonian")
    drawn, (curve, plane, energy) = pyplot.subplots(1, 3, figsize=(13, 3.9), width_ratios=[1.1, 1, 1.3])
    data, _ = spring()
    plane.plot(*data["z"].T, ".", ms=2.5, color="0.75", label="training data")
    angle = np.linspace(0, 2 * np.pi, 200)
    plane.plot(np.cos(angle), np.sin(angle), color="black", lw=1, label="exact")
    energy.axhline(1, color="black", lw=1, label="exact")
    colours = ("tab:red", "tab:blue")
    for (name, states), history, colour in zip(paths.items(), histories, colours, strict=True):
        curve.semilogy(history.step, history.terms["misfit"], color=colour, lw=1, label=name)
        plane.plot(*states.T, color=colour, lw=1, label=name)
        energy.plot(times, np.sum(states**2, axis=1), color=colour, label=name)
    curve.set(title="training loss", xlabel="step", ylabel="loss")
    curve.legend(frameon=False, fontsize=8)
    plane.set(title="phase plane", xlabel="q", ylabel="p", aspect="equal")
    plane.legend(frameon=True, framealpha=0.9, fontsize=8, loc="center")
    energy.set(title="energy along the path", xlabel="t", ylabel="q² + p²", ylim=(0, None))
    energy.legend(frameon=False, fontsize=8)
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=2000)
    times = np.linspace(0, 20, 401)
    paths, drift, histories = {}, {}, []
    with local_server() as url, nablad.Client(url) as client:
        for name, program, outputs, field in (
            ("direct", DIRECT, 2, "model(z)"),
            ("hamiltonian", HAMILTONIAN, 1, "stack([dH[1], -dH[0]])"),
        ):
            print(name)
            begin = host(client, name, outputs)
            params, history, loss = train(client, name, program, begin, options.steps)
            histories.append(history)
            paths[f"{name} network"] = states = path(client, name, field, params, times)
            drift[name] = float(np.max(np.abs(np.sum(states**2, axis=1) - 1)))
            print(f"test loss {loss:.4e}, largest change of energy until t = 20: {drift[name]:.3f}")
    draw(options.out, times, paths, histories)
    print(f"reached: test loss {loss:.3e} (published: 3.593e-2 ± 0.183e-2, Greydanus et al. 2019)")


if __name__ == "__main__":
    main()
