"""One operator on one model over HTTP, against JAX by hand; each no more than a ready-made program."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nablad

ARCHITECTURE = {"layers": [{"dense": [3, 5], "activation": "tanh"}, {"dense": [5, 3]}]}
RNG = np.random.default_rng(0)
X, V, U = (RNG.standard_normal((4, 3)) for _ in range(3))
PROBES = RNG.standard_normal((6, 4, 3))


@pytest.fixture(scope="module")
def params(client: nablad.Client) -> dict[str, Any]:
    client.create_model("field", ARCHITECTURE, seed=3)
    drawn = {name: leaf.astype("float64") for name, leaf in client.params("field").params.items()}
    client.set_params("field", drawn)
    return drawn


def net(p: Any, x: Any) -> Any:
    h = jnp.tanh(x @ p["layer_1.weight"].T + p["layer_1.bias"])
    return h @ p["layer_2.weight"].T + p["layer_2.bias"]


def agree(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-10, atol=1e-12)


def test_each_operator_agrees_with_jax(any_client: nablad.Client, params: dict[str, Any]) -> None:
    with jax.enable_x64(True):
        of_x = lambda x: net(params, x)  # noqa: E731
        agree(any_client.apply("field", X), of_x(X))
        agree(any_client.jacobian("field", X), jax.jacfwd(of_x)(X))
        agree(any_client.jacobian("field", X, batched=True), jax.vmap(jax.jacfwd(of_x))(X))
        agree(any_client.jvp("field", X, V), jax.jvp(of_x, (X,), (V,))[1])
        agree(any_client.vjp("field", X, U), jax.vjp(of_x, X)[1](U)[0])
        gradient = jax.grad(lambda x: jnp.sum(of_x(x)))
        agree(any_client.hvp("field", X, V), jax.jvp(gradient, (X,), (V,))[1])
        J = jax.vmap(jax.jacfwd(of_x))(X)
        samples = np.einsum("kbi,bij,kbj->kb", PROBES, J, PROBES)
        estimate, error = any_client.hutchinson("field", X, PROBES)
        agree(estimate, samples.mean(0))
        agree(error, samples.std(0, ddof=1) / np.sqrt(6))


def test_derivatives_in_the_parameters(client: nablad.Client, params: dict[str, Any]) -> None:
    direction = {name: RNG.standard_normal(leaf.shape) for name, leaf in params.items()}
    with jax.enable_x64(True):
        of_p = lambda p: net(p, X)  # noqa: E731
        agree(client.jvp("field", X, direction, wrt="params"), jax.jvp(of_p, (params,), (direction,))[1])
        expected = jax.vjp(of_p, params)[1](jnp.asarray(U))[0]
        found = client.vjp("field", X, U, wrt="params")
        assert list(found) == list(params)
        for name, leaf in expected.items():
            agree(found[name], leaf)
        gradient = jax.grad(lambda p: jnp.sum(of_p(p)))
        expected = jax.jvp(gradient, (params,), (direction,))[1]
        found = client.hvp("field", X, direction, wrt="params")
        for name, leaf in expected.items():
            agree(found[name], leaf)
    assert client.jacobian("field", X, wrt="params").shape == (12, 38)


def test_drawn_probes_estimate_the_trace(client: nablad.Client, params: dict[str, Any]) -> None:
    exact = np.trace(client.jacobian("field", X, batched=True), axis1=1, axis2=2)
    estimate, error = client.hutchinson("field", X, probes=400, seed=5)
    assert np.all(np.abs(estimate - exact) < 5 * error)
    again, _ = client.hutchinson("field", X, probes=400, seed=5)
    assert np.array_equal(estimate, again)
    other, _ = client.hutchinson("field", X, probes=400, seed=6)
    assert not np.array_equal(estimate, other)


def test_the_asynchronous_client_has_them_too(
    url: str, client: nablad.Client, params: dict[str, Any]
) -> None:
    async def ask() -> tuple[Any, Any]:
        async with nablad.AsyncClient(url) as other:
            return await other.jvp("field", X, V), (await other.hutchinson("field", X, PROBES)).value

    pushed, estimate = asyncio.run(ask())
    agree(pushed, client.jvp("field", X, V))
    agree(estimate, client.hutchinson("field", X, PROBES).value)


@pytest.mark.parametrize(
    ("operator", "body", "code", "says"),
    [
        ("jvp", {}, "invalid_request", "needs the vector 'v'"),
        ("vjp", {"v": [1.0]}, "invalid_request", "needs the vector 'u'"),
        ("apply", {"u": [1.0]}, "invalid_request", "takes no vector 'u'"),
        ("jvp", {"v": [1.0, 2.0]}, "shape_mismatch", "(4, 3)"),
        ("jacobian", {"wrt": "y"}, "invalid_request", "'wrt'"),
        ("jacobian", {"wrt": "params", "batched": True}, "invalid_request", "batched"),
        ("hutchinson", {"probes": 1}, "invalid_request", "'probes'"),
        ("apply", {"mod": "train"}, "invalid_request", "did you mean 'mode'"),
    ],
)
def test_faulty_shortcuts_are_refused(
    url: str, params: dict[str, Any], operator: str, body: dict[str, Any], code: str, says: str
) -> None:
    answer = httpx.post(f"{url}/v1/models/field/{operator}", json={"x": X.tolist(), **body})
    assert answer.status_code == 422
    assert answer.json()["code"] == code
    assert says in answer.json()["detail"]


def test_shortcuts_of_unknown_models_and_operators_are_refused(url: str) -> None:
    assert httpx.post(f"{url}/v1/models/feild/apply", json={"x": [1]}).json()["code"] == "unknown_model"
    assert httpx.post(f"{url}/v1/models/field/aply", json={"x": [1]}).json()["code"] == "unknown_path"
