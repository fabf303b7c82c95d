"""`fori` and `scan` against the same loop by hand, with derivatives through, inside and around them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import NESTINGS, agree, agree_tree, by_jax, evaluate, gradient, host, rng

from nablad.problems import Refusal

A = rng(4, 4, seed=1)
X = rng(4, seed=2)
LAYERS = {"layers": [{"dense": [3, 6], "activation": "tanh"}, {"dense": [6, 3]}]}


def field(p: Any, x: Any) -> Any:
    h = jnp.tanh(p["layer_1.weight"] @ x + p["layer_1.bias"])
    return p["layer_2.weight"] @ h + p["layer_2.bias"]


def test_fori_repeats_its_body() -> None:
    program = "def body(i, c):\n    return c * x + i\nfori(4, body, 1.0)"
    x = np.array(1.5)
    expected = (((1.0 * x + 0) * x + 1) * x + 2) * x + 3
    found = gradient(program, {"x": x}, wrt=["x"])
    agree(found["value"], expected)
    agree(found["gradients"]["x"], 4 * x**3 + 2 * x + 2)


def test_scan_gives_the_last_carry_and_all_values() -> None:
    program = "def body(c, a):\n    return (c + a, c * a)\nlast, all = scan(body, 0.0, xs)\n(last, all)"
    xs = rng(5)
    last, values = evaluate(program, {"xs": xs})
    before = np.concatenate([[0], np.cumsum(xs)[:-1]])
    agree(last, xs.sum())
    agree(values, before * xs)


def test_power_iteration_gives_the_largest_singular_value() -> None:
    program = """
y = tanh(A @ x)
def step(i, v):
    w = vjp(y, x, jvp(y, x, v))
    return w / norm(w)
v = stop_gradient(fori(200, step, v0))
norm(jvp(y, x, v))
"""
    J = (1 - np.tanh(A @ X) ** 2)[:, None] * A
    found = gradient(program, {"A": A, "x": X, "v0": rng(4, seed=3)}, wrt=["A"])
    agree(found["value"], np.linalg.svd(J, compute_uv=False)[0], 1e-9)
    _, expected = by_jax(
        lambda A: jnp.linalg.svd((1 - jnp.tanh(A @ X) ** 2)[:, None] * A, compute_uv=False)[0]
    )(A)
    agree(found["gradients"]["A"], expected, 1e-6)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_a_continuous_flow_with_a_divergence_in_its_steps(nesting: str) -> None:
    """Euler steps of (z, log density), as FFJORD trains them: a derivative inside a loop inside a vmap."""
    params = host("flow", LAYERS, seed=4)
    program = """
def path(z0):
    def step(i, carry):
        z, l = carry
        f = model(z)
        return (z + 0.1 * f, l - 0.1 * divergence(f, z))
    z1, l1 = fori(5, step, (z0, 0.0))
    return 0.5 * sum(z1**2) - l1 + 0.01 * norm(grad(sum(model(z1)), z1))**2
mean(vmap(path)(z))
"""
    z = rng(4, 3, seed=6)

    def loss(p: Any, z: Any) -> Any:
        def path(z0: Any) -> Any:
            state, l = z0, 0.0
            for _ in range(5):
                J = jax.jacfwd(lambda q: field(p, q))(state)
                state, l = state + 0.1 * field(p, state), l - 0.1 * jnp.trace(J)
            g = jax.grad(lambda q: jnp.sum(field(p, q)))(state)
            return 0.5 * jnp.sum(state**2) - l + 0.01 * jnp.sum(g**2)

        return jnp.mean(jax.vmap(path)(z))

    found = gradient(program, {"z": z}, model="flow", wrt=["params", "z"], nesting=nesting)
    value, (gp, gz) = by_jax(loss, (0, 1))(params, z)
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], gp)
    agree(found["gradients"]["z"], gz)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_a_gradient_inside_a_loop_and_a_derivative_of_the_loop(nesting: str) -> None:
    """Gradient descent unrolled by fori, differentiated in its start and its rate, twice."""
    program = """
def loss(w):
    return w @ S @ w / 2 + sum(cos(w))
def step(i, w):
    return w - rate * grad(loss(w), w)
final = loss(fori(6, step, w0))
g = grad(final, w0)
final + sum(g**2)
"""
    S = A @ A.T / 4

    def inner(w: Any) -> Any:
        return w @ S @ w / 2 + jnp.sum(jnp.cos(w))

    def final(w0: Any, rate: Any) -> Any:
        w = w0
        for _ in range(6):
            w = w - rate * jax.grad(inner)(w)
        return inner(w)

    def total(w0: Any, rate: Any) -> Any:
        return final(w0, rate) + jnp.sum(jax.grad(final)(w0, rate) ** 2)

    data = {"S": S, "w0": X, "rate": np.array(0.1)}
    found = gradient(program, data, wrt=["w0", "rate"], nesting=nesting)
    value, (gw, gr) = by_jax(total, (0, 1))(X, np.array(0.1))
    agree(found["value"], value)
    agree(found["gradients"]["w0"], gw)
    agree(found["gradients"]["rate"], gr)


def test_loops_inside_loops() -> None:
    program = """
def outer(i, c):
    def inner(j, d):
        return d + x * (i + 1) * (j + 1)
    return fori(3, inner, c)
fori(2, outer, 0.0)
"""
    agree(evaluate(program, {"x": np.array(2.0)}), 2.0 * 6 * 3)


@pytest.mark.parametrize(
    ("program", "code", "says"),
    [
        ("fori(n, body, x)", "wrong_kind", "number of the text"),
        ("fori(3, x, x)", "wrong_kind", "is a def"),
        ("fori(2000000, body, x)", "limit", "2000000 times"),
        ("fori(3, grow, x)", "shape_mismatch", "must return what it was given"),
        ("scan(body, x, 3.0)", "shape_mismatch", "leading axis"),
        ("a, b = scan(one, x, x)\na", "wrong_kind", "returns (carry, y)"),
        ("fori(3, body)", "arity", "lacks"),
    ],
)
def test_loops_outside_their_meaning_are_refused(program: str, code: str, says: str) -> None:
    defs = (
        "def body(i, c):\n    return c * 2\ndef grow(i, c):\n    return stack([c, c])\n"
        "def one(c, a):\n    return c\n"
    )
    inputs = {"x": X} | ({"n": 3} if "n," in program else {})
    with pytest.raises(Refusal, match=code) as refused:
        evaluate(defs + program, inputs)
    assert says in refused.value.detail
