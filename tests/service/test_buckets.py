"""Buckets of examples: exact, or not used."""

from __future__ import annotations

from typing import Any

import httpx
import jax
import numpy as np
import pytest
from ask import ENGINE, MODELS, host, rng

import nablad
from nablad.messages import GradientRequest
from nablad_service.engine.buckets import bucket_of
from nablad_service.engine.padding import Unpadded
from nablad_service.query import Query
from nablad_service.requests.validation import gradient_query

NET = {"layers": [{"dense": [2, 5], "activation": "tanh"}, {"dense": [5, 2]}]}
NORMED = {"layers": [{"dense": [2, 4]}, {"batchnorm": 4}, {"dense": [4, 2]}]}
TOKENS = {"layers": [{"embedding": [7, 3]}]}
IMAGES = {"layers": [{"conv": [1, 2], "kernel": 3}, {"activation": "tanh"}]}

EXACT: dict[str, dict[str, Any]] = {
    "mean": {"loss": "mean((model(x) - y)**2)", "wrt": ["params", "x"]},
    "sum": {"loss": "sum((model(x) - y)**2)", "outputs": []},
    "outputs": {"loss": "u = model(x)\nmean(u**2)", "outputs": ["u"], "wrt": ["params"]},
    "laplacian": {"loss": "u = model(x)[:, 0]\nmean(laplacian(u, x)**2)"},
    "residual": {
        "loss": "def r(a, b):\n    u = model(stack([a, b]))[0]\n    return d(u, a) + u * d(u, b, b)\n"
        "mean(vmap(r)(x[:, 0], x[:, 1])**2)"
    },
    "max": {"loss": "max(model(x)**2) + min(model(x))", "wrt": ["params", "x"]},
    "variance": {"loss": "var(model(x)[:, 0]) + norm(model(x))"},
    "logsumexp": {"loss": "logsumexp(model(x)[:, 0])", "wrt": ["params", "x"]},
    "root_of_mean": {"loss": "sqrt(mean((model(x) - y)**2))"},
    "first_row": {"loss": "u = model(x)\nsum(u[0]**2) + mean(u**2)", "wrt": ["params", "x"]},
    "weights": {"loss": "mean(w * sum(model(x)**2, axis=1))", "wrt": ["params", "w"]},
    "noise": {"loss": "z = normal(x, seed=1)\nmean(model(x + z)**2)", "outputs": ["z"]},
    "loop": {"loss": "def body(i, c): return c + 0.1 * tanh(model(c))\nmean(fori(3, body, x)**2)"},
    "trained": {"loss": "mean((model(x) - y)**2)", "name": "bucket_normed", "mode": "train"},
    "jacobian": {"loss": "J = batched_jacobian(model(x), x)\nmean(J**2)"},
    "terms": {
        "loss": "a = mean(model(x)**2)\nb = sum(y**2 * model(x))",
        "terms": {"a": 1.0, "b": 2.0},
        "term_gradients": "norms",
    },
    "gram": {"loss": "A = model(x).T @ model(x) + eye(2)\nslogdet(A)[1]"},
}
INEXACT: dict[str, dict[str, Any]] = {
    "kernel": {"loss": "u = model(x)\nmean((u @ u.T)**2)"},
    "last_row": {"loss": "u = model(x)\nsum(u[-1]**2)"},
    "concatenated": {"loss": "u = concat([model(x), y])\nmean(u**2)"},
    "differences": {"loss": "u = model(x)\nmean((u[1:] - u[:-1])**2)"},
}


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    host("bucket_net", NET)
    host("bucket_normed", NORMED)
    host("bucket_tokens", TOKENS)


def query(number: int, buckets: tuple[int, ...] = (), **asked: Any) -> Query:
    asked = dict(asked)
    bound = {"name": asked.pop("name", "bucket_net"), "mode": asked.pop("mode", "eval")}
    inputs: dict[str, Any] = {"x": rng(number, 2, seed=number)}
    if "- y" in asked["loss"] or ", y]" in asked["loss"] or "y**2" in asked["loss"]:
        inputs["y"] = rng(number, 2, seed=100 + number)
    if "w *" in asked["loss"]:
        inputs["w"] = rng(number, seed=7)
    request = GradientRequest(inputs=inputs, models={"model": bound}, seed=3, buckets=list(buckets), **asked)
    return gradient_query(request, MODELS.get)


def close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.shape(one) == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", EXACT)
def test_fewer_examples_in_a_bucket_have_their_own_answer(name: str) -> None:
    asked = EXACT[name]
    bucket = ENGINE.bucket(query(11, **asked), 11, 16)
    for number in (3, 11, 15, 16):
        one = query(number, **asked)
        traced = ENGINE.trace(one)
        expected = ENGINE.compile(traced).run(one)
        found = bucket.fit(traced, number).run(one)
        close(found, expected)


@pytest.mark.parametrize("name", INEXACT)
def test_what_takes_examples_together_in_another_way_is_refused(name: str) -> None:
    with pytest.raises(Unpadded):
        ENGINE.bucket(query(11, **INEXACT[name]), 11, 16)


def test_examples_looked_up_in_a_table() -> None:
    def tokens(number: int) -> Query:
        positions = np.random.default_rng(number).integers(0, 7, number)
        request = GradientRequest(
            loss="mean(model(x)**2)", inputs={"x": positions}, models={"model": "bucket_tokens"}
        )
        return gradient_query(request, MODELS.get)

    bucket = ENGINE.bucket(tokens(5), 5, 8)
    for number in (3, 5, 8):
        one = tokens(number)
        traced = ENGINE.trace(one)
        close(bucket.fit(traced, number).run(one), ENGINE.compile(traced).run(one))


def test_padding_cannot_make_a_result_infinite() -> None:
    asked = {"loss": "mean(log(sum(model(x)**2, axis=1)))", "wrt": ["params", "x"]}
    bucket = ENGINE.bucket(query(5, **asked), 5, 8)
    one = query(5, **asked)
    found = bucket.fit(ENGINE.trace(one), 5).run(one)
    assert bool(found["finite"])
    broken = query(5, **asked)
    broken.inputs["x"][4] = np.nan  # type: ignore[index]
    found = bucket.fit(ENGINE.trace(broken), 5).run(broken)
    assert not bool(found["finite"])


def test_the_least_bucket_that_holds_them_is_taken() -> None:
    loss = {"loss": "mean(model(x)**2)"}
    assert bucket_of(query(11, (32, 16, 8), **loss)) == (11, 16)
    assert bucket_of(query(33, (32, 16), **loss)) is None
    assert bucket_of(query(11, **loss)) is None


# -- over HTTP


def test_one_program_serves_all_numbers_of_a_bucket(url: str, client: nablad.Client) -> None:
    client.create_model("bucketed", NET)
    metrics = compiled_buckets(url)
    for number in (9, 12, 16, 10):
        x = rng(number, 2, seed=number)
        found = client.gradient("mean(model(x)**2)", inputs={"x": x}, model="bucketed", buckets=[16, 32])
        alone = client.gradient("mean(model(x)**2)", inputs={"x": x}, model="bucketed")
        assert found.plan.bucket == {"number": number, "size": 16, "reason": ""}
        close(found.gradients, alone.gradients)
        np.testing.assert_allclose(found.value, alone.value, rtol=1e-12)
    assert compiled_buckets(url) == metrics + 1


def compiled_buckets(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    found = [
        line for line in text.splitlines() if line.startswith('nablad_compile_seconds_count{kind="bucket"}')
    ]
    return float(found[0].split()[1]) if found else 0.0


def test_a_call_that_does_not_fit_a_bucket_says_why(client: nablad.Client) -> None:
    client.create_model("bucketed", NET)
    x = rng(9, 2)
    inexact = client.gradient(
        "u = model(x)\nmean((u @ u.T)**2)", inputs={"x": x}, model="bucketed", buckets=[16]
    )
    assert inexact.plan.bucket is not None
    assert inexact.plan.bucket["size"] is None
    assert "along several axes" in inexact.plan.bucket["reason"]
    large = client.gradient("mean(model(x)**2)", inputs={"x": x}, model="bucketed", buckets=[4, 8])
    assert large.plan.bucket == {"number": 9, "size": None, "reason": "none of 4, 8 holds them"}
    assert "no bucket" in str(large.plan)


def test_a_mistake_is_told_with_buckets_too(client: nablad.Client) -> None:
    client.create_model("bucketed", NET)
    with pytest.raises(nablad.ProgramError, match="fit"):
        client.gradient(
            "mean((model(x) - y)**2)",
            inputs={"x": rng(9, 2), "y": rng(9, 3)},
            model="bucketed",
            buckets=[16],
        )
