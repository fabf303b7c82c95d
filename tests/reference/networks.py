"""The networks of the cases: their JSON, and what they compute for one example, from the formulas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Activation = Callable[[Any], Any]


def mlp_json(*sizes: int, activation: str = "tanh") -> dict[str, Any]:
    return {"preset": "mlp", "sizes": list(sizes), "activation": activation}


def mlp(p: Any, x: Any, activation: Activation = jnp.tanh) -> Any:
    """W_n a(... a(W_1 x + b_1)) + b_n."""
    depth = len(p) // 2
    for layer in range(1, depth):
        x = activation(p[f"layer_{layer}.weight"] @ x + p[f"layer_{layer}.bias"])
    return p[f"layer_{depth}.weight"] @ x + p[f"layer_{depth}.bias"]


def scalar(p: Any, x: Any, activation: Activation = jnp.tanh) -> Any:
    """The one output of an MLP to (1,)."""
    return mlp(p, x, activation)[0]


def mlp_tree(*sizes: int, seed: int = 0) -> dict[str, Any]:
    """Standard normal numbers in the shape of the parameters of an MLP."""
    draw = np.random.default_rng(seed)
    tree = {}
    for layer, (before, after) in enumerate(pairwise(sizes), start=1):
        tree[f"layer_{layer}.weight"] = draw.standard_normal((after, before))
        tree[f"layer_{layer}.bias"] = draw.standard_normal(after)
    return tree


def conv_scalar_json(activation: str) -> dict[str, Any]:
    """One channel of 4 by 4 pixels, three filters of 3 by 3 that stay inside, one answer."""
    return {
        "layers": [
            {"conv": [1, 3, 3], "activation": activation},
            {"flatten": True},
            {"dense": [12, 1]},
        ]
    }


def conv_scalar(p: Any, image: Any, activation: Activation) -> Any:
    """The filters slide over the patches of the image: a sum over patches written out as a product."""
    patches = jnp.stack([image[0, i : i + 3, j : j + 3] for i in range(2) for j in range(2)])
    filtered = jnp.einsum("nij,cij->cn", patches, p["layer_1.weight"][:, 0])
    h = activation(filtered + p["layer_1.bias"][:, None]).reshape(-1)
    return p["layer_3.weight"][0] @ h + p["layer_3.bias"][0]


def attention(p: Any, x: Any, heads: int) -> Any:
    """softmax(Q K' / sqrt(d)) V head by head, joined and projected; x is (sequence, size)."""
    size = x.shape[1]
    width = size // heads
    q, k, v = (
        (x @ p["in_proj_weight"][n * size : (n + 1) * size].T + p["in_proj_bias"][n * size : (n + 1) * size])
        for n in range(3)
    )
    joined = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = jax.nn.softmax(q[:, own] @ k[:, own].T / np.sqrt(width).item(), axis=-1)
        joined.append(scores @ v[:, own])
    return jnp.concatenate(joined, axis=1) @ p["out_proj.weight"].T + p["out_proj.bias"]


def batch_norm(p: Any, h: Any, mean: Any, var: Any) -> Any:
    return (h - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def layer_norm(p: Any, h: Any) -> Any:
    return (h - h.mean()) / jnp.sqrt(h.var() + 1e-5) * p["weight"] + p["bias"]


def leaves(p: Any, layer: str) -> dict[str, Any]:
    """The leaves of one layer, by their own names."""
    return {name.removeprefix(f"{layer}."): leaf for name, leaf in p.items() if name.startswith(f"{layer}.")}
