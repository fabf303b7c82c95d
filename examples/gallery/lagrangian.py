"""A Lagrangian network learns the double pendulum from states and their accelerations.

python examples/gallery/lagrangian.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import arguments, figure, gauss_newton, local_server

import nablad

# --8<-- [start:program]
LAGRANGIAN = """\
def acceleration(p, q, v):
    L = sum(v**2) + model(concat([sin(q), cos(q), v]), params=p)[0]
    L_q = grad(L, q)
    L_v = grad(L, v)
    L_vq = jacobian(L_v, q)
    L_vv = jacobian(L_v, v)
    return solve(L_vv, L_q - L_vq @ v)    # d/dt L_v = L_q, solved for the acceleration
"""
FIT = """\
def residuals(p):
    error = vmap(acceleration, in_axes=(None, 0, 0))(p, q, v) - a
    return ravel(error) / sqrt(q.shape[0])

def rows(p, q, v):    # two a state, one for each joint
    return jacobian(acceleration(p, q, v), p)

by_state = vmap(rows, in_axes=(None, 0, 0))(model.params, q, v) / sqrt(q.shape[0])
J = reshape(by_state, (2 * q.shape[0], -1))
"""

# The path of one state by Runge and Kutta's method of fourth order: all steps in one call.
PATH = """\
def slope(s):
    q, v = s[0], s[1]
    return stack([v, acceleration(model.params, q, v)])

def step(s, t):
    k1 = slope(s)
    k2 = slope(s + h / 2 * k1)
    k3 = slope(s + h / 2 * k2)
    k4 = slope(s + h * k3)
    return s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), s

last, path = scan(step, start, times)
path
"""
# --8<-- [end:program]

GRAVITY = 9.81
LAYERS = [{"dense": [6, 24], "activation": "softplus"}, {"dense": [24, 24], "activation": "softplus"}]
NETWORK = {"layers": [*LAYERS, {"dense": [24, 1], "bias": False}]}


def acceleration(q: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    """The double pendulum with unit masses and lengths; angles from the vertical."""
    difference = q[..., 0] - q[..., 1]
    cosine, sine = np.cos(difference), np.sin(difference)
    first = -sine * v[..., 1] ** 2 - 2 * GRAVITY * np.sin(q[..., 0])
    second = sine * v[..., 0] ** 2 - GRAVITY * np.sin(q[..., 1])
    determinant = 2 - cosine**2
    return np.stack([first - cosine * second, 2 * second - cosine * first], axis=-1) / determinant[..., None]


def energy(q: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
    """Kinetic and potential energy of the double pendulum."""
    kinetic = v[..., 0] ** 2 + 0.5 * v[..., 1] ** 2 + v[..., 0] * v[..., 1] * np.cos(q[..., 0] - q[..., 1])
    return np.asarray(kinetic - GRAVITY * (2 * np.cos(q[..., 0]) + np.cos(q[..., 1])))


def states(rng: np.random.Generator, n: int, dtype: Any = np.float64) -> dict[str, NDArray[Any]]:
    """Random angles of all sizes, velocities up to 4 rad/s, and their accelerations."""
    q, v = rng.uniform(-np.pi, np.pi, (n, 2)), rng.uniform(-4, 4, (n, 2))
    return {"q": q.astype(dtype), "v": v.astype(dtype), "a": acceleration(q, v).astype(dtype)}


def predicted(client: nablad.Client, params: Any, test: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The network's accelerations."""
    program = LAGRANGIAN + "vmap(acceleration, in_axes=(None, 0, 0))(model.params, q, v)"
    given = {"q": test["q"], "v": test["v"]}
    return np.asarray(client.evaluate(program, inputs=given, model="pendulum", params=params).result)


def train(client: nablad.Client, steps: int) -> Any:
    """The trained parameters."""
    client.create_model("pendulum", NETWORK, seed=0)
    params: Any = client.params("pendulum").params
    rng = np.random.default_rng(0)
    return gauss_newton(
        client,
        LAGRANGIAN + FIT,
        model="pendulum",
        params=params,
        inputs=lambda: states(rng, 1000),
        steps=steps,
        renew=5,
    )


def path(client: nablad.Client, params: Any, start: NDArray[Any], times: NDArray[Any]) -> NDArray[Any]:
    """The network's motion from a start, in float64."""
    given = {"start": start, "times": times, "h": times[1] - times[0]}
    found = client.evaluate(LAGRANGIAN + PATH, inputs=given, model="pendulum", params=params).result
    return np.asarray(found)


def true_path(start: NDArray[Any], times: NDArray[Any]) -> NDArray[Any]:
    """The same motion by SciPy to tight tolerances."""
    from scipy.integrate import solve_ivp

    def slope(_: float, s: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([s[2:], acceleration(s[:2], s[2:])])

    solved = solve_ivp(slope, (0, times[-1]), start.ravel(), t_eval=times, rtol=1e-10, atol=1e-10)
    return np.asarray(solved.y.T.reshape(-1, 2, 2))


def draw(
    out: Path, test: Any, found: Any, times: NDArray[Any], motion: NDArray[Any], truth: NDArray[Any]
) -> None:
    pyplot, save = figure(out, "lagrangian")
    drawn, (scatter, angles, energies) = pyplot.subplots(1, 3, figsize=(12, 3.8))
    some = slice(0, 600)
    limit = 1.05 * float(np.abs(test["a"][some]).max())
    scatter.plot([-limit, limit], [-limit, limit], color="black", lw=0.8)
    for joint, colour in ((0, "tab:blue"), (1, "tab:orange")):
        a = test["a"][some, joint], found[some, joint]
        scatter.plot(*a, ".", ms=3, color=colour, label=f"joint {joint + 1}")
        angles.plot(times, truth[:, 0, joint], color=colour, label=f"exact, joint {joint + 1}")
        angles.plot(times[::4], motion[::4, 0, joint], "o", ms=3, color=colour, mfc="white")
    scatter.set(title="fresh states", xlabel="acceleration, rad/s²", ylabel="network's acceleration, rad/s²")
    scatter.legend(frameon=False, fontsize=8)
    angles.plot([], [], "o", ms=3, color="grey", mfc="white", label="network")
    angles.set(title="a motion", xlabel="t, s", ylabel="angle, rad")
    angles.legend(frameon=False, fontsize=8)
    energies.plot(times, energy(truth[:, 0], truth[:, 1]), color="black", lw=1, label="exact")
    energies.plot(times, energy(motion[:, 0], motion[:, 1]), color="tab:red", label="network")
    energies.set(title="its energy", xlabel="t, s", ylabel="energy, J", ylim=(-3 * GRAVITY, 3 * GRAVITY))
    energies.legend(frameon=False, fontsize=8)
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=180)
    test, times = states(np.random.default_rng(1), 5000), np.linspace(0, 5, 251)
    start = np.array([[0.9, 1.1], [0.0, 0.0]])  # angles, velocities: these stay below 4 rad/s
    truth = true_path(start, times)
    with local_server() as url, nablad.Client(url) as client:
        params = train(client, options.steps)
        found = predicted(client, params, test)
        motion = path(client, params, start, times)
    draw(options.out, test, found, times, motion, truth)
    drift = np.max(np.abs(energy(motion[:, 0], motion[:, 1]) - energy(start[0], start[1]))) / (6 * GRAVITY)
    print(f"largest change of energy in 5 s: {drift:.4f} of the range from hanging to standing")
    print(f"largest error of an angle in 5 s: {np.max(np.abs(motion[:, 0] - truth[:, 0])):.3f} rad")
    error = np.linalg.norm(found - test["a"]) / np.linalg.norm(test["a"])
    print(f"reached: relative L2 error of accelerations {error:.2e} (exact: equations of motion)")


if __name__ == "__main__":
    main()
