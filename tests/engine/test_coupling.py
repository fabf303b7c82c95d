"""Do examples mix? The answer read from the jaxpr, against a derivative that knows: a jvp on half of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import evaluate, gradient, host, rng

from nablad.problems import Refusal
from nablad_service.engine import watching
from nablad_service.engine.coupling import keeps_examples_apart

W = jnp.asarray(rng(3, 3))
RECORD = watching.Record()
APART: dict[str, Callable[[Any], Any]] = {
    "dense": lambda x: jnp.tanh(x @ W) + 1,
    "dense from the left": lambda x: (W @ x.T).T,
    "mapped": jax.vmap(lambda q: W @ jnp.sin(q)),
    "softmax of features": lambda x: jax.nn.softmax(x, axis=1),
    "norm of features": lambda x: x / jnp.sqrt(1 + jnp.sum(x**2, axis=1, keepdims=True)),
    "einsum": lambda x: jnp.einsum("bi,ij,bj->b", x, W, x)[:, None] * x,
    "stacked and taken apart": lambda x: jnp.stack([x[:, 0], x[:, 1], x[:, 2] ** 2], axis=1),
    "concatenated features": lambda x: jnp.concatenate([x, x**2], axis=1)[:, 1:4],
    "reshaped": lambda x: (x.reshape(4, 3, 1) @ jnp.ones((1, 2))).sum(2),
    "gelu, relu and friends": lambda x: jax.nn.gelu(x) + jax.nn.relu(x) + jax.nn.softplus(x) + jax.nn.silu(x),
    "its own gradient": jax.grad(lambda x: jnp.sum(jnp.sin(x @ W) ** 2)),
    "its own jvp": lambda x: jax.jvp(lambda x: jnp.cos(x @ W), (x,), (jnp.ones_like(x),))[1],
    "remat": jax.checkpoint(lambda x: jnp.tanh(x @ W)),
    "where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "taken columns": lambda x: jnp.take(x, jnp.array([2, 0, 1]), axis=1),
    "a loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: jnp.sin(c @ W) + x, x),
    "a loop that collects": lambda x: jax.lax.scan(lambda c, _: (c * x, c), x, None, length=3)[1].sum(0),
    "a loop over features": lambda x: jax.lax.scan(lambda c, v: (c + v**2, c), 0 * x[:, 0], x.T)[1].T,
    "watched": lambda x: watching.seen(watching.seen_backwards(jnp.sin(x), 1, 0, RECORD), 1, RECORD) @ W,
    "a watched gradient": jax.grad(
        lambda x: jnp.sum(jnp.sin(watching.seen_backwards(watching.seen(x, 0, RECORD) @ W, 1, 0, RECORD)))
    ),
    "batched solve": lambda x: jnp.linalg.cholesky(x[:, :, None] * x[:, None, :] + 9 * jnp.eye(3))[:, 2],
}
MIXING: dict[str, Callable[[Any], Any]] = {
    "mean over the batch": lambda x: x - x.mean(0),
    "softmax of the batch": lambda x: jax.nn.softmax(x, axis=0),
    "reversed batch": lambda x: x[::-1],
    "rolled batch": lambda x: jnp.roll(x, 1, axis=0),
    "running sum": lambda x: jnp.cumsum(x, axis=0),
    "pairs of examples": lambda x: (x @ x.T) @ x,
    "a matrix over the batch": lambda x: jnp.asarray(rng(4, 4)) @ x,
    "taken examples": lambda x: jnp.take(x, jnp.array([2, 3, 0, 1]), axis=0),
    "a loop that mixes": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c - c.mean(0), x),
    "a loop over examples": lambda x: jax.lax.scan(lambda c, v: (c + v, c + v), 0 * x[0], x)[1],
    "a loop that mixes late": lambda x: jax.lax.scan(
        lambda c, _: ((c[1], c[1].sum(0) + c[0]), None), (x, x), None, length=2
    )[0][0],
    "sorted": lambda x: jnp.sort(x, axis=0),
    "a factor from all examples": lambda x: x * jax.nn.logsumexp(x),
    "transposed and reshaped": lambda x: x.T.reshape(4, 3),
}


def touches_other_half(f: Callable[[Any], Any], x: Any) -> bool:
    """A tangent on the first half of the examples must not move the second."""
    tangent = jnp.asarray(rng(*x.shape, seed=8)).at[2:].set(0.0)
    moved = jax.jvp(f, (x,), (tangent,))[1]
    return bool(jnp.abs(moved[2:]).max() > 1e-12)


@pytest.mark.parametrize("name", APART)
def test_independent_examples_are_recognised(name: str) -> None:
    x = jnp.asarray(rng(4, 3, seed=5))
    assert keeps_examples_apart(jax.make_jaxpr(APART[name])(x), 0, 0)
    assert not touches_other_half(APART[name], x)


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_never_taken_for_independence(name: str) -> None:
    x = jnp.asarray(rng(4, 3, seed=5))
    assert not keeps_examples_apart(jax.make_jaxpr(MIXING[name])(x), 0, 0)
    assert touches_other_half(MIXING[name], x)


@pytest.mark.parametrize(
    "program",
    [
        "sum(batched_jacobian(model(x), x)**2)",
        "y = model(x)\nsum(hutchinson_trace(y, x, x)**2)",
    ],
)
def test_a_per_example_operator_refuses_batchnorm_in_train_mode(program: str) -> None:
    host("mixer", {"layers": [{"dense": [3, 3]}, {"batchnorm": 3}]})
    x = rng(4, 3)
    gradient(program, {"x": x}, model="mixer", mode="eval")
    with pytest.raises(Refusal, match="couples_examples") as refused:
        gradient(program, {"x": x}, model="mixer", mode="train")
    assert refused.value.where is not None


def test_partials_of_a_batch_refuse_what_mixes_points() -> None:
    with pytest.raises(Refusal, match="couples_examples"):
        evaluate("d(t * mean(t), t)", {"t": rng(5)})


def test_partials_work_on_a_grid_and_refuse_mixing_along_either_axis() -> None:
    g = rng(3, 4)
    np.testing.assert_allclose(evaluate("d(sin(g), g)", {"g": g}), np.cos(g), rtol=1e-14)
    for axis in (0, 1):
        with pytest.raises(Refusal, match="couples_examples"):
            evaluate(f"d(g * sum(g, axis={axis}, keepdims=True), g)", {"g": g})
