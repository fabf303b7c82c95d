"""Burgers' equation by a physics-informed network, in two hands: a program for nablad, and JAX."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PROGRAM = """\
nu = 0.01 / pi

def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) + u * d(u, x) - nu * d(u, x, x)

inside = mean(vmap(residual)(t, x)**2)
edges = mean((model(stack([t_edge, x_edge], axis=1))[:, 0] - u_edge)**2)
inside + 10 * edges
"""


def points(count: int) -> dict[str, Any]:
    """So many points inside, half as many on the edges, with the values of u there, in float32."""
    rng = np.random.default_rng(0)
    edge = count // 2
    t_edge, x_edge = rng.random(edge), rng.uniform(-1, 1, edge)
    t_edge[: edge // 2] = 0.0
    x_edge[edge // 2 :] = rng.choice([-1.0, 1.0], edge - edge // 2)
    u_edge = np.where(t_edge == 0, -np.sin(np.pi * x_edge), 0.0)
    found = {"t": rng.random(count), "x": rng.uniform(-1, 1, count)}
    found |= {"t_edge": t_edge, "x_edge": x_edge, "u_edge": u_edge}
    return {name: values.astype(np.float32) for name, values in found.items()}


def architecture(width: int, depth: int) -> dict[str, Any]:
    """The network, for nablad."""
    return {"preset": "mlp", "sizes": [2, *[width] * depth, 1], "activation": "tanh", "init": "glorot_normal"}


def network(params: dict[str, Any], z: Any) -> Any:
    """The same network in JAX, at one point or several."""
    layers = len(params) // 2
    for number in range(1, layers + 1):
        z = z @ params[f"layer_{number}.weight"].T + params[f"layer_{number}.bias"]
        z = jnp.tanh(z) if number < layers else z
    return z


def loss(params: dict[str, Any], given: dict[str, Any]) -> Any:
    """The loss as one writes it in JAX: jax.grad inside jax.grad, under vmap."""

    def u(t: Any, x: Any) -> Any:
        return network(params, jnp.stack([t, x]))[0]

    def residual(t: Any, x: Any) -> Any:
        u_t, u_x = jax.grad(u, 0), jax.grad(u, 1)
        return u_t(t, x) + u(t, x) * u_x(t, x) - 0.01 / np.pi * jax.grad(u_x, 1)(t, x)

    inside = jnp.mean(jax.vmap(residual)(given["t"], given["x"]) ** 2)
    edges = network(params, jnp.stack([given["t_edge"], given["x_edge"]], axis=1))[:, 0]
    return inside + 10 * jnp.mean((edges - given["u_edge"]) ** 2)


def drawn(width: int, depth: int) -> dict[str, Any]:
    """Parameters in float32 after Glorot and Bengio (2010)."""
    rng = np.random.default_rng(1)
    sizes = [2, *[width] * depth, 1]
    found = {}
    for number, (inner, outer) in enumerate(pairwise(sizes), 1):
        scale = np.sqrt(2 / (inner + outer))
        found[f"layer_{number}.weight"] = (scale * rng.standard_normal((outer, inner))).astype(np.float32)
        found[f"layer_{number}.bias"] = np.zeros(outer, np.float32)
    return found
