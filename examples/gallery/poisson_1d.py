"""Poisson's equation in one dimension by a session: the loop is here, what is trained stays on the server.

python examples/gallery/poisson_1d.py

Each step takes new points; they are on their way while the step before is computed.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import arguments, figure, local_server, steps_with_progress

import nablad

# --8<-- [start:program]
PROGRAM = """\
def solution(x):    # zero at both ends
    return (1 - x**2) * model(stack([x]))[0]

def equation(x):
    u = solution(x)
    return d(u, x, x) + pi**2 * sin(pi * x)

mean(vmap(equation)(x)**2)
"""
# --8<-- [end:program]

NETWORK = {"preset": "mlp", "sizes": [1, 24, 24, 1], "activation": "tanh", "init": "glorot_normal"}


def exact(x: NDArray[Any]) -> NDArray[Any]:
    """u = sin πx."""
    return np.asarray(np.sin(np.pi * x))


def train(client: nablad.Client, steps: int) -> tuple[Any, list[float]]:
    """The network's parameters and the loss of each step."""
    client.create_model("poisson_1d", NETWORK, seed=0)
    random = np.random.default_rng(0)
    rate = {"schedule": "cosine_decay", "init_value": 1e-2, "decay_steps": steps, "alpha": 1e-3}
    losses: list[float] = []
    # --8<-- [start:run]
    with client.session(model="poisson_1d", optimiser={"name": "adam", "learning_rate": rate}) as session:
        under_way: deque[Any] = deque()
        for step, show in steps_with_progress(steps):
            x = random.uniform(-1, 1, 64).astype(np.float32)
            under_way.append(session.gradient(PROGRAM, inputs={"x": x}))
            session.step()
            if len(under_way) > 2 or step == steps:  # the answers of two steps before
                losses += [gradient.result().value for gradient in under_way]
                under_way.clear()
                show(step, loss=losses[-1])
        return session.params().params, losses
    # --8<-- [end:run]


def draw(out: Path, losses: list[float], x: Any, found: Any) -> None:
    pyplot, save = figure(out, "poisson_1d")
    drawn, (curve, solution, error) = pyplot.subplots(1, 3, figsize=(12, 3.4))
    curve.semilogy(losses, color="black", lw=0.6)
    curve.set(title="loss", xlabel="step", ylabel="loss")
    solution.plot(x, exact(x), color="tab:blue", label="exact")
    solution.plot(x[::20], found[::20], "o", ms=3.5, color="tab:blue", mfc="white", label="network")
    solution.set(title="solution", xlabel="x", ylabel="u")
    solution.legend(frameon=False, fontsize=8)
    error.plot(x, found - exact(x), color="tab:red", lw=1)
    error.set(title="error", xlabel="x", ylabel="network - exact")
    save(drawn)


def main() -> None:
    options = arguments(__doc__, steps=3000)
    x = np.linspace(-1, 1, 401)
    with local_server() as url, nablad.Client(url) as client:
        params, losses = train(client, options.steps)
        found = (1 - x**2) * client.apply("poisson_1d", x[:, None], params=params)[:, 0]
    draw(options.out, losses, x, found)
    error = np.linalg.norm(found - exact(x)) / np.linalg.norm(exact(x))
    print(f"reached: relative L2 error {error:.2e}")


if __name__ == "__main__":
    main()
