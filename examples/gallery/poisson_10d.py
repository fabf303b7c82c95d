"""Poisson's equation in ten dimensions by a network, on fresh random points at every step.

python examples/gallery/poisson_10d.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import arguments, figure, gauss_newton, local_server

import nablad

# --8<-- [start:program]
PROGRAM = """\
def equation(p, x):    # -Δu = f in the cube
    u = model(x, params=p)[0]
    f = (pi / 2)**2 * sum(sin(pi / 2 * x))
    return laplacian(u, x) + f

def boundary(p, x):    # u = g on its twenty faces
    g = sum(sin(pi / 2 * x))
    return 10 * (model(x, params=p)[0] - g)

def residuals(p):
    inside = vmap(equation, in_axes=(None, 0))(p, cube) / sqrt(cube.shape[0])
    outside = vmap(boundary, in_axes=(None, 0))(p, faces) / sqrt(faces.shape[0])
    return concat([inside, outside])
"""

# The Jacobian row by row: one gradient in the parameters a point.
JACOBIAN = """\
def equation_row(p, x):
    return ravel(grad(equation(p, x), p))

def boundary_row(p, x):
    return ravel(grad(boundary(p, x), p))

inside = vmap(equation_row, in_axes=(None, 0))(model.params, cube) / sqrt(cube.shape[0])
outside = vmap(boundary_row, in_axes=(None, 0))(model.params, faces) / sqrt(faces.shape[0])
J = concat([inside, outside])
"""
# --8<-- [end:program]

DIMENSIONS = 10
NETWORK = {"preset": "mlp", "sizes": [DIMENSIONS, 20, 20, 1], "activation": "tanh", "init": "glorot_normal"}


def exact(x: NDArray[Any]) -> NDArray[Any]:
    """u(x) = Σ sin(π xᵢ / 2)."""
    return np.asarray(np.sum(np.sin(np.pi / 2 * x), axis=-1))


def on_faces(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Uniform points on the boundary of the unit cube."""
    x = rng.random((n, DIMENSIONS))
    x[np.arange(n), rng.integers(DIMENSIONS, size=n)] = rng.integers(2, size=n)
    return x


def train(client: nablad.Client, steps: int, test: NDArray[Any]) -> tuple[Any, list[tuple[int, float]]]:
    """The network's parameters, and their error on the test points on the way."""
    client.create_model("poisson", NETWORK, seed=0)
    params: Any = client.params("poisson").params
    rng, errors = np.random.default_rng(0), [(0, relative_error(client, params, test))]

    def fresh() -> dict[str, Any]:
        return {"cube": rng.random((1024, DIMENSIONS)), "faces": on_faces(rng, 512)}

    def seen(step: int, params: Any, loss: float) -> None:
        errors.append((step, relative_error(client, params, test)))

    program = PROGRAM + JACOBIAN
    return gauss_newton(
        client, program, model="poisson", params=params, inputs=fresh, steps=steps, renew=5, seen=seen
    ), errors


def relative_error(client: nablad.Client, params: Any, x: NDArray[Any]) -> float:
    found = client.apply("poisson", x, params=params)[:, 0]
    return float(np.linalg.norm(found - exact(x)) / np.linalg.norm(exact(x)))


def draw(out: Path, errors: list[tuple[int, float]], lines: dict[str, tuple[Any, Any]]) -> None:
    pyplot, save = figure(out, "poisson_10d")
    drawn, (history, slices) = pyplot.subplots(1, 2, figsize=(10, 3.8))
    history.semilogy(*zip(*errors, strict=True), color="tab:blue")
    history.set(title="error on 10,000 fresh points", xlabel="step", ylabel="relative L2 error")
    history.grid(alpha=0.3, which="both")
    s = np.linspace(0, 1, 41)
    for (name, (found, truth)), colour in zip(lines.items(), ("tab:blue", "tab:orange"), strict=True):
        slices.plot(s, truth, color=colour, label=f"exact, {name}")
        slices.plot(s[::2], found[::2], "o", ms=4, color=colour, mfc="white")
    slices.plot([], [], "o", ms=4, color="grey", mfc="white", label="network")
    slices.set(title="two lines through the cube", xlabel="s", ylabel="u")
    slices.legend(frameon=False)
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=150)
    test = np.random.default_rng(1).random((10_000, DIMENSIONS))
    with local_server() as url, nablad.Client(url) as client:
        params, errors = train(client, options.steps, test)
        error = relative_error(client, params, test)
        s = np.linspace(0, 1, 41)
        diagonal = np.repeat(s[:, None], DIMENSIONS, axis=1)
        axis = np.full((s.size, DIMENSIONS), 0.5)
        axis[:, 0] = s
        lines = {
            name: (client.apply("poisson", x, params=params)[:, 0], exact(x))
            for name, x in {"x = (s, s, …, s)": diagonal, "x = (s, ½, …, ½)": axis}.items()
        }
    draw(options.out, errors, lines)
    print(f"reached: relative L2 error {error:.2e} (exact: u = Σ sin(π xᵢ / 2))")


if __name__ == "__main__":
    main()
