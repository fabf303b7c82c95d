"""Requests that come again with other numbers: read once, and never with what no longer holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import nablad
from nablad import wire
from nablad.arrays import encode_array
from nablad.frame import aligned
from nablad.problems import Refusal
from nablad_service.hosting import ModelStore, Values
from nablad_service.hosting.shelf import Shelf
from nablad_service.query import Query
from nablad_service.requests import reading
from nablad_service.requests.reading import Body, Reader, Reading
from nablad_service.requests.recalling import Lookups

NET = {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"dense": [3, 1]}]}
LOSS = "mean((model(x) - y)**2)"
rng = np.random.default_rng(0)


class Readings:
    """The reading of gradients, counted."""

    def __init__(self) -> None:
        self.count = 0
        self.how = Reading("gradient", self.read)
        self.models = ModelStore(max_models=4)
        self.models.put("net", NET, None, None, 0)
        self.values = Values(Shelf(1 << 20))
        self.reader = Reader(self.models, self.values)

    def read(self, body: Body, lookups: Lookups) -> Query:
        self.count += 1
        return reading.gradient(body, lookups)

    def query(self, body: Body) -> Query:
        query, key = self.reader.recalled(body, self.how)
        return query if query is not None else self.reader.read(body, self.how, key)


@pytest.fixture
def readings() -> Readings:
    return Readings()


def body(request: dict[str, Any], tenant: str = "") -> Body:
    pieces = wire.encode_body(request, wire.FRAME)
    data, end = aligned(wire.body_size(pieces)), 0
    for piece in pieces:
        data[end : end + len(piece)] = piece
        end += len(piece)
    return Body(data, wire.FRAME, wire.FRAME, "attached", tenant)


def sent(array: Any) -> Any:
    return encode_array(np.asarray(array), "attached")


def request(x: Any, y: Any = ((1.0,),), **members: Any) -> dict[str, Any]:
    return {"loss": LOSS, "models": {"model": "net"}, "inputs": {"x": sent(x), "y": sent(y)}, **members}


def test_other_numbers_are_viewed_where_they_lie(readings: Readings) -> None:
    for number in range(4):
        x, y = rng.standard_normal((5, 2)), rng.standard_normal((5, 1))
        came = body(request(x, y))
        query = readings.query(came)
        np.testing.assert_array_equal(query.inputs["x"], x)
        np.testing.assert_array_equal(query.inputs["y"], y)
        assert readings.count == 1, number
        start = np.frombuffer(came.data, np.uint8).ctypes.data
        assert start < np.asarray(query.inputs["x"]).ctypes.data < start + len(came.data)


def test_trees_and_a_models_own_parameters_too(readings: Readings) -> None:
    hosted = readings.models.get("net")
    for _ in range(3):
        params = {name: rng.standard_normal(leaf.shape) for name, leaf in hosted.params.items()}
        tree = {name: rng.standard_normal(leaf.shape) for name, leaf in hosted.params.items()}
        asked = request(rng.standard_normal((5, 2)), rng.standard_normal((5, 1)))
        asked["models"] = {
            "model": {"name": "net", "params": {name: sent(one) for name, one in params.items()}}
        }
        asked["inputs"]["v"] = {name: sent(one) for name, one in tree.items()}
        query = readings.query(body(asked))
        for name in params:
            np.testing.assert_array_equal(query.params["model"][name], params[name])
            np.testing.assert_array_equal(query.inputs["v"][name], tree[name])
    assert readings.count == 1


@pytest.mark.parametrize(
    "other",
    [
        request(np.zeros((6, 2)), np.zeros((6, 1))),
        request(np.zeros((5, 2), np.float32), np.zeros((5, 1))),
        request(np.zeros((5, 2)), np.zeros((5, 1)), wrt=["x"]),
        request(np.zeros((5, 2)), np.zeros((5, 1)), seed=1),
        {**request(np.zeros((5, 2)), np.zeros((5, 1))), "loss": "sum((model(x) - y)**2)"},
    ],
    ids=["shape", "dtype", "wrt", "seed", "loss"],
)
def test_another_header_is_another_request(readings: Readings, other: dict[str, Any]) -> None:
    first = readings.query(body(request(np.zeros((5, 2)), np.zeros((5, 1)))))
    second = readings.query(body(other))
    assert readings.count == 2
    assert (first.signature, first.seed) != (second.signature, second.seed)


def test_another_route_and_another_tenant_are_other_requests(readings: Readings) -> None:
    came = body(request(np.zeros((5, 2))))
    readings.query(came)
    assert readings.reader.recalled(came, reading.EVALUATE)[0] is None
    tenants = Body(came.data, came.media, came.answer, came.encoding, "another")
    assert readings.reader.recalled(tenants, readings.how)[0] is None


def test_new_parameters_of_the_model_are_seen(readings: Readings) -> None:
    came = body(request(np.zeros((5, 2))))
    before = readings.query(came)
    hosted = readings.models.get("net")
    new = {name: leaf + 1 for name, leaf in hosted.params.items()}
    readings.models.set_params("net", new, None)
    after = readings.query(came)
    assert readings.count == 2
    for name, leaf in new.items():
        np.testing.assert_array_equal(np.asarray(after.params["model"][name]), leaf)
        assert np.abs(np.asarray(before.params["model"][name]) - leaf).min() > 0.5
    readings.models.delete("net")
    with pytest.raises(Refusal) as refused:
        readings.query(came)
    assert refused.value.code == "unknown_model"


def test_values_that_are_gone_are_missed(readings: Readings) -> None:
    x = rng.standard_normal((5, 2))
    handle = readings.values.put("", x, None).handle
    came = body({**request(x), "inputs": {"x": {"handle": handle}, "y": sent(np.zeros((5, 1)))}})
    first, second = readings.query(came), readings.query(came)
    assert readings.count == 1
    assert first.inputs["x"] is second.inputs["x"]
    assert second.resident == first.resident == (("inputs", "x"), ("params", "model"), ("state", "model"))
    readings.values.delete("", handle)
    with pytest.raises(Refusal) as refused:
        readings.query(came)
    assert refused.value.code == "unknown_handle"


def test_leaves_in_another_order_find_their_places(readings: Readings) -> None:
    """A tree in another order is put into the order of the model."""
    readings.models.put(
        "normed", {"layers": [{"dense": [2, 3]}, {"batchnorm": 3}, {"dense": [3, 1]}]}, None, None, 0
    )
    hosted = readings.models.get("normed")
    asked = request(np.zeros((5, 2)), np.zeros((5, 1)))
    for number in range(3):
        params = {name: leaf + number for name, leaf in reversed(hosted.params.items())}
        asked["models"] = {
            "model": {"name": "normed", "params": {name: sent(one) for name, one in params.items()}}
        }
        query = readings.query(body(asked))
        assert list(query.params["model"]) == list(hosted.params)
        for name, leaf in params.items():
            np.testing.assert_array_equal(np.asarray(query.params["model"][name]), leaf)


def test_a_training_loop_through_a_socket(client: nablad.Client) -> None:
    """Twenty steps of gradient descent by the client are those in NumPy."""
    client.create_model("recalled", {"layers": [{"dense": [2, 1]}]})
    params = {name: np.asarray(leaf, np.float64) for name, leaf in client.params("recalled").params.items()}
    weight, bias = (params[name].copy() for name in ("layer_1.weight", "layer_1.bias"))
    x, y = rng.standard_normal((8, 2)), rng.standard_normal((8, 1))
    for _ in range(20):
        answer = client.gradient(LOSS, inputs={"x": x, "y": y}, model="recalled", params=params)
        off = x @ weight.T + bias - y
        np.testing.assert_allclose(answer.value, np.mean(off**2), rtol=1e-12)
        params = {name: leaf - 0.1 * answer.gradients["params"][name] for name, leaf in params.items()}
        weight, bias = weight - 0.1 * 2 * off.T @ x / 8, bias - 0.1 * 2 * off.mean(0)
    np.testing.assert_allclose(params["layer_1.weight"], weight, rtol=1e-10)


def test_copies_made_by_hand_are_what_the_library_would_make(readings: Readings) -> None:
    told = Body(b"bytes", wire.FRAME, wire.JSON, "lists", "tenant", "float16", alone=True)
    assert told.emptied() == told._replace(data=b"")
    query = readings.query(body(request(np.zeros((1, 2)), deadline_ms=7.0)))
    values: dict[str, Any] = {"inputs": {"x": np.ones((1, 2))}, "params": {}, "state": {}}
    made, expected = vars(query.with_values(**values)), vars(replace(query, **values))
    assert made.keys() == expected.keys()
    assert all(made[name] is expected[name] for name in made)
