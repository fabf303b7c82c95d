"""What the routes answer: formats, hosting, dtypes, terms, state, caching, and many callers at once."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from nablad.messages import EvaluateRequest
from nablad_service.app import create_app
from nablad_service.planning.learned_plans import LearnedPlans
from nablad_service.planning.programs import Programs
from nablad_service.requests.validation import evaluate_query

JSON, MSGPACK = "application/json", "application/msgpack"
X = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
QUESTION = {
    "loss": "sum(model(x)**2)",
    "models": {"model": "net"},
    "inputs": {"x": X},
    "wrt": ["params", "x"],
}
LEAVES = ["layer_1.weight", "layer_1.bias", "layer_2.weight", "layer_2.bias"]
SMALL = {"layers": [{"dense": [2, 1]}]}


def ask(http: httpx.Client, loss: str, *, path: str = "/v1/gradient", **members: Any) -> dict[str, Any]:
    member = "program" if path == "/v1/evaluate" else "loss"
    response = http.post(path, json={member: loss, **members})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def evaluate(http: httpx.Client, program: str, **members: Any) -> Any:
    return ask(http, program, path="/v1/evaluate", **members)["outputs"]["result"]


def packed(http: httpx.Client, body: dict[str, Any], path: str = "/v1/gradient") -> dict[str, Any]:
    """Ask and answer in msgpack, where every array tells its dtype."""
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    response = http.post(path, content=msgpack.packb(body), headers=headers)
    assert response.status_code == 200, response.content
    answer: dict[str, Any] = msgpack.unpackb(response.content)
    return answer


def raw(array: Any, dtype: str) -> dict[str, Any]:
    """An array's travelling form in msgpack."""
    whole = np.asarray(array, dtype)
    return {"dtype": dtype, "shape": list(whole.shape), "data": whole.tobytes()}


def array(value: Any) -> Any:
    """The array behind either travelling form."""
    if not isinstance(value, dict):
        return np.asarray(value)
    data = value["data"]
    data = base64.b64decode(data) if isinstance(data, str) else data
    return np.frombuffer(data, value["dtype"]).reshape(value["shape"])


@pytest.fixture
def own(http: httpx.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a model of this test's own; the model is gone afterwards."""
    name = re.sub(r"\W", "_", request.node.name)[:100]
    yield name
    http.delete(f"/v1/models/{name}")


def host(http: httpx.Client, name: str, architecture: Any = SMALL, **members: Any) -> dict[str, Any]:
    response = http.put(f"/v1/models/{name}", json={"architecture": architecture, **members})
    assert response.is_success, response.text
    described: dict[str, Any] = response.json()
    return described


# -- formats


def read(response: httpx.Response) -> dict[str, Any]:
    packed = response.headers["content-type"] == MSGPACK
    answer: dict[str, Any] = msgpack.unpackb(response.content) if packed else response.json()
    return answer


ACCEPTED = [
    # Content-Type, Accept -> Content-Type of the answer, type of its arrays
    (JSON, None, JSON, list),
    (JSON, "*/*", JSON, list),
    (JSON, "application/*", JSON, list),
    (JSON, JSON, JSON, list),
    (JSON, MSGPACK, MSGPACK, bytes),
    (JSON, f"{JSON}; arrays=base64", JSON, str),
    (JSON, f"{JSON};q=0.5, {MSGPACK};q=0.9", MSGPACK, bytes),
    (JSON, f"{JSON};q=0.9, {MSGPACK};q=0.5", JSON, list),
    (JSON, f"{JSON};arrays=base64;q=0.9, {MSGPACK};q=0.5", JSON, str),
    (JSON, f"{JSON};q=0, {MSGPACK}", MSGPACK, bytes),
    (JSON, f"text/html, {MSGPACK};q=0.2", MSGPACK, bytes),
    (JSON, "text/html, */*;q=0.1", JSON, list),
    (JSON, "application/x-msgpack", MSGPACK, bytes),
    (f"{JSON}; charset=utf-8", None, JSON, list),
    (MSGPACK, None, MSGPACK, bytes),
    (MSGPACK, "*/*", MSGPACK, bytes),
    (MSGPACK, JSON, JSON, list),
    (MSGPACK, f"{JSON}; arrays=base64", JSON, str),
    ("application/x-msgpack", None, MSGPACK, bytes),
    ("application/vnd.msgpack", None, MSGPACK, bytes),
]


@pytest.mark.parametrize(("sent", "accept", "answered", "kind"), ACCEPTED)
def test_the_answer_has_the_format_that_was_asked_for(
    http: httpx.Client, sent: str, accept: str | None, answered: str, kind: type
) -> None:
    body = json.dumps(QUESTION).encode() if sent.startswith(JSON) else msgpack.packb(QUESTION)
    headers = {"Content-Type": sent, "Accept": accept} if accept else {"Content-Type": sent}
    # httpx adds `Accept: */*` where none is given.
    response = http.post("/v1/gradient", content=body, headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == answered
    found = read(response)["gradients"]["x"]
    assert isinstance(found["data"] if isinstance(found, dict) else found, kind)
    np.testing.assert_allclose(array(found), ask(http, **QUESTION)["gradients"]["x"], rtol=1e-6)


@pytest.mark.parametrize("accept", [JSON, f"{JSON}; arrays=base64", MSGPACK])
def test_resident_parameters_come_in_every_format(http: httpx.Client, accept: str) -> None:
    response = http.get("/v1/models/net/params", headers={"Accept": accept})
    answer = read(response)
    assert list(answer["params"]) == LEAVES
    expected = http.get("/v1/models/net/params").json()["params"]
    for leaf, value in answer["params"].items():
        np.testing.assert_array_equal(array(value).astype("float32"), np.asarray(expected[leaf], "float32"))


def test_base64_and_msgpack_carry_the_same_bytes(http: httpx.Client) -> None:
    texts, bits = (
        read(http.get("/v1/models/net/params", headers={"Accept": accept}))["params"]
        for accept in (f"{JSON}; arrays=base64", MSGPACK)
    )
    for leaf in LEAVES:
        assert base64.b64decode(texts[leaf]["data"]) == bits[leaf]["data"]


def test_refusals_are_json_whatever_is_accepted(http: httpx.Client) -> None:
    response = http.post("/v1/gradient", json={**QUESTION, "loss": "zz"}, headers={"Accept": MSGPACK})
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "unknown_name"


NOT_FINITE = ["NaN", "Infinity", "-Infinity"]


def test_numbers_that_json_lacks_are_spelled_as_words(http: httpx.Client) -> None:
    answer = ask(http, "sum(x)", inputs={"x": [1.0, "NaN"]}, wrt=["x"])
    assert answer["value"] == "NaN"
    outputs = ask(http, "x / 0.0", path="/v1/evaluate", inputs={"x": [0.0, 1.0, -1.0]})["outputs"]
    assert outputs["result"] == NOT_FINITE


def test_the_words_are_read_back(http: httpx.Client) -> None:
    assert evaluate(http, "x", inputs={"x": NOT_FINITE}) == NOT_FINITE


def test_an_answer_that_is_not_finite_is_still_json(http: httpx.Client) -> None:
    response = http.post("/v1/gradient", json={"loss": "sum(log(x))", "inputs": {"x": [0.0]}, "wrt": ["x"]})

    def never(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    answer = json.loads(response.content, parse_constant=never)
    assert answer["value"] == "-Infinity"
    assert answer["gradients"]["x"] == ["Infinity"]


# -- hosting


def test_a_hosted_model_is_described(http: httpx.Client, own: str) -> None:
    described = host(http, own, {"layers": [{"dense": [2, 4]}, {"batchnorm": 4}, {"dense": [4, 2]}]})
    assert described["name"] == own
    assert described["architecture"]["layers"][0]["dense"] == [2, 4]
    shapes = {name: leaf["shape"] for name, leaf in described["parameters"].items()}
    assert shapes == {
        "layer_1.weight": [4, 2],
        "layer_1.bias": [4],
        "layer_2.scale": [4],
        "layer_2.bias": [4],
        "layer_3.weight": [2, 4],
        "layer_3.bias": [2],
    }
    assert list(described["state"]) == ["layer_2.running_mean", "layer_2.running_var"]
    assert described["parameter_count"] == 8 + 4 + 4 + 4 + 8 + 2
    assert http.get(f"/v1/models/{own}").json() == described
    assert described in http.get("/v1/models").json()["models"]


def test_a_card_says_what_a_call_needs_to_know(http: httpx.Client, own: str) -> None:
    card = host(http, own, {"layers": [{"activation": "tanh"}], "input": [None, 3]})
    assert (card["source"], card["inputs"], card["loaded"]) == ("layers", {"x": [None, 3]}, True)
    assert card["derivative_order"] is None
    assert http.get("/v1/models").json()["failed"] == []
    assert http.get("/health/ready").json()["failed_models"] == 0


def test_without_a_repository_there_is_nothing_to_load_from(http: httpx.Client, own: str) -> None:
    host(http, own)
    for action in ("load", "unload"):
        refused = http.post(f"/v1/models/{own}/{action}")
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert "--repository DIR" in refused.json()["detail"]


def test_parameters_may_have_the_names_of_a_pytorch_state_dict(http: httpx.Client, own: str) -> None:
    """With the buffers among them, resident or for one call."""
    architecture = {"layers": [{"dense": [1, 1]}, {"batchnorm": 1}]}
    torch: dict[str, Any] = {"0.weight": [[2.0]], "0.bias": [1.0], "1.weight": [1.0], "1.bias": [0.5]}
    torch |= {"1.running_mean": [3.0], "1.running_var": [1.0 - 1e-5], "1.num_batches_tracked": 7}
    host(http, own, architecture, params=torch)
    resident = http.get(f"/v1/models/{own}/params").json()
    assert resident["params"]["layer_2.bias"] == [0.5]
    assert resident["state"]["layer_2.running_mean"] == [3.0]
    asked = {"inputs": {"x": [1.0]}}
    np.testing.assert_allclose(evaluate(http, "model(x)", models={"model": own}, **asked), [0.5], atol=1e-6)
    other = {**torch, "1.running_mean": [2.0]}
    binding = {"model": {"name": own, "params": other}}
    np.testing.assert_allclose(evaluate(http, "model(x)", models=binding, **asked), [1.5], rtol=1e-5)
    assert http.put(f"/v1/models/{own}/params", json={"params": other}).is_success
    assert http.get(f"/v1/models/{own}/params").json()["state"]["layer_2.running_mean"] == [2.0]
    del torch["1.bias"]
    refused = http.put(f"/v1/models/{own}/params", json={"params": torch}).json()
    assert refused["code"] == "invalid_params"
    assert "1.bias" in refused["detail"]


def test_the_description_builds_the_same_model_again(http: httpx.Client, own: str) -> None:
    first = host(http, own)
    assert host(http, own, first["architecture"]) == first


def test_a_model_is_replaced_by_one_of_its_name(http: httpx.Client, own: str) -> None:
    host(http, own)
    assert host(http, own, {"layers": [{"dense": [3, 1]}]})["parameter_count"] == 4
    assert http.get(f"/v1/models/{own}").json()["parameter_count"] == 4


def test_a_deleted_model_is_gone(http: httpx.Client, own: str) -> None:
    host(http, own)
    deleted = http.delete(f"/v1/models/{own}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/params")):
        assert http.request(method, f"/v1/models/{own}{path}").json()["code"] == "unknown_model"
    assert own not in [one["name"] for one in http.get("/v1/models").json()["models"]]


def test_a_seed_draws_the_same_parameters_and_another_seed_others(http: httpx.Client, own: str) -> None:
    versions = [host(http, own, seed=seed)["version"] for seed in (0, 1, 0)]
    assert versions[0] == versions[2] != versions[1]


def test_a_model_starts_with_the_parameters_it_is_given(http: httpx.Client, own: str) -> None:
    given = {"layer_1.weight": [[2.0, 3.0]], "layer_1.bias": [1.0]}
    host(http, own, params=given)
    assert http.get(f"/v1/models/{own}/params").json()["params"] == given
    assert evaluate(http, "model(x)", models={"model": own}, inputs={"x": [10.0, 100.0]}) == [321.0]


def test_a_version_tells_the_content(http: httpx.Client, own: str) -> None:
    """It changes with the content, and equal content has an equal version, whatever its form."""
    first = host(http, own)["version"]
    params = http.get(f"/v1/models/{own}/params").json()["params"]
    put = f"/v1/models/{own}/params"
    changed = {**params, "layer_1.bias": [params["layer_1.bias"][0] + 1]}
    second = http.put(put, json={"params": changed}).json()["version"]
    assert second != first
    assert http.get(put).json()["version"] == second == http.get(f"/v1/models/{own}").json()["version"]
    reordered = dict(reversed(params.items()))
    assert http.put(put, json={"params": reordered}).json()["version"] == first
    bits = msgpack.packb({"params": {name: raw(leaf, "float32") for name, leaf in params.items()}})
    assert msgpack.unpackb(http.put(put, content=bits, headers={"Content-Type": MSGPACK}).content) == {
        "version": first
    }


def test_a_dtype_is_part_of_the_version(http: httpx.Client, own: str) -> None:
    host(http, own)
    params = http.get(f"/v1/models/{own}/params").json()["params"]
    versions = set()
    for dtype in ("float32", "float64"):
        body = {name: {"dtype": dtype, "data": leaf} for name, leaf in params.items()}
        versions.add(http.put(f"/v1/models/{own}/params", json={"params": body}).json()["version"])
        assert http.get(f"/v1/models/{own}").json()["parameters"]["layer_1.bias"]["dtype"] == dtype
    assert len(versions) == 2


def test_state_is_replaced_only_where_it_is_given(http: httpx.Client, own: str) -> None:
    host(http, own, {"layers": [{"batchnorm": 2}]})
    path = f"/v1/models/{own}/params"
    before = http.get(path).json()
    params = {"layer_1.scale": [2.0, 2.0], "layer_1.bias": [0.0, 0.0]}
    http.put(path, json={"params": params}).raise_for_status()
    assert http.get(path).json()["state"] == before["state"]
    state = {"layer_1.running_mean": [5.0, 5.0], "layer_1.running_var": [4.0, 4.0]}
    http.put(path, json={"params": params, "state": state}).raise_for_status()
    assert http.get(path).json()["state"] == state


def test_new_resident_parameters_are_used_without_compiling(http: httpx.Client, own: str) -> None:
    host(http, own, params={"layer_1.weight": [[1.0, 1.0]], "layer_1.bias": [0.0]})
    question = {"loss": "sum(model(x))", "models": {"model": own}, "inputs": {"x": [1.0, 2.0]}, "wrt": ["x"]}
    assert ask(http, **question)["value"] == 3.0
    params = {"layer_1.weight": [[10.0, 1.0]], "layer_1.bias": [0.5]}
    http.put(f"/v1/models/{own}/params", json={"params": params}).raise_for_status()
    answer = ask(http, **question)
    assert answer["value"] == 12.5
    assert answer["gradients"]["x"] == [10.0, 1.0]
    assert answer["timing"]["compiled"] is False


def test_inline_parameters_serve_one_call(http: httpx.Client, own: str) -> None:
    host(http, own, params={"layer_1.weight": [[1.0, 1.0]], "layer_1.bias": [0.0]})
    inline = {"layer_1.bias": [100.0], "layer_1.weight": [[0.0, 0.0]]}
    answers = [
        evaluate(http, "model(x)", models={"model": binding}, inputs={"x": [1.0, 2.0]})
        for binding in (own, {"name": own, "params": inline}, {"name": own})
    ]
    assert answers == [[3.0], [100.0], [3.0]]


# -- dtypes

DTYPES = [
    # dtypes of params and of the input -> dtype of the answer
    ("float32", "float32", "float32"),
    ("float64", "float64", "float64"),
    ("float32", "float64", "float64"),
    ("float64", "float32", "float64"),
]


@pytest.mark.parametrize(("params", "given", "expected"), DTYPES)
def test_the_widest_float_type_is_the_type_of_the_answer(
    http: httpx.Client, params: str, given: str, expected: str
) -> None:
    leaves = http.get("/v1/models/net/params").json()["params"]
    binding = {"name": "net", "params": {name: raw(leaf, params) for name, leaf in leaves.items()}}
    body = {**QUESTION, "models": {"model": binding}, "inputs": {"x": raw(X, given)}, "outputs": ["y"]}
    answer = packed(http, {**body, "loss": "y = model(x)\nsum(y**2)"})
    assert answer["plan"]["dtype"] == expected
    found = [answer["value"], answer["gradients"]["x"], answer["outputs"]["y"]]
    found += answer["gradients"]["params"].values()
    assert {one["dtype"] for one in found} == {expected}


def test_float64_is_computed_in_float64(http: httpx.Client) -> None:
    body = {"loss": "sum(x) - 1", "inputs": {"x": raw([1.0, 1e-12], "float64")}, "wrt": ["x"]}
    assert array(packed(http, body)["value"]) == pytest.approx(1e-12, rel=1e-3)


def test_numbers_without_a_dtype_take_that_of_the_model(http: httpx.Client) -> None:
    answer = packed(http, {**QUESTION, "inputs": {"x": X}})
    assert answer["gradients"]["x"]["dtype"] == "float32"
    leaves = http.get("/v1/models/net/params").json()["params"]
    binding = {"name": "net", "params": {name: raw(leaf, "float64") for name, leaf in leaves.items()}}
    answer = packed(http, {**QUESTION, "models": {"model": binding}})
    assert answer["gradients"]["x"]["dtype"] == "float64"


def test_numbers_without_a_dtype_take_that_of_other_inputs(http: httpx.Client) -> None:
    body = {
        "loss": "sum(a * x)",
        "inputs": {"x": raw([1, 2], "float64"), "a": [0.1, 0.2]},
        "wrt": ["a"],
    }
    assert packed(http, body)["gradients"]["a"]["dtype"] == "float64"


@pytest.mark.parametrize("program", ["1.5", "pi", "zeros(2)", "2 * pi + x", "x / 3"])
def test_numbers_of_the_text_take_the_type_of_the_program(http: httpx.Client, program: str) -> None:
    inputs = {"x": raw(1.0, "float32")} if "x" in program else {}
    answer = packed(http, {"program": program, "inputs": inputs}, "/v1/evaluate")
    assert answer["outputs"]["result"]["dtype"] == answer["plan"]["dtype"] == "float32"


def test_whole_numbers_stay_whole(http: httpx.Client) -> None:
    body = {"program": "x[k]", "inputs": {"x": raw([5, 6, 7], "float32"), "k": [2, 0]}}
    assert array(packed(http, body, "/v1/evaluate")["outputs"]["result"]).tolist() == [7.0, 5.0]


def test_a_model_of_tokens_takes_whole_numbers(http: httpx.Client) -> None:
    table = http.get("/v1/models/tokens/params").json()["params"]["layer_1.weight"]
    inputs = {"x": {"dtype": "int32", "shape": [2], "data": [3, 1]}}
    found = evaluate(http, "model(x)", models={"model": "tokens"}, inputs=inputs)
    np.testing.assert_allclose(found, [table[3], table[1]], rtol=1e-6)


# -- what an answer holds


def test_the_members_of_an_answer(http: httpx.Client) -> None:
    answer = ask(http, **QUESTION)
    assert set(answer) == {"value", "terms", "gradients", "outputs", "state", "plan", "timing"}
    assert set(answer["plan"]) == {
        "nesting",
        "dtype",
        "derivatives",
        "cautions",
        "examples",
        "bucket",
        "explanation",
    }
    assert set(ask(http, "1 + 1", path="/v1/evaluate")) == {"outputs", "plan", "timing"}


TWO_TERMS = "a = sum(x**2)\nb = sum(x)\n3 * a + 4 * b"


def test_terms_are_returned_one_by_one(http: httpx.Client) -> None:
    answer = ask(http, TWO_TERMS, inputs={"x": [1.0, 2.0]}, wrt=["x"], terms=["a", "b"])
    assert answer["terms"] == {"a": 5.0, "b": 3.0}
    assert answer["value"] == 27.0
    assert answer["gradients"]["x"] == [10.0, 16.0]


def test_weights_make_their_sum_the_loss(http: httpx.Client) -> None:
    answer = ask(http, TWO_TERMS, inputs={"x": [1.0, 2.0]}, wrt=["x"], terms={"a": 1.0, "b": -2.0})
    assert answer["terms"] == {"a": 5.0, "b": 3.0}
    assert answer["value"] == -1.0
    assert answer["gradients"]["x"] == [0.0, 2.0]


def test_weighted_terms_need_no_last_expression(http: httpx.Client) -> None:
    answer = ask(http, "a = sum(x**2)", inputs={"x": [1.0, 2.0]}, wrt=["x"], terms={"a": 0.5})
    assert answer["value"] == 2.5


def test_a_trace_by_its_range_first_is_exact_with_a_product_for_each_parameter(http: httpx.Client) -> None:
    count = sum(np.size(leaf) for leaf in http.get("/v1/models/net/params").json()["params"].values())
    lines = "L = mean(model(x)**2)\ng = grad(L, model.params)\n"
    found, error, exact = evaluate(
        http,
        f"{lines}t, e = hutchinson(g, model.params, probes={count}, kind='hutch++')\n"
        "stack([t, e, laplacian(L, model.params)])",
        models={"model": "net"},
        inputs={"x": X},
    )
    assert error == 0
    assert found == pytest.approx(exact, rel=1e-4)


def test_named_outputs_are_returned(http: httpx.Client) -> None:
    text = "y = x * 2\nz = (y, sum(y))\nsum(y)"
    answer = ask(http, text, inputs={"x": [1.0, 2.0]}, wrt=["x"], outputs=["y", "z", "x", "result"])
    assert answer["outputs"] == {
        "y": [2.0, 4.0],
        "z": {"tuple": [[2.0, 4.0], 6.0]},
        "x": [1.0, 2.0],
        "result": 6.0,
    }


def test_a_tree_is_an_input_and_an_output(http: httpx.Client) -> None:
    tree = {"w": [1.0, 2.0], "b": 3.0}
    answer = ask(http, 'sum(t["w"]) * t["b"]', inputs={"t": tree}, wrt=["t"], outputs=["t"])
    assert answer["gradients"]["t"] == {"w": [3.0, 3.0], "b": 3.0}
    assert answer["outputs"]["t"] == tree


def test_several_models_answer_together(http: httpx.Client, own: str) -> None:
    host(http, own, params={"layer_1.weight": [[1.0, 2.0]], "layer_1.bias": [0.0]})
    question = {"models": {"u": "net", "v": own}, "inputs": {"x": [3.0, 5.0]}}
    answer = ask(http, "sum(v(u(x)))", wrt=["params", "u.params", "v.params[layer_1.bias]"], **question)
    assert set(answer["gradients"]["params"]) == {"u", "v"}
    assert answer["gradients"]["params"]["u"] == answer["gradients"]["u.params"]
    assert answer["gradients"]["v.params[layer_1.bias]"] == [1.0]
    hidden = evaluate(http, "u(x)", models={"u": "net"}, inputs=question["inputs"])
    np.testing.assert_allclose(answer["gradients"]["params"]["v"]["layer_1.weight"], [hidden], rtol=1e-6)
    np.testing.assert_allclose(answer["gradients"]["u.params"]["layer_2.bias"], [1.0, 2.0], rtol=1e-6)


def test_one_model_under_two_names_has_two_gradients(http: httpx.Client, own: str) -> None:
    host(http, own, params={"layer_1.weight": [[1.0, 2.0]], "layer_1.bias": [0.0]})
    answer = ask(
        http,
        "sum(u(x)) + 10 * sum(v(x))",
        models={"u": own, "v": own},
        inputs={"x": [3.0, 5.0]},
        wrt=["u.params[layer_1.weight]", "v.params[layer_1.weight]"],
    )
    assert list(answer["gradients"].values()) == [[[3.0, 5.0]], [[30.0, 50.0]]]


def test_gradients_come_in_the_order_of_the_model_and_of_wrt(http: httpx.Client) -> None:
    answer = ask(http, **{**QUESTION, "wrt": ["x", "params", "model.params[layer_2.bias]"]})
    assert list(answer["gradients"]) == ["x", "params", "model.params[layer_2.bias]"]
    assert list(answer["gradients"]["params"]) == LEAVES


def test_a_leaf_differentiated_alone_has_the_gradient_it_has_among_all(http: httpx.Client) -> None:
    keys = [f"model.params[{leaf}]" for leaf in LEAVES]
    alone = ask(http, **{**QUESTION, "wrt": keys})["gradients"]
    together = ask(http, **QUESTION)["gradients"]["params"]
    for key, leaf in zip(keys, LEAVES, strict=True):
        np.testing.assert_allclose(alone[key], together[leaf], rtol=1e-6)


NORMED = {"loss": "sum(model(x)**2)", "inputs": {"x": X}}
STATES = [
    # mode of the binding, program -> whether state comes back
    (None, "sum(model(x)**2)", False),
    ("eval", "sum(model(x)**2)", False),
    ("train", "sum(model(x)**2)", True),
    ("eval", 'sum(model(x, mode="train")**2)', True),
    ("train", 'sum(model(x, mode="eval")**2)', False),
]


@pytest.mark.parametrize(("mode", "program", "returned"), STATES)
def test_state_comes_back_in_train_mode_and_only_then(
    http: httpx.Client, mode: str | None, program: str, returned: bool
) -> None:
    binding = {"name": "normed", "mode": mode} if mode else "normed"
    answer = ask(http, program, models={"model": binding}, inputs={"x": X})
    assert (answer["state"] != {}) == returned
    if returned:
        before = http.get("/v1/models/normed/params").json()["state"]
        assert set(answer["state"]["model"]) == set(before)
        assert answer["state"]["model"] != before


def test_the_resident_state_stays_until_it_is_put(http: httpx.Client) -> None:
    before = http.get("/v1/models/normed/params").json()
    ask(http, **NORMED, models={"model": {"name": "normed", "mode": "train"}})
    assert http.get("/v1/models/normed/params").json() == before


def test_returned_state_can_be_sent_back(http: httpx.Client) -> None:
    binding: dict[str, Any] = {"name": "normed", "mode": "train"}
    means = []
    for _ in range(3):
        answer = ask(http, **NORMED, models={"model": binding})
        binding = {**binding, "state": answer["state"]["model"]}
        means.append(answer["state"]["model"]["layer_2.running_mean"])
    assert means[0] != means[1] != means[2]


# -- time and the cache


def test_timing_says_where_the_time_went(http: httpx.Client) -> None:
    response = http.post("/v1/gradient", json=QUESTION)
    timing = response.json()["timing"]
    phases = ["decode", "queue", "compile", "device", "encode"]
    assert set(timing) == {"compiled", "together", *(f"{phase}_ms" for phase in phases)}
    assert all(timing[f"{phase}_ms"] >= 0 for phase in phases)
    header = dict(entry.split(";dur=") for entry in response.headers["server-timing"].split(", "))
    assert list(header) == phases
    for phase in phases:
        assert float(header[phase]) == pytest.approx(timing[f"{phase}_ms"], abs=6e-4)


def test_other_values_compile_nothing(http: httpx.Client) -> None:
    """Values of inputs, parameters and weights are arguments of the compiled program."""

    def compiled(**changed: Any) -> bool:
        question = {
            "models": {"model": "net"},
            "inputs": {"x": X, "scale": 2.0},
            "wrt": ["params", "x"],
            "terms": {"a": 1.0, "b": 2.0},
        }
        text = "a = sum(model(x)**2) * scale\nb = mean(x) + 1.25"
        answer = ask(http, text, **{**question, **changed})
        return bool(answer["timing"]["compiled"])

    assert compiled() is True
    assert compiled() is False
    assert compiled(inputs={"x": [[9.0, 8.0]] * 3, "scale": -1.0}) is False
    assert compiled(terms={"a": -3.0, "b": 0.0}) is False
    leaves = http.get("/v1/models/net/params").json()["params"]
    assert compiled(models={"model": {"name": "net", "params": leaves}}) is False
    assert compiled(seed=7) is False
    assert compiled(deadline_ms=60_000) is False
    assert compiled(inputs={"x": [[9.0, 8.0]] * 4, "scale": 2.0}) is True
    assert compiled(wrt=["x"]) is True


def test_whole_weights_and_fractions_are_one_program(http: httpx.Client) -> None:
    text = "a = sum(x**2) + 0.125"
    first, second = (
        ask(http, text, inputs={"x": [1.0, 2.0]}, wrt=["x"], terms={"a": weight})["timing"]["compiled"]
        for weight in (1, 1.5)
    )
    assert (first, second) == (True, False)


def test_a_model_of_the_same_architecture_shares_the_program(http: httpx.Client, own: str) -> None:
    question = {"loss": "sum(model(x)**2) + 0.0625", "inputs": {"x": X}}
    ask(http, **question, models={"model": "net"})
    host(http, own, http.get("/v1/models/net").json()["architecture"], seed=5)
    assert ask(http, **question, models={"model": own})["timing"]["compiled"] is False


@pytest.mark.parametrize("nesting", ["auto", "default", "reverse_over_reverse", "forward_over_reverse"])
def test_every_nesting_gives_the_same_gradient(http: httpx.Client, nesting: str) -> None:
    text = "g = grad(sum(model(x)**2), x)\nsum(g**2)"
    answer = ask(http, **{**QUESTION, "loss": text, "nesting": nesting})
    expected = ask(http, **{**QUESTION, "loss": text})
    np.testing.assert_allclose(answer["gradients"]["x"], expected["gradients"]["x"], rtol=1e-5)


# -- documents


def test_health_is_a_word(http: httpx.Client) -> None:
    assert http.get("/health/live").json() == {"status": "live"}
    ready = http.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert ready["device"]


def test_docs_are_served(http: httpx.Client) -> None:
    response = http.get("/docs")
    assert response.status_code == 200
    assert "openapi.json" in response.text


def every(value: Any, key: str) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and key in value:
        yield value[key]
    for one in inside:
        yield from every(one, key)


def test_every_reference_of_the_openapi_document_resolves(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    references = {one for one in every(document, "$ref") if isinstance(one, str)}
    assert references
    for reference in references:
        found = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


def test_the_openapi_document_describes_every_body_and_refusal(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            if method in ("post", "put") and not path.endswith(("load", "stop")):
                assert set(operation["requestBody"]["content"]) == {JSON, MSGPACK}, path
                assert "4XX" in operation["responses"], path
    assert {"GradientRequest", "EvaluateRequest", "ModelRequest", "Problem"} <= set(
        document["components"]["schemas"]
    )


def test_operation_ids_are_unique(http: httpx.Client) -> None:
    found = list(every(http.get("/openapi.json").json()["paths"], "operationId"))
    assert len(found) == len(set(found))


def test_the_operator_table_is_served(http: httpx.Client) -> None:
    table = {one["name"]: one for one in http.get("/v1/operators").json()["operators"]}
    assert {"grad", "jacobian", "hvp", "d", "sum", "tanh", "einsum", "add", "matmul", "vmap"} <= set(table)
    for row in table.values():
        assert set(row) == {"name", "signature", "doc", "family", "aliases"}
        assert row["doc"].endswith((".", ")")), row


# -- many at once


def test_each_of_many_callers_gets_its_own_answer(url: str, http: httpx.Client) -> None:
    text = "sum((x - c)**2)"
    ask(http, text, inputs={"x": [0.0, 0.0], "c": 0.0}, wrt=["x"])
    with httpx.Client(base_url=url, timeout=60) as shared, ThreadPoolExecutor(16) as threads:

        def call(number: int) -> tuple[float, list[float]]:
            answer = ask(shared, text, inputs={"x": [number, -number], "c": 0.5}, wrt=["x"])
            return answer["value"], answer["gradients"]["x"]

        found = list(threads.map(call, range(200)))
    for number, (value, gradient) in enumerate(found):
        assert value == (number - 0.5) ** 2 + (number + 0.5) ** 2
        assert gradient == [2 * (number - 0.5), 2 * (-number - 0.5)]


def test_callers_of_different_programs_do_not_mix(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as shared, ThreadPoolExecutor(8) as threads:

        def call(number: int) -> Any:
            return evaluate(shared, f"x * {number % 6} + {number % 2}", inputs={"x": float(number)})

        found = list(threads.map(call, range(48)))
    assert found == [number * (number % 6) + number % 2 for number in range(48)]


def test_callers_who_compile_the_same_program_together_all_get_it(url: str) -> None:
    text = "mean(model(x)**2) + 0.03125 * sum(sin(x))"
    with httpx.Client(base_url=url, timeout=60) as shared, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: ask(shared, **{**QUESTION, "loss": text}), range(8)))
    assert len({json.dumps([one["value"], one["gradients"]]) for one in found}) == 1


def test_a_program_is_compiled_once_however_many_ask() -> None:
    compiled = []
    engine = SimpleNamespace(
        trace=lambda query, choices: query, compile=lambda traced: compiled.append(traced) or "ready"
    )
    query = evaluate_query(EvaluateRequest(program="1"), lambda name: pytest.fail(name))

    async def ask_together() -> list[tuple[Any, bool]]:
        programs = Programs(engine, LearnedPlans(None, "test"), limit=4, threads=2)  # type: ignore[arg-type]
        try:
            return await asyncio.gather(*(programs.executable(query) for _ in range(20)))
        finally:
            programs.close()

    assert [executable for executable, _ in asyncio.run(ask_together())] == ["ready"] * 20
    assert len(compiled) == 1


SLOW = """
def residual(t, s):
    u = model(stack([t, s]))[0]
    return d(u, t, t) + u * d(u, s) + {}
mean(vmap(residual)(x[:, 0], x[:, 1])**2)
"""


@pytest.fixture
def compiling(url: str) -> Iterator[Callable[[float], Future[dict[str, Any]]]]:
    """Start to compile a program that takes seconds; each number is another program."""
    with httpx.Client(base_url=url, timeout=300) as other, ThreadPoolExecutor(1) as thread:

        def start(number: float) -> Future[dict[str, Any]]:
            text = SLOW.format(number)
            return thread.submit(ask, other, text, models={"model": "deep"}, inputs={"x": X})

        yield start


def answers_while(slow: Future[dict[str, Any]], ask_once: Callable[[], None]) -> int:
    """How often something is answered until a program is compiled, which many requests would hold up."""
    answers = 0
    while not slow.done():
        ask_once()
        answers += 1
        wait([slow], timeout=0.0 if answers < 50 else 0.1)
    assert slow.result()["timing"]["compiled"] is True
    return answers


def test_health_answers_while_a_program_compiles(
    http: httpx.Client, compiling: Callable[[float], Future[dict[str, Any]]]
) -> None:
    def once() -> None:
        assert http.get("/health/live").status_code == http.get("/health/ready").status_code == 200

    assert answers_while(compiling(0.5), once) >= 50


def test_what_is_compiled_runs_while_another_program_compiles(
    http: httpx.Client, compiling: Callable[[float], Future[dict[str, Any]]]
) -> None:
    def once() -> None:
        assert ask(http, **QUESTION)["timing"]["compiled"] is False

    ask(http, **QUESTION)
    assert answers_while(compiling(0.25), once) >= 50


def test_mistakes_are_refused_while_another_program_compiles(
    http: httpx.Client, compiling: Callable[[float], Future[dict[str, Any]]]
) -> None:
    """Checking does not wait in line behind compiling."""

    def once() -> None:
        refused = http.post("/v1/gradient", json={**QUESTION, "loss": "sum(modle(x))"})
        assert refused.json()["code"] == "unknown_name"

    assert answers_while(compiling(0.125), once) >= 50


def test_a_caller_who_gave_up_leaves_the_program_to_the_next(http: httpx.Client) -> None:
    question = {**QUESTION, "loss": "sum(model(x)**4) + 0.015625"}
    assert http.post("/v1/gradient", json={**question, "deadline_ms": 0.01}).json()["code"] == "deadline"
    assert ask(http, **question)["value"] > 0


BUSY = "a = ones((3000, 3000)) * x\nb = a + 1\nsum(" + " @ ".join(["a", "b"] * 100) + ")"


def test_a_server_stops_though_its_device_is_busy() -> None:
    """Work on the device cannot be interrupted; the process must end nevertheless."""
    command = [sys.executable, "-m", "nablad", "serve", "--port", "0", "--drain-seconds", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            body = {"program": BUSY, "inputs": {"x": 0.5}, "deadline_ms": 2000}
            refused = httpx.post(f"{found.group()}/v1/evaluate", json=body, timeout=60)
            assert refused.json()["code"] == "deadline"
            process.terminate()
            process.wait(timeout=15)
        finally:
            process.kill()


def test_a_failure_is_answered_and_goes_no_further() -> None:
    """What is raised past the application makes the server drop the connection under the next request."""
    app = create_app()

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("not for callers")

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://nablad") as inside:
            return await inside.get("/broken")

    response = asyncio.run(call())
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "internal"
    assert "not for callers" not in response.text
