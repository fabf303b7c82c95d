"""Write a JAX function as a StableHLO artifact, and host it on a server that does not have its code.

    python examples/export_model.py [URL]

writes `pendulum.stablehlo` and `pendulum.npz` here. With the address of a server it also hosts them, and asks
for the gradient of a loss that holds a derivative of the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nablad
from nablad_models import export_model


def energy(params: dict[str, Any], q: jax.Array, p: jax.Array) -> jax.Array:
    """A learned Hamiltonian H(q, p) of a pendulum: angles and momenta (batch,) to energies (batch,)."""
    features = jnp.stack([jnp.sin(q), jnp.cos(q), p], axis=-1)
    hidden = jnp.tanh(features @ params["hidden"]["weight"].T + params["hidden"]["bias"])
    return hidden @ params["out"]


def first_params(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    hidden = {"weight": rng.normal(size=(32, 3)), "bias": np.zeros(32)}
    params = {"hidden": hidden, "out": rng.normal(size=32) / 32**0.5}
    return jax.tree.map(lambda leaf: leaf.astype("float32"), params)


def by_name(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """As they travel: the names that the artifact has for them, from the path of each leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


LOSS = """
H = pendulum(q, p)
velocity = grad(sum(H), p)
force = -grad(sum(H), q)
mean((velocity - dq)**2) + mean((force - dp)**2)
"""


def main() -> None:
    params = first_params()
    angle = jax.ShapeDtypeStruct((), "float32")
    artifact = export_model(energy, params, {"q": angle, "p": angle}, derivative_order=2)
    Path("pendulum.stablehlo").write_bytes(artifact)
    np.savez("pendulum.npz", **by_name(params))
    print(f"pendulum.stablehlo: {len(artifact)} bytes, two derivatives")
    if len(sys.argv) < 2:
        print("to host it: python examples/export_model.py http://127.0.0.1:8421")
        return

    rng = np.random.default_rng(1)
    q, p = rng.uniform(-3, 3, (2, 100)).astype("float32")
    with nablad.Client(sys.argv[1]) as client:
        client.create_model("pendulum", stablehlo=artifact, params=by_name(params))
        inputs = {"q": q, "p": p, "dq": p, "dp": -np.sin(q)}
        result = client.gradient(LOSS, inputs=inputs, models={"pendulum": "pendulum"})
    print("loss", result.value)
    for name, gradient in result.gradients["params"].items():
        print(name, gradient.shape, float(np.linalg.norm(gradient)))


if __name__ == "__main__":
    main()
