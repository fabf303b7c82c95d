"""Hutch++: exact where the matrix has few directions, unbiased elsewhere, its gradient for a fixed basis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import agree, agree_tree, by_jax, evaluate, gradient, host, rng
from jax.flatten_util import ravel_pytree

from nablad.problems import Refusal
from nablad_service.engine.derivatives.hutch_plus_plus import orthonormal

STRATEGIES = ("forward", "reverse", "forward_scan")
N = 24
LINEAR = "y = A @ x\n"
NET = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"dense": [4, 1]}]}
"""17 parameters."""
X, Y = rng(9, 2), rng(9, 1, seed=1)
LOSS = "L = mean((model(x) - y)**2)\ng = grad(L, model.params)\n"


def of_rank(rank: int, seed: int = 0) -> Any:
    """Without symmetry."""
    return rng(N, rank, seed=seed) @ rng(rank, N, seed=seed + 1)


def estimates(A: Any, probes: int, **asked: Any) -> Any:
    """Estimate and standard error of the trace of A, in its own dtype."""
    text = LINEAR + f"hutchinson(y, x, probes={probes}, kind='hutch++')"
    return evaluate(text, {"x": np.zeros(len(A), A.dtype), "A": A}, **asked)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("rank", "probes"), [(0, 4), (1, 5), (3, 9), (4, 17)])
def test_a_matrix_of_few_directions_has_its_trace(rank: int, probes: int, strategy: str, dtype: str) -> None:
    A = of_rank(rank).astype(dtype)
    t, e = estimates(A, probes, strategies={"hutchinson": strategy})
    tolerance = (1e-12 if dtype == "float64" else 1e-5) * np.abs(A).sum()
    assert t.dtype == e.dtype == dtype
    assert abs(t - np.trace(A)) <= tolerance
    assert 0 <= e <= tolerance


@pytest.mark.parametrize("probes", [N, N + 1, 3 * N])
def test_as_many_products_as_coordinates_give_the_trace_itself(probes: int) -> None:
    A = rng(N, N)
    t, e = estimates(A, probes)
    agree(t, np.trace(A))
    assert e == 0


def by_seed(A: Any, estimate: str, count: int) -> Any:
    """Many estimates and their standard errors, in one loop."""
    text = f"def step(carry, s):\n    return (carry, stack({estimate}))\nscan(step, 0.0, seeds)[1]"
    return np.transpose(evaluate(text, {"x": np.zeros(len(A)), "A": A, "seeds": np.arange(count)}))


@pytest.mark.parametrize("probes", [4, 9, 11])
def test_the_mean_is_the_trace_and_the_reported_error_the_true_one(probes: int) -> None:
    A = rng(N, N)
    t, e = by_seed(A, f"hutchinson(A @ x, x, probes={probes}, kind='hutch++', seed=s)", 1000)
    off = t - np.trace(A)
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))
    noise = 5 * np.sqrt(np.var(off**2) / len(off) + np.var(e**2) / len(off))
    assert abs(np.mean(off**2) - np.mean(e**2)) < noise
    assert noise < np.mean(off**2)


def test_where_the_spectrum_decays_it_beats_random_signs_by_far() -> None:
    Q = np.linalg.qr(rng(60, 60))[0]
    A = (Q / np.arange(1, 61) ** 3) @ Q.T

    def off(kind: str) -> Any:
        t, _ = by_seed(A, f"hutchinson(A @ x, x, probes=18, kind='{kind}', seed=s)", 20)
        return np.mean((t - np.trace(A)) ** 2)

    assert off("hutch++") < 1e-3 * off("rademacher")


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"]) @ p["layer_2.weight"].T + p["layer_2.bias"]


def by_hand(probes: int, dtype: str) -> Any:
    """The estimate of the trace of the Hessian from the same signs, by a QR decomposition, and its error."""

    def estimate(p: Any, x: Any) -> Any:
        leaves, unravel = ravel_pytree(list(p.values()))

        def loss(leaves: Any, x: Any) -> Any:
            return jnp.mean((net(dict(zip(p, unravel(leaves), strict=True)), x) - Y.astype(dtype)) ** 2)

        H = jax.hessian(loss)(leaves, x)
        k = probes // 3
        key = jax.random.fold_in(jax.random.key(0), 3)
        signs = jax.random.rademacher(key, (probes - k, leaves.size), dtype)
        Q = jnp.linalg.qr(jax.lax.stop_gradient(H) @ signs[:k].T)[0]
        Q = jax.lax.stop_gradient(Q)
        G = signs[k:].T - Q @ (Q.T @ signs[k:].T)
        beside = jnp.sum(G * (H @ G), axis=0)
        error = jnp.std(beside, ddof=1) / jnp.sqrt(1.0 * len(beside))
        return jnp.trace(Q.T @ H @ Q) + jnp.mean(beside), error.astype(dtype)

    return estimate


@pytest.mark.parametrize(
    ("strategy", "probes", "dtype"),
    [
        *((strategy, 9, "float64") for strategy in STRATEGIES),
        ("forward", 13, "float64"),
        ("forward", 9, "float32"),
    ],
)
def test_the_gradient_in_the_parameters_is_that_for_a_fixed_basis(
    strategy: str, probes: int, dtype: str
) -> None:
    p = host("range_first", NET, dtype, seed=2)
    text = LOSS + f"t, e = hutchinson(g, model.params, probes={probes}, kind='hutch++', seed=3)\nt**2 + e"
    given = {"x": X.astype(dtype), "y": Y.astype(dtype)}
    pins = {"strategies": {"hutchinson": strategy}}
    found = gradient(text, given, model="range_first", wrt=["params", "x"], outputs=["t", "e"], **pins)

    def loss(p: Any, x: Any) -> Any:
        t, e = by_hand(probes, dtype)(p, x)
        return t**2 + e

    ordered = {name: jnp.asarray(p[name]) for name in p}
    # A dict would come back from JAX with its names in alphabetical order, and the signs know an order.
    names = list(ordered)
    value, (of_p, of_x) = by_jax(lambda leaves, x: loss(dict(zip(names, leaves, strict=True)), x), (0, 1))(
        list(ordered.values()), jnp.asarray(given["x"])
    )
    tolerance = 1e-10 if dtype == "float64" else 5e-4
    agree(found["value"], value, tolerance)
    agree_tree(found["gradients"]["params"], dict(zip(names, of_p, strict=True)), tolerance)
    agree(found["gradients"]["x"], of_x, tolerance)


def test_the_mean_of_the_gradients_is_the_gradient_of_the_trace() -> None:
    host("range_first", NET, seed=2)
    each = "ravel(grad(t, model.params))"
    text = LOSS + (
        "def step(carry, s):\n"
        "    t = hutchinson_trace(g, model.params, probes=6, kind='hutch++', seed=s)\n"
        f"    return (carry, {each})\n"
        f"t = laplacian(L, model.params)\n(scan(step, 0.0, seeds)[1], {each})"
    )
    found, exact = evaluate(text, {"x": X, "y": Y, "seeds": np.arange(1000)}, model="range_first")
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - exact) < 5 * error + 1e-12).all()
    assert error.max() < 0.1 * np.abs(exact).max()


def test_it_is_the_same_for_some_examples_at_a_time() -> None:
    host("range_first", NET, seed=2)
    text = LOSS + "hutchinson_trace(g, model.params, probes=9, kind='hutch++')**2"
    whole = gradient(text, {"x": X, "y": Y}, model="range_first")
    found = gradient(text, {"x": X, "y": Y}, model="range_first", examples_at_once=2)
    agree(found["value"], whole["value"], 1e-11)
    agree_tree(found["gradients"]["params"], whole["gradients"]["params"], 1e-11)


def test_it_nests() -> None:
    """A derivative of the estimate holds the basis too: here all of it is linear in a."""
    text = "def f(a):\n    return hutchinson_trace(a * (A @ x), x, probes=7, kind='hutch++')\n"
    given = {"x": np.zeros(N), "A": rng(N, N), "a": np.array(1.7)}
    slope = evaluate(text + "t = f(a)\ngrad(t, a)", given)
    agree(1.7 * slope, evaluate(text + "f(a)", given))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_basis_is_orthonormal_whatever_the_rows_are(dtype: str) -> None:
    rows = np.concatenate([np.zeros((1, N)), 1e30 * of_rank(3)[:5], 1e-30 * rng(4, N)]).astype(dtype)
    Q = np.asarray(jax.jit(orthonormal)(jnp.asarray(rows)))
    lengths = np.linalg.norm(Q, axis=1)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert lengths[0] == 0
    assert np.isin(np.round(lengths, 4), (0.0, 1.0)).all()
    gram = Q @ Q.T
    agree(gram - np.diag(np.diag(gram)) + np.eye(len(Q)), np.eye(len(Q)), tolerance)
    whole = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-35)
    assert np.abs(whole - (whole @ Q.T) @ Q).max() < 10 * tolerance
    together = np.asarray(jax.jit(jax.vmap(orthonormal))(jnp.asarray(np.stack([rows, rows[::-1]]))))
    agree(together[0] @ together[0].T, gram, tolerance)


REFUSED = {
    "hutchinson(x, x, probes=6, kind='hutch++')": ("one for each example of shape .4,.*another kind", (5, 4)),
    "def f(x):\n    return hutchinson_trace(x * x, x, probes=3, kind='hutch++')\nvmap(f)(x)": (
        "one for each example of a vmap",
        (5, 4),
    ),
    "hutchinson_trace(x, x, probes=2, kind='hutch++')": ("needs probes=3 or more .*multiple of three", (4,)),
    "hutchinson(x, x, probes=3, kind='hutch++')": ("needs probes=4 or more for a standard error", (4,)),
    "hutchinson(x, x, until=0.1, kind='hutch++')": ("fixed number of products: probes=48", (4,)),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_it_does_not_do_is_refused_at_its_place(text: str) -> None:
    message, shape = REFUSED[text]
    with pytest.raises(Refusal, match=message) as refused:
        evaluate(text, {"x": rng(*shape)})
    assert refused.value.code == "wrong_kind"
    assert refused.value.where is not None
