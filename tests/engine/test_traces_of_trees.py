"""Traces in the parameters: a tree's entries are the coordinates of one vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import agree, agree_tree, by_jax, evaluate, gradient, host, rng
from jax.flatten_util import ravel_pytree

NET = {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"dense": [3, 1]}]}
X, Y = rng(6, 2), rng(6, 1, seed=1)
LOSS = "L = mean((model(x) - y)**2)\n"


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"]) @ p["layer_2.weight"].T + p["layer_2.bias"]


def hessian(p: Any) -> Any:
    """Leaves in alphabetical order, as JAX has those of a plain dict."""
    flat, unravel = ravel_pytree(p)
    return jax.hessian(lambda flat: jnp.mean((net(unravel(flat), X) - Y) ** 2))(flat)


@pytest.mark.parametrize(
    "trace",
    [
        "laplacian(L, model.params)",
        "divergence(grad(L, model.params), model.params)",
        "trace(hessian(L, model.params))",
    ],
)
def test_the_trace_of_the_hessian_in_the_parameters_and_its_gradient(trace: str) -> None:
    p = host("traced_tree", NET, seed=4)
    found = gradient(LOSS + trace, {"x": X, "y": Y}, model="traced_tree")
    value, expected = by_jax(lambda p: jnp.trace(hessian(p)))(p)
    agree(found["value"], value, 1e-11)
    agree_tree(found["gradients"]["params"], expected, 1e-10)


def test_probes_are_trees_drawn_like_the_parameters() -> None:
    p = host("traced_tree", NET, seed=4)
    program = LOSS + (
        "g = grad(L, model.params)\nv = rademacher(model.params, 5, seed=3)\n"
        "t, error = hutchinson(g, model.params, v)\nt"
    )
    found = gradient(program, {"x": X, "y": Y}, model="traced_tree", outputs=["v", "t", "error"])
    v = found["outputs"]["v"]
    assert {name: leaf.shape for name, leaf in v.items()} == {n: (5, *leaf.shape) for n, leaf in p.items()}
    assert all(np.isin(leaf, (-1.0, 1.0)).all() for leaf in v.values())
    assert len({leaf.tobytes() for leaf in v.values()}) == len(v)
    flat = np.concatenate([v[name].reshape(5, -1) for name in sorted(p)], axis=1)
    samples = lambda p: jnp.einsum("ki,ij,kj->k", flat, hessian(p), flat)  # noqa: E731
    value, expected = by_jax(lambda p: jnp.mean(samples(p)))(p)
    agree(found["outputs"]["t"], value, 1e-11)
    agree_tree(found["gradients"]["params"], expected, 1e-10)
    agree(found["outputs"]["error"], jnp.std(samples(p), ddof=1) / np.sqrt(5), 1e-10)


def test_one_probe_is_a_tree_of_the_parameters_shapes() -> None:
    p = host("traced_tree", NET, seed=4)
    program = LOSS + "hutchinson_trace(grad(L, model.params), model.params, v)"
    v = {name: rng(*leaf.shape, seed=7) for name, leaf in p.items()}
    found = evaluate(program, {"x": X, "y": Y, "v": v}, model="traced_tree")
    flat = np.concatenate([v[name].ravel() for name in sorted(p)])
    agree(found, flat @ hessian(p) @ flat, 1e-11)
