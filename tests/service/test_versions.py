"""Parameters by version: several resident beside the current ones, named by bindings, read and put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_server import local_server

import nablad
from nablad.content import version_of
from nablad.problems import Refusal
from nablad_service.hosting import ModelStore, Shelf, Versions

LINE = {"layers": [{"dense": [1, 1]}]}
NORMED = {"layers": [{"batchnorm": 1}]}
X = np.array([[2.0]])


def line(weight: float) -> dict[str, np.ndarray]:
    return {"layer_1.weight": np.full((1, 1), weight), "layer_1.bias": np.zeros(1)}


def bound(name: str, version: str) -> dict[str, Any]:
    return {"inputs": {"x": X}, "models": {"model": {"name": name, "version": version}}}


def test_a_binding_may_name_any_resident_version(any_client: nablad.Client) -> None:
    any_client.create_model("versions", LINE, line(1.0))
    versions = {weight: version_of(line(weight), {}) for weight in (1.0, 2.0, 3.0, 4.0)}
    for weight in (2.0, 3.0):
        assert any_client.set_params("versions", line(weight), version=versions[weight]) == versions[weight]
    assert any_client.model("versions").version == versions[1.0], "the current ones stay so"
    assert any_client.set_params("versions", line(4.0)) == versions[4.0]
    for weight, version in versions.items():
        asked: Any = bound("versions", version)
        found = any_client.gradient("sum(model(x))", **asked, wrt=["x", "params"])
        assert (found.value, float(found.gradients["x"][0, 0])) == (2 * weight, weight)
        kept = any_client.params("versions", version)
        assert (kept.version, kept.params["layer_1.weight"][0, 0]) == (version, weight)
    assert any_client.params("versions").version == versions[4.0]


def test_what_is_replaced_stays_until_the_next_replacement(client: nablad.Client) -> None:
    client.create_model("replaced", LINE, line(1.0))
    first = client.model("replaced").version
    second = client.set_params("replaced", line(2.0))
    assert client.evaluate("model(x)", **bound("replaced", first)).result == 2.0
    client.set_params("replaced", line(3.0))
    assert client.evaluate("model(x)", **bound("replaced", second)).result == 4.0
    with pytest.raises(nablad.NotFound) as gone:
        client.evaluate("model(x)", **bound("replaced", first))
    assert (gone.value.code, gone.value.extra["version"]) == ("unknown_version", version_of(line(3.0), {}))
    assert second in gone.value.extra["versions"]


def test_other_parameters_than_the_version_says_are_refused_with_both(client: nablad.Client) -> None:
    client.create_model("exact", LINE, line(1.0))
    asked, real = version_of(line(2.0), {}), version_of(line(3.0), {})
    with pytest.raises(nablad.RequestError) as refused:
        client.set_params("exact", line(3.0), version=asked)
    assert (refused.value.code, refused.value.status) == ("other_version", 409)
    assert asked in refused.value.detail
    assert real in refused.value.detail
    with pytest.raises(nablad.NotFound):
        client.params("exact", real)


def test_a_version_covers_the_state(client: nablad.Client) -> None:
    client.create_model("stateful", NORMED)
    own = client.params("stateful")
    state = {"layer_1.running_mean": np.ones(1, "float32"), "layer_1.running_var": np.ones(1, "float32")}
    with pytest.raises(nablad.RequestError, match="covers the state"):
        client.set_params("stateful", own.params, version=version_of(own.params, state))
    version = client.set_params("stateful", own.params, state, version=version_of(own.params, state))
    at = {"inputs": {"x": np.ones((1, 1), "float32")}}
    models: Any = {"model": {"name": "stateful", "version": version}}
    assert client.evaluate("model(x)", **at, models=models).result == 0.0
    assert client.evaluate("model(x)", **at, model="stateful").result != 0.0
    np.testing.assert_array_equal(client.params("stateful", version).state["layer_1.running_mean"], 1.0)


def test_versions_go_with_their_model(client: nablad.Client) -> None:
    version = version_of(line(2.0), {})
    for change in (lambda: client.create_model("gone", LINE, line(5.0)), lambda: client.delete_model("gone")):
        client.create_model("gone", LINE, line(1.0))
        client.set_params("gone", line(2.0), version=version)
        change()
        with pytest.raises(nablad.NotFound):
            client.params("gone", version)


def store(limit: int) -> ModelStore:
    models = ModelStore(10, versions=Versions(Shelf(limit)))
    models.put("line", LINE, line(0.0), None, 0)
    return models


def test_versions_share_the_room_and_the_least_recently_used_goes() -> None:
    models = store(3 * 16)
    versions = {number: version_of(line(float(number)), {}) for number in range(1, 5)}
    for number in (1, 2, 3):
        models.put_params("line", versions[number], line(float(number)), None)
    models.get("line", versions[1])
    models.put_params("line", versions[4], line(4.0), None)
    for number in (1, 3, 4):
        assert models.get("line", versions[number]).version == versions[number]
    with pytest.raises(Refusal, match="unknown_version"):
        models.get("line", versions[2])


def test_a_version_without_room_is_refused_and_a_replaced_one_is_dropped() -> None:
    models = store(8)
    with pytest.raises(Refusal, match="resident_limit: 16 bytes do not fit"):
        models.put_params("line", version_of(line(1.0), {}), line(1.0), None)
    before = models.get("line").version
    models.set_params("line", line(1.0), None)
    with pytest.raises(Refusal, match="unknown_version"):
        models.get("line", before)


def test_a_loop_that_replaces_parameters_keeps_one_of_them_at_most() -> None:
    shelf = Shelf(10_000)
    models = ModelStore(10, versions=Versions(shelf))
    models.put("line", LINE, line(0.0), None, 0)
    kept = version_of(line(7.0), {})
    for number in range(1, 20):
        models.set_params("line", line(float(number)), None)
        if number == 8:
            models.put_params("line", kept, line(7.0), None)
    assert shelf.statistics().count == 2
    assert models.get("line", kept).version == kept


def test_a_restart_keeps_the_current_version_only(tmp_path: Path) -> None:
    current, other = version_of(line(1.0), {}), version_of(line(2.0), {})
    with local_server("--repository", str(tmp_path)) as url, nablad.Client(url) as client:
        client.create_model("line", LINE, line(1.0))
        client.set_params("line", line(2.0), version=other)
    with local_server("--repository", str(tmp_path)) as url, nablad.Client(url) as client:
        assert client.params("line", current).version == current
        with pytest.raises(nablad.NotFound):
            client.params("line", other)
