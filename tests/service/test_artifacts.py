"""StableHLO artifacts as hosted models: sent in both formats, refused early, kept in the repository."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import jax.numpy as jnp
import numpy as np
import pytest
from local_server import local_server

import nablad
from nablad_models import export_model

X = np.array([[0.1, 0.2], [0.3, -0.4], [0.5, 0.6]], np.float32)
PARAMS = {"w": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "b": np.array([0.25, -1.0], np.float32)}
LOSS = "u = model(x)\nsum(u**2) + sum(grad(sum(u), x)**2)"


@pytest.fixture(scope="module")
def artifact() -> bytes:
    """tanh(x w + b)."""

    def apply(params: dict[str, jnp.ndarray], x: jnp.ndarray) -> jnp.ndarray:
        return jnp.tanh(x @ params["w"] + params["b"])

    data: bytes = export_model(
        apply, PARAMS, {"x": np.zeros(2, np.float32)}, derivative_order=2, platforms=("cpu",)
    )
    return bytes(data)


@pytest.fixture(scope="module")
def small() -> Iterator[httpx.Client]:
    """A server that hosts artifacts of a thousand bytes."""
    with local_server("--max-artifact-bytes", "1000") as url, httpx.Client(base_url=url) as connected:
        yield connected


def test_an_artifact_is_hosted_and_differentiated(any_client: nablad.Client, artifact: bytes) -> None:
    card = any_client.create_model("exported", stablehlo=artifact, params=PARAMS)
    assert (card.source, card.architecture, card.derivative_order) == ("stablehlo", None, 2)
    assert card.inputs == {"x": [2]}
    assert {name: leaf.shape for name, leaf in card.parameters.items()} == {"b": [2], "w": [2, 2]}
    assert any_client.model("exported") == card
    u = np.tanh(X @ PARAMS["w"] + PARAMS["b"])
    np.testing.assert_allclose(any_client.apply("exported", X), u, rtol=1e-5)
    asked = {"inputs": {"x": X}, "wrt": ["params", "x"]}
    result = any_client.gradient(LOSS, model="exported", **asked)
    slope = (1 - u**2) @ PARAMS["w"].T
    np.testing.assert_allclose(result.value, np.sum(u**2) + np.sum(slope**2), rtol=1e-5)
    layers = {"layers": [{"dense": [2, 2], "activation": "tanh"}]}
    same = {"layer_1.weight": PARAMS["w"].T, "layer_1.bias": PARAMS["b"]}
    any_client.create_model("twin", layers, same)
    twin = any_client.gradient(LOSS, model="twin", **asked)
    gradients = result.gradients["params"]
    assert isinstance(gradients, dict)
    np.testing.assert_allclose(gradients["w"], twin.gradients["params"]["layer_1.weight"].T, rtol=1e-4)
    np.testing.assert_allclose(result.gradients["x"], twin.gradients["x"], rtol=1e-4)


def test_parameters_come_with_an_artifact(client: nablad.Client, artifact: bytes) -> None:
    with pytest.raises(nablad.RequestError, match="send params") as caught:
        client.create_model("exported", stablehlo=artifact)
    assert caught.value.code == "invalid_params"
    with pytest.raises(nablad.RequestError, match=r"w \(2, 2\) is missing"):
        client.create_model("exported", stablehlo=artifact, params={"b": PARAMS["b"]})


def test_torn_bytes_are_refused(client: nablad.Client, artifact: bytes) -> None:
    for torn in (artifact[: len(artifact) // 2], b"", b"not an artifact"):
        with pytest.raises(nablad.RequestError) as caught:
            client.create_model("torn", stablehlo=torn, params=PARAMS)
        assert caught.value.code == "invalid_artifact"
    assert "torn" not in {model.name for model in client.models()}


def test_an_artifact_over_the_limit_is_refused_before_it_is_read(small: httpx.Client) -> None:
    # No base64: only the size can be what is refused.
    for text in ("?" * 2000, base64.b64encode(bytes(1100)).decode()):
        answer = small.put("/v1/models/large", json={"stablehlo": text, "params": {}})
        assert (answer.status_code, answer.json()["code"]) == (422, "limit")
        assert "at most 1000 are hosted" in answer.json()["detail"]


def test_a_model_has_one_source(url: str) -> None:
    with httpx.Client(base_url=url) as http:
        body = {"architecture": {"layers": [{"dense": [2, 2]}]}, "stablehlo": "AAAA"}
        for given, says in (
            (body, "both 'architecture' and 'stablehlo'"),
            ({}, "lacks its member 'architecture' (or 'stablehlo')"),
            ({"stablehlo": "no base64!"}, "'stablehlo' is not valid base64"),
        ):
            answer = http.put("/v1/models/two", json=given)
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
            assert says in answer.json()["detail"]
    with nablad.Client(url) as client, pytest.raises(ValueError, match="architecture, or stablehlo="):
        client.create_model("two")


def test_an_artifact_is_kept_beside_its_parameters(tmp_path: Path, artifact: bytes) -> None:
    other = {name: leaf + 1 for name, leaf in PARAMS.items()}
    with local_server("--repository", str(tmp_path)) as url, nablad.Client(url) as client:
        client.create_model("net", stablehlo=artifact, params=PARAMS)
        version = client.set_params("net", other)
    config = json.loads((tmp_path / "net" / "model.json").read_text())
    assert (config["source"], config["version"]) == ("stablehlo", version)
    assert (tmp_path / "net" / config["artifact"]).read_bytes() == artifact
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "half.stablehlo").write_bytes(artifact[:500])
    (tmp_path / "torn" / "model.json").write_text('{"source": "stablehlo", "artifact": "half.stablehlo"}')
    with local_server("--repository", str(tmp_path)) as url, nablad.Client(url) as client:
        assert client.model("net").version == version
        np.testing.assert_allclose(client.apply("net", X), np.tanh(X @ other["w"] + other["b"]), rtol=1e-5)
        (failure,) = client.failed_models()
        assert failure.name == "torn"
        assert failure.reason.startswith("half.stablehlo: ")


def test_operators_by_examples_want_a_mapped_def_over_an_artifact(
    client: nablad.Client, artifact: bytes
) -> None:
    client.create_model("apart", stablehlo=artifact, params=PARAMS)
    with pytest.raises(nablad.ProgramError, match="write a def") as refused:
        client.evaluate("batched_jacobian(model(x), x)", inputs={"x": X}, model="apart")
    assert refused.value.code == "couples_examples"
    program = "def J(p):\n    return jacobian(model(p), p)\nvmap(J)(x)"
    result = client.evaluate(program, inputs={"x": X}, model="apart").result
    u = np.tanh(X @ PARAMS["w"] + PARAMS["b"])
    np.testing.assert_allclose(result, (1 - u**2)[:, :, None] * PARAMS["w"].T, rtol=1e-5)
