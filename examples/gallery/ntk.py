"""Weights of a loss's terms from its neural tangent kernel, after Wang, Yu and Perdikaris (2022).

    python examples/gallery/ntk.py

Poisson's equation in one dimension, trained twice from the same parameters: with equal weights, and with
weights that are set anew from the kernel's traces every hundred steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import Adam, arguments, figure, local_server, steps_with_progress

import nablad

# --8<-- [start:program]
PROGRAM = """\
def u(x):
    return model(stack([x]))[0]

def equation(x):    # u" = -(4π)² sin 4πx
    v = u(x)
    return d(v, x, x) + (4 * pi)**2 * sin(4 * pi * x)

r = vmap(equation)(x)
b = vmap(u)(ends)
inside = mean(r**2)
boundary = mean(b**2)
"""
LOSS = PROGRAM + "inside + boundary"  # the request's weights take the place of this sum

# Its kernel: K = J J' for J = ∂(r, b)/∂θ, block by block.
KERNEL = """\
J_r = jacobian(r, model.params)
J_b = jacobian(b, model.params)
K_r = J_r @ J_r.T
K_b = J_b @ J_b.T
per_point_r = trace(K_r) / x.shape[0]
per_point_b = trace(K_b) / ends.shape[0]
eigenvalues_r = eigvalsh(K_r)
eigenvalues_b = eigvalsh(K_b)
"""
# --8<-- [end:program]

WIDTH = 128
LAYERS = [{"dense": [1, WIDTH], "activation": "tanh"}, {"dense": [WIDTH, WIDTH], "activation": "tanh"}]
NETWORK = {"layers": [*LAYERS, {"dense": [WIDTH, 1]}]}
POINTS = {"x": np.linspace(0, 1, 100), "ends": np.array([0.0, 1.0])}


@dataclass
class Run:
    """What one training leaves behind."""

    params: Any = None
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    weights: list[dict[str, float]] = field(default_factory=list)
    spectra: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)


def start(client: nablad.Client) -> Any:
    """Standard normal parameters, weights scaled by the number of inputs: the kernel's own initialisation."""
    client.create_model("poisson", NETWORK)
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(leaf.shape) / (np.sqrt(leaf.shape[1]) if leaf.ndim > 1 else 1)
        for name, leaf in client.params("poisson").params.items()
    }


def relative_error(client: nablad.Client, params: Any) -> float:
    x = np.linspace(0, 1, 500)
    found, truth = client.apply("poisson", x[:, None], params=params)[:, 0], np.sin(4 * np.pi * x)
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def train(client: nablad.Client, params: Any, steps: int, balanced: bool) -> Run:
    """One training; with `balanced`, a term's weight is the sum of all traces over its own."""
    run, adam = Run(), Adam(rate=2e-3, steps=steps, last=1e-5)
    weights = {"inside": 1.0, "boundary": 1.0}
    traces = ["per_point_r", "per_point_b", "eigenvalues_r", "eigenvalues_b"]
    for step, show in steps_with_progress(steps, every=max(steps // 5, 1)):
        if step % 100 == 1 or step == steps:
            asked = PROGRAM + KERNEL + "r"
            kernel = client.evaluate(
                asked, inputs=POINTS, outputs=traces, model="poisson", params=params
            ).outputs
            total = kernel["per_point_r"] + kernel["per_point_b"]
            if balanced:
                weights = {
                    "inside": float(total / kernel["per_point_r"]),
                    "boundary": float(total / kernel["per_point_b"]),
                }
            run.spectra.append((kernel["eigenvalues_r"], kernel["eigenvalues_b"]))
            run.weights.append(weights)
            run.steps.append(step)
            run.errors.append(relative_error(client, params))
        result = client.gradient(LOSS, inputs=POINTS, model="poisson", params=params, terms=weights)
        params = adam.step(params, result.gradients["params"])
        show(step, **result.terms, error=run.errors[-1], weight=weights["boundary"])
    run.params = params
    run.steps.append(steps)
    run.errors.append(relative_error(client, params))
    return run


def draw(out: Path, plain: Run, balanced: Run, solutions: list[NDArray[Any]]) -> None:
    pyplot, save = figure(out, "ntk")
    drawn, (spectrum, weight, errors, pointwise) = pyplot.subplots(1, 4, figsize=(14, 3.6))
    for (r, b), style, fill, when in (
        (balanced.spectra[0], "-", "tab:red", "start"),
        (balanced.spectra[-1], "--", "white", "end"),
    ):
        r = r[::-1][r[::-1] > 1e-6]
        spectrum.loglog(np.arange(1, r.size + 1), r, style, color="tab:blue", label=f"equation, {when}")
        spectrum.loglog([1, 2], b[::-1], "o", color="tab:red", mfc=fill, label=f"boundary, {when}")
    spectrum.set(title="eigenvalues of the kernel", xlabel="index", ylabel="eigenvalue")
    spectrum.legend(frameon=False, fontsize=8)
    for term, colour in (("boundary", "tab:red"), ("inside", "tab:blue")):
        weight.semilogy(balanced.steps[:-1], [w[term] for w in balanced.weights], color=colour, label=term)
    weight.set(title="weights, balanced", xlabel="step", ylabel="weight")
    weight.legend(frameon=False, fontsize=8)
    x = np.linspace(0, 1, 500)
    runs = ((plain, "equal weights", "0.55"), (balanced, "balanced", "tab:green"))
    for (run, name, colour), solution in zip(runs, solutions, strict=True):
        errors.semilogy(run.steps, run.errors, color=colour, label=name)
        pointwise.semilogy(x, np.abs(solution - np.sin(4 * np.pi * x)), color=colour, label=name)
    errors.set(title="error", xlabel="step", ylabel="relative L2 error of u")
    errors.legend(frameon=False, fontsize=8)
    pointwise.set(title="where it is", xlabel="x", ylabel="|u - exact|", ylim=(1e-6, None))
    pointwise.legend(frameon=False, fontsize=8, loc="lower center")
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=2500)
    x = np.linspace(0, 1, 500)[:, None]
    with local_server() as url, nablad.Client(url) as client:
        params = start(client)
        print("equal weights")
        plain = train(client, params, options.steps, balanced=False)
        print("balanced by the kernel")
        balanced = train(client, params, options.steps, balanced=True)
        solutions = [client.apply("poisson", x, params=run.params)[:, 0] for run in (plain, balanced)]
    draw(options.out, plain, balanced, solutions)
    r, b = balanced.spectra[0]
    print(f"trace of the kernel a point at the start: equation {r.mean():.3g}, boundary {b.mean():.3g}")
    r, b = balanced.spectra[-1]
    print(f"trace of the kernel a point at the end: equation {r.mean():.3g}, boundary {b.mean():.3g}")
    print(f"weight of the boundary at the end {balanced.weights[-1]['boundary']:.0f}")
    print(f"relative L2 error with equal weights {plain.errors[-1]:.2e}, balanced {balanced.errors[-1]:.2e}")
    print(f"reached: relative L2 error {balanced.errors[-1]:.2e} (exact: u = sin 4πx)")


if __name__ == "__main__":
    main()
