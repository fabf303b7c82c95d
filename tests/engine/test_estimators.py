"""Estimates that draw their own probes: exact where they must be, honest about their error elsewhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import agree, agree_tree, by_jax, evaluate, gradient, host, rng

from nablad.problems import Refusal

KINDS = ("rademacher", "normal", "sphere", "orthogonal")
D = 16
S = (lambda a: a @ a.T / D)(rng(D, D))  # a large diagonal and much beside it
MATRIX = {"x": np.zeros((2000, D)), "S": S}
"""2000 examples of one linear map: as many independent estimates of one trace."""
NET = {"layers": [{"dense": [5, 6], "activation": "tanh"}, {"dense": [6, 5]}]}
X = rng(7, 5)


def net(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"]) @ p["layer_2.weight"].T + p["layer_2.bias"]


# -- the probes


@pytest.mark.parametrize("kind", KINDS)
def test_probes_have_the_identity_as_expected_outer_product(kind: str) -> None:
    n, d = 20_000, 6
    v = evaluate(f"{kind}(x, 3, seed=1)", {"x": np.zeros((n, d))})
    for one in v:
        # No entry of v v' has a variance above 2 (that of a squared normal).
        assert np.abs(one.T @ one / n - np.eye(d)).max() < 5 * np.sqrt(2 / n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_orthogonal_probes_are_orthogonal_in_blocks(d: int, dtype: str) -> None:
    v = evaluate(f"orthogonal(x, {2 * d + 1}, seed=1)", {"x": np.zeros((3, d), dtype)})
    assert v.dtype == dtype
    tolerance = 1e-12 if dtype == "float64" else 5e-6
    for example in range(3):
        for start in (0, d):
            block = v[start : start + d, example]
            agree(block @ block.T / d, np.eye(d), tolerance)
    if d > 2:
        assert not np.allclose(np.abs(v[:d]), np.abs(v[d : 2 * d])), "each block has an order of its own"
        assert not np.allclose(v[:, 0], v[:, 1]), "and each example signs of its own"


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_one_orthogonal_probe_has_the_shape_of_what_it_is_like(shape: tuple[int, ...]) -> None:
    assert evaluate("orthogonal(x, seed=1)", {"x": np.zeros(shape)}).shape == shape
    assert evaluate("orthogonal(x, 4, seed=1)", {"x": np.zeros(shape)}).shape == (4, *shape)


def test_orthogonal_probes_of_a_tree_are_orthogonal_as_one_vector() -> None:
    host("estimated", NET, seed=2)
    v = evaluate("orthogonal(model.params, 71, seed=1)", {}, model="estimated")
    flat = np.concatenate([leaf.reshape(71, -1) for leaf in v.values()], axis=1)
    agree(flat @ flat.T / 71, np.eye(71))


# -- a fixed number of them


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_inside_is_what_the_sampler_gives(kind: str) -> None:
    inside = evaluate(f"hutchinson_trace(sin(x) * x, x, probes=5, kind='{kind}', seed=3)", {"x": X}, seed=9)
    given = evaluate(f"hutchinson_trace(sin(x) * x, x, {kind}(x, 5, seed=3))", {"x": X}, seed=9)
    agree(inside, given)


@pytest.mark.parametrize("blocks", [1, 3])
def test_whole_blocks_of_orthogonal_probes_give_the_trace_itself(blocks: int) -> None:
    p = host("estimated", NET, seed=2)
    text = f"t, e = hutchinson(model(x), x, probes={5 * blocks}, kind='orthogonal')\nsum(t**2) + sum(e)"
    found = gradient(text, {"x": X}, model="estimated", outputs=["t", "e"])

    def traces(p: Any) -> Any:
        return jax.vmap(lambda x: jnp.trace(jax.jacobian(lambda x: net(p, x))(x)))(jnp.asarray(X))

    value, expected = by_jax(lambda p: jnp.sum(traces(p) ** 2))(p)
    agree(found["outputs"]["t"], traces(p))
    agree(found["outputs"]["e"], np.zeros(7))
    agree(found["value"], value)
    agree_tree(found["gradients"]["params"], expected, 1e-11)


@pytest.mark.parametrize(
    ("kind", "probes"),
    [*((kind, 8) for kind in KINDS), *(("orthogonal", probes) for probes in (2, 15, 17, 40))],
)
def test_the_reported_error_is_the_true_one(kind: str, probes: int) -> None:
    text = f"t, e = hutchinson(x @ S, x, probes={probes}, kind='{kind}', seed=5)\n(t, e)"
    t, e = evaluate(text, MATRIX)
    off = t - np.trace(S)
    assert abs(off.mean()) < 5 * off.std() / np.sqrt(len(off)), "unbiased"
    # Mean squares of 2000 estimates: each is known to a few percent.
    noise = 5 * np.sqrt(np.var(off**2) / len(off) + np.var(e**2) / len(off))
    assert abs(np.mean(off**2) - np.mean(e**2)) < noise
    assert noise < 0.8 * np.mean(off**2)


def test_of_given_orthogonal_probes_the_error_is_too_large_never_too_small() -> None:
    t, e = evaluate("hutchinson(x @ S, x, orthogonal(x, 12, seed=5))", MATRIX)
    assert 1.5 * np.mean((t - np.trace(S)) ** 2) < np.mean(e**2)


def test_orthogonal_probes_beat_random_signs() -> None:
    def square(kind: str) -> Any:
        t = evaluate(f"hutchinson_trace(x @ S, x, probes=8, kind='{kind}', seed=1)", MATRIX)
        return np.mean((t - np.trace(S)) ** 2)

    assert square("orthogonal") < 0.8 * square("rademacher") < 0.8 * square("normal")


# -- as many as it takes


@pytest.mark.parametrize(("until", "most"), [(1e-9, 2), (1e-9, 13), (1e-9, 27), (100.0, 27), (100.0, 64)])
def test_it_stops_after_the_first_batch_or_with_the_last(until: float, most: int) -> None:
    text = f"hutchinson(x @ S, x, until={until}, probes={most})"
    t, e, used = evaluate(text, {"x": rng(3, D), "S": S})
    first = most if most < 16 else 8 + most % 8
    assert used == (most if until < 1 else first)
    assert t.shape == e.shape == (3,)


@pytest.mark.parametrize("until", [0.3, 0.5, 1.0])
def test_every_example_has_the_error_that_was_asked_for(until: float) -> None:
    text = "hutchinson(x @ S, x, until=tol, probes=4000)"
    t, e, used = evaluate(text, {"x": rng(3, D), "S": S, "tol": np.array(until)})
    assert e.max() <= until
    assert 16 <= used < 4000
    assert (used - 8) % 8 == 0
    assert np.abs(t - np.trace(S)).max() < 5 * until
    _, before, _ = evaluate(text.replace("4000", str(used - 8)), {"x": rng(3, D), "S": S, "tol": until})
    assert before.max() > until, "one batch less was not enough"


def test_the_errors_of_adaptive_estimates_are_nearly_those_reported() -> None:
    text = "def f(seed):\n    return hutchinson(x @ S, x, until=1.0, probes=200, seed=seed)\nvmap(f)(seeds)"
    t, e, _ = evaluate(text, {"x": np.zeros(D), "S": S, "seeds": np.arange(1000)})
    score = (t - np.trace(S)) / e
    # Stopping when the spread happens to look small makes the error optimistic, by little: see the manual.
    assert 0.9 < np.sqrt(np.mean(score**2)) < 1.25


STRATEGIES = ("forward", "reverse", "forward_scan")


@pytest.mark.parametrize(
    ("strategy", "until", "dtype"),
    [
        *(("forward", until, "float64") for until in (1e-3, 0.12, 10.0)),
        *((strategy, 0.12, "float64") for strategy in STRATEGIES[1:]),
        ("forward", 0.12, "float32"),
    ],
)
def test_its_gradients_are_those_of_the_probes_that_were_used(
    strategy: str, until: float, dtype: str
) -> None:
    """Against the plain estimate from the same samples: the Jacobian's diagonal is all that they see."""
    p = host("estimated", NET, dtype, seed=2)
    x = X.astype(dtype)
    text = f"t, e, used = hutchinson(model(x), x, until={until}, probes=44)\nsum(t**2) + sum(e)"
    pins = {"strategies": {"hutchinson": strategy}}
    found = gradient(
        text, {"x": x}, model="estimated", wrt=["params", "x"], outputs=["used", "t", "e"], **pins
    )
    used = int(found["outputs"]["used"])
    key = jax.random.fold_in(jax.random.key(0), 0)
    counts = [12] + [8] * ((used - 12) // 8)
    v = jnp.concatenate(
        [
            jax.random.rademacher(jax.random.fold_in(key, batch), (count, *x.shape), dtype)
            for batch, count in enumerate(counts)
        ]
    )

    def samples(p: Any, x: Any) -> Any:
        return jax.vmap(lambda v: jnp.sum(v * jax.jvp(lambda x: net(p, x), (x,), (v,))[1], axis=1))(v)

    def loss(p: Any, x: Any) -> Any:
        q = samples(p, x)
        return jnp.sum(jnp.mean(q, axis=0) ** 2) + jnp.sum(jnp.std(q, axis=0, ddof=1) / np.sqrt(used))

    value, (of_p, of_x) = by_jax(loss, (0, 1))(p, jnp.asarray(x))
    tolerance = 1e-11 if dtype == "float64" else 2e-5
    agree(found["value"], value, tolerance)
    agree_tree(found["gradients"]["params"], of_p, tolerance)
    agree(found["gradients"]["x"], of_x, tolerance)
    q = np.asarray(samples(p, x))
    errors = [(q[:count].std(axis=0, ddof=1) / np.sqrt(count)).max() for count in range(12, used + 1, 8)]
    assert all(error > until for error in errors[:-1])
    assert used == 44 or errors[-1] <= until


def test_it_nests_and_maps() -> None:
    p = host("estimated", NET, seed=2)
    text = """def f(x):
    t, e, used = hutchinson(model(x), x, until=1e-9, probes=19, seed=4)
    return sum(grad(t, x)**2)
sum(vmap(f)(x))"""
    found = gradient(text, {"x": X}, model="estimated")
    plain = gradient(
        text.replace("until=1e-9, probes=19", "probes=11").replace("t, e, used", "t, e"),
        {"x": X},
        model="estimated",
    )
    key = jax.random.fold_in(jax.random.key(0), 4)
    v = jnp.concatenate(
        [
            jax.random.rademacher(jax.random.fold_in(key, batch), (count, 5), "float64")
            for batch, count in ((0, 11), (1, 8))
        ]
    )

    def loss(p: Any) -> Any:
        def t(x: Any) -> Any:
            return jnp.mean(jax.vmap(lambda v: v @ jax.jvp(lambda x: net(p, x), (x,), (v,))[1])(v))

        return jnp.sum(jax.vmap(jax.grad(t))(jnp.asarray(X)) ** 2)

    value, expected = by_jax(loss)(p)
    agree(found["value"], value, 1e-11)
    agree_tree(found["gradients"]["params"], expected, 1e-11)
    assert plain["value"] != found["value"]


def test_the_trace_in_the_parameters_until_it_is_accurate() -> None:
    host("estimated", NET, seed=2)
    text = "L = mean(model(x)**2)\ng = grad(L, model.params)\n"
    exact = evaluate(text + "laplacian(L, model.params)", {"x": X}, model="estimated")
    found = text + "hutchinson(g, model.params, until=0.2, probes=2000)"
    t, e, used = evaluate(found, {"x": X}, model="estimated")
    assert e <= 0.2
    assert used < 2000
    assert abs(t - exact) < 5 * e
    every = text + "hutchinson(g, model.params, probes=71, kind='orthogonal')"
    agree(evaluate(every, {"x": X}, model="estimated")[0], exact, 1e-11)


# -- what is refused

REFUSED = {
    "hutchinson(x, x)": ("arity", "lacks probes: .*probes=16.*until=0.01", 1),
    "hutchinson_trace(x, x)": ("arity", "lacks probes: .*probes=16", 1),
    "hutchinson(x, x, until=0)": ("wrong_kind", "positive number, not 0", 1),
    "hutchinson(x, x, until=-0.5)": ("wrong_kind", "positive number, not -0.5", 1),
    "hutchinson(x, x, until=x)": ("wrong_kind", "until is one positive number", 1),
    "hutchinson(x, x, until='small')": ("wrong_kind", "until must be an array, not 'small'", 1),
    "hutchinson(x, x, probes=1)": ("wrong_kind", "probes=2 or more .* hutchinson_trace takes one", 1),
    "hutchinson(x, x, until=0.1, probes=1)": ("wrong_kind", "probes=2 or more", 1),
    "hutchinson_trace(x, x, probes=0)": ("wrong_kind", "at least one, not 0", 1),
    "hutchinson(x, x, probes=2.5)": ("wrong_kind", "whole number", 1),
    "hutchinson(x, x, probes=10000000)": ("limit", "up to 10000000 probes; the limit is 1000000", 1),
    "hutchinson(x, x, probes=4, seed=0.5)": ("wrong_kind", "seed must be a whole number", 1),
    "hutchinson(x, x, probes=4, kind='rademaker')": ("wrong_kind", "did you mean 'rademacher'", 33),
    "hutchinson(x, x, probes=4, kind=4)": ("wrong_kind", "one of the texts 'rademacher'", 33),
    "hutchinson(x, x, x, until=0.1)": ("arity", "'until' is for probes that hutchinson draws itself", 27),
    "hutchinson(x, x, v=x, seed=1)": ("arity", "'seed' is for probes", 28),
    "hutchinson(x, x, x, 16)": ("arity", "told by name", 21),
    "hutchinson_trace(x, x, until=0.1)": ("arity", "has no argument 'until'", 1),
    "t, e = hutchinson(x, x, until=0.1)\nt": ("shape_mismatch", "has 3 parts, 2 names", 1),
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_faulty_call_is_refused_at_its_place(text: str) -> None:
    code, message, column = REFUSED[text]
    with pytest.raises(Refusal, match=message) as refused:
        evaluate(text, {"x": rng(3, 4)})
    assert refused.value.code == code
    assert refused.value.where is not None
    assert refused.value.where.column == column
