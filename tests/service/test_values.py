"""Values by content: handles in requests, what stays and what goes, whose they are, clients that resend."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from local_server import local_server

import nablad
from nablad.content import handle_of
from nablad.problems import Refusal
from nablad_service.hosting import Shelf, Values

NET = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"dense": [4, 1]}]}
X = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
LOSS = "sum(model(x)**2)"


@pytest.fixture(scope="module", autouse=True)
def _hosted(client: nablad.Client) -> None:
    client.create_model("net", NET)


def parameters(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"layer_1.weight": (4, 2), "layer_1.bias": (4,), "layer_2.weight": (1, 4), "layer_2.bias": (1,)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def same(found: Any, expected: Any) -> None:
    assert found.value == expected.value
    for key, gradient in expected.gradients.items():
        leaves = gradient if isinstance(gradient, dict) else {"": gradient}
        own = found.gradients[key] if isinstance(gradient, dict) else {"": found.gradients[key]}
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(own[name], leaf)


# -- handles


def test_a_handle_is_the_digest_of_the_content(any_client: nablad.Client) -> None:
    handle = any_client.put(X)
    assert (handle.handle, handle.bytes) == (handle_of(X), X.nbytes)
    assert any_client.put(X.copy()) == handle
    assert any_client.put(X.astype(">f8")) == handle, "as it travels"
    assert any_client.put(np.asfortranarray(X)) == handle
    for other in (X.ravel(), X.astype("float32"), X + 1, {"x": X}, {"y": X}):
        assert any_client.put(other) != handle


@pytest.mark.parametrize("array", [np.float64(3.0), np.zeros((0, 2)), np.array([True, False]), np.arange(3)])
def test_any_array_can_be_put(any_client: nablad.Client, array: Any) -> None:
    handle = any_client.put(array)
    assert handle.handle == handle_of(array)
    found = any_client.evaluate("a", inputs={"a": handle}).result
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


def test_handles_stand_for_inputs_parameters_and_leaves(any_client: nablad.Client) -> None:
    params = parameters()
    asked: dict[str, Any] = {"model": "net", "wrt": ["params", "x"]}
    expected = any_client.gradient(LOSS, inputs={"x": X}, params=params, **asked)
    x, tree, leaf = any_client.put(X), any_client.put(params), any_client.put(params["layer_1.weight"])
    same(any_client.gradient(LOSS, inputs={"x": x}, params=tree, **asked), expected)
    same(
        any_client.gradient(LOSS, inputs={"x": x}, params={**params, "layer_1.weight": leaf}, **asked),
        expected,
    )
    two = {"u": "net", "v": {"name": "net", "params": tree}}
    both = any_client.gradient("sum(u(x) - v(x))", inputs={"x": x}, models=two, params={"u": tree}, wrt=["x"])
    np.testing.assert_array_equal(both.gradients["x"], 0)
    np.testing.assert_array_equal(
        any_client.apply("net", x, params=tree), any_client.apply("net", X, params=params)
    )


def test_a_tree_by_its_handle_has_the_models_order_whatever_its_own(client: nablad.Client) -> None:
    params = parameters()
    turned = client.put(dict(reversed(params.items())))
    found = client.gradient(LOSS, inputs={"x": X}, model="net", params=turned)
    same(found, client.gradient(LOSS, inputs={"x": X}, model="net", params=params))
    assert list(found.gradients["params"]) == list(params)


def test_an_input_may_be_a_tree_by_its_handle(client: nablad.Client) -> None:
    tree = parameters()
    asked: dict[str, Any] = {"model": "net", "wrt": ["p"]}
    loss = "sum(model(x, params=p)**2)"
    expected = client.gradient(loss, inputs={"x": X, "p": tree}, **asked)
    same(client.gradient(loss, inputs={"x": X, "p": client.put(tree)}, **asked), expected)


def test_a_function_as_a_loss_takes_handles(client: nablad.Client) -> None:
    def loss(model: Any, x: Any) -> Any:
        return np.sum(np.array([1.0, 2.0, 3.0]) @ model(x)) / x.shape[0]

    x = X.astype("float32")
    found = client.gradient(loss, inputs={"x": client.put(x)}, model="net", wrt=["x"])
    assert found.plan.dtype == "float32"
    same(found, client.gradient(loss, inputs={"x": x}, model="net", wrt=["x"]))


def test_a_programs_float_type_is_that_of_its_resident_values(client: nablad.Client) -> None:
    """float32 and float64 programs side by side, on one resident model."""
    single, double = client.put(X.astype("float32")), client.put(X)
    for _ in range(2):
        for handle, dtype in ((single, "float32"), (double, "float64")):
            result = client.gradient("sum(x**2)", inputs={"x": handle}, wrt=["x"])
            assert (result.plan.dtype, result.gradients["x"].dtype) == (dtype, np.dtype(dtype))
            mixed = client.gradient(LOSS, inputs={"x": handle}, model="net", wrt=["x"])
            assert mixed.gradients["x"].dtype == dtype


def test_check_plan_and_resident_parameters_take_handles(client: nablad.Client) -> None:
    tree, x = client.put(parameters(3)), client.put(X)
    asked: dict[str, Any] = {"inputs": {"x": x}, "model": "net", "params": tree}
    assert client.check(LOSS, **asked).worst < 1e-6
    assert client.plan(LOSS, **asked).flops > 0
    client.create_model("copied", NET, tree)
    np.testing.assert_array_equal(
        client.params("copied").params["layer_1.weight"], parameters(3)["layer_1.weight"]
    )
    version = client.set_params("copied", client.put(parameters(4)))
    assert version == client.create_model("twin", NET, parameters(4)).version


# -- what is known of values


def test_values_are_listed_pinned_and_released(url: str) -> None:
    with tenant(url, "lister") as http:
        first = http.put("/v1/values", json={"value": {"dtype": "float32", "data": [1, 2, 3]}}).json()
        tree = {"value": {"w": {"dtype": "float64", "data": [[1.0]]}}, "pinned": True}
        second = http.put("/v1/values", json=tree).json()
        assert (first["bytes"], first["pinned"], first["tree"]) == (12, False, None)
        assert first["array"] == {"shape": [3], "dtype": "float32"}
        assert (second["pinned"], second["tree"]) == (True, {"w": {"shape": [1, 1], "dtype": "float64"}})
        listed = http.get("/v1/values").json()
        assert [one["handle"] for one in listed["values"]] == [second["handle"], first["handle"]]
        assert 0 < listed["free"] < listed["limit"]
        path = f"/v1/values/{first['handle']}"
        assert http.patch(path, json={"pinned": True}).json()["pinned"] is True
        again = http.put("/v1/values", json={"value": {"dtype": "float32", "data": [1, 2, 3]}}).json()
        assert again["pinned"] is True, "a put without a word on it leaves a pin"
        assert again["last_used"] >= first["last_used"]
        assert http.get(path).json()["handle"] == first["handle"]
        assert http.delete(path).status_code == 204
        for method in ("GET", "DELETE"):
            assert http.request(method, path).json()["code"] == "unknown_handle"
        assert http.patch(path, json={"pinned": True}).status_code == 404


def tenant(url: str, name: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Nablad-Tenant": name})


def test_the_handle_of_another_tenant_is_as_unknown_as_any(url: str) -> None:
    value = {"value": {"dtype": "float64", "data": [1.5, 2.5]}}
    with tenant(url, "one") as one, tenant(url, "two") as two, httpx.Client(base_url=url) as common:
        handle = one.put("/v1/values", json=value).json()["handle"]
        asked = {"program": "sum(a)", "inputs": {"a": {"handle": handle}}}
        assert one.post("/v1/evaluate", json=asked).json()["outputs"]["result"] == 4.0
        for other in (two, common):
            refused = other.post("/v1/evaluate", json=asked)
            unknown = other.post("/v1/evaluate", json={**asked, "inputs": {"a": {"handle": "0" * 32}}})
            assert (refused.status_code, refused.json()["code"]) == (404, "unknown_handle")
            said, known = (
                one.json()["detail"].replace(h, "") for one, h in ((refused, handle), (unknown, "0" * 32))
            )
            assert said == known
            assert other.get("/v1/values").json()["values"] == [] or other is common
            assert other.get(f"/v1/values/{handle}").status_code == 404
            assert other.delete(f"/v1/values/{handle}").status_code == 404
        two.put("/v1/values", json=value).raise_for_status()
        assert two.delete(f"/v1/values/{handle}").status_code == 204
        assert one.get(f"/v1/values/{handle}").status_code == 200, "each has its own"


def test_all_missing_handles_come_in_one_refusal(url: str, client: nablad.Client) -> None:
    known = client.put(X).handle
    missing = [f"{number:032x}" for number in range(5)]
    inputs = {"x": {"handle": known}, **{f"x{n}": {"handle": one} for n, one in enumerate(missing[:3])}}
    binding = {
        "name": "net",
        "params": {"layer_1.weight": {"handle": missing[3]}},
        "state": {"handle": missing[4]},
    }
    asked = {"loss": LOSS, "inputs": inputs, "models": {"model": binding}}
    refused = httpx.post(f"{url}/v1/gradient", json=asked).json()
    assert (refused["code"], refused["handles"]) == ("unknown_handle", missing)


# -- room


def resident(shelf: Shelf) -> list[float]:
    return [float(kept.content.array[0]) for _, kept in shelf.all(lambda key: True)]


def of(number: float) -> np.ndarray:
    return np.full(10, number)


def test_what_was_used_longest_ago_goes_first() -> None:
    shelf = Shelf(240)
    values = Values(shelf)
    handles = [values.put("", of(number), None).handle for number in (1, 2, 3)]
    values.take("", [handles[0]])
    values.put("", of(4), None)
    assert resident(shelf) == [4, 1, 3]
    values.put("", of(1), None)
    values.put("", of(5), None)
    assert resident(shelf) == [5, 1, 4]
    assert shelf.statistics().evicted == 2
    values.info("", handle_of(of(4)))
    values.put("", of(6), None)
    assert resident(shelf) == [6, 5, 1], "a look is no use"


def test_what_is_pinned_stays() -> None:
    shelf = Shelf(240)
    values = Values(shelf)
    pinned = values.put("", of(1), True).handle
    for number in (2, 3, 4, 5):
        values.put("", of(number), None)
    assert resident(shelf) == [5, 4, 1]
    values.pin("", pinned, False)
    values.put("", of(6), None)
    assert resident(shelf) == [6, 5, 4]


def test_what_cannot_fit_beside_the_pinned_is_refused_with_numbers_and_nothing_goes() -> None:
    shelf = Shelf(240)
    values = Values(shelf)
    for number in (1, 2):
        values.put("", of(number), True)
    values.put("", of(3), None)
    with pytest.raises(
        Refusal, match=r"resident_limit: 88 bytes do not fit: at most 240.* 160 are pinned"
    ) as full:
        values.put("", np.zeros(11), None)
    assert full.value.extra == {"bytes": 88, "limit": 240, "pinned": 160}
    with pytest.raises(Refusal, match="248 bytes do not fit: at most 240 may be resident"):
        values.put("", np.zeros(31), None)
    assert resident(shelf) == [3, 2, 1]


def test_a_value_in_use_outlives_its_place() -> None:
    values = Values(Shelf(80))
    held = values.take("", [values.put("", of(1), None).handle])
    values.put("", of(2), None)
    gc.collect()
    (value,) = held.values()
    np.testing.assert_array_equal(value, of(1))


def test_the_servers_bound_is_a_setting(tmp_path: Any) -> None:
    with local_server("--max-resident-bytes", "1000") as url, nablad.Client(url) as client:
        first = client.put(np.zeros(70))
        client.put(np.ones(70))
        assert len(client.values()) == 1
        with pytest.raises(nablad.Unavailable) as full:
            client.put(np.zeros(126))
        assert (full.value.code, full.value.extra["limit"]) == ("resident_limit", 1000)
        with pytest.raises(nablad.NotFound, match="gone from this client"):
            client.evaluate("sum(a)", inputs={"a": first})


# -- clients that resend


class Counting(httpx.HTTPTransport):
    """A real connection that notes what goes over it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, str, int]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append((request.method, request.url.path, int(request.headers.get("content-length", 0))))
        return super().handle_request(request)

    def calls(self) -> list[str]:
        return [f"{method} {path}" for method, path, _ in self.sent]


@pytest.fixture
def counting(url: str) -> Iterator[tuple[nablad.Client, Counting]]:
    transport = Counting()
    with nablad.Client(url, transport=transport) as client:
        yield client, transport


def test_a_client_puts_again_what_the_server_lost(counting: tuple[nablad.Client, Counting]) -> None:
    client, wire = counting
    x, params = X + 7, parameters(7)
    asked: dict[str, Any] = {
        "inputs": {"x": client.put(x)},
        "model": "net",
        "params": client.put(params, pinned=True),
    }
    expected = client.gradient(LOSS, **asked)
    for info in client.values():
        httpx.delete(f"{client._sender.url}/v1/values/{info.handle}").raise_for_status()
    wire.sent.clear()
    same(client.gradient(LOSS, **asked), expected)
    put, ask = "PUT /v1/values", "POST /v1/gradient"
    assert wire.calls() == [ask, put, put, ask]
    assert {info.handle for info in client.values() if info.pinned} >= {asked["params"].handle}
    wire.sent.clear()
    same(client.gradient(LOSS, **asked), expected)
    assert wire.calls() == [ask]


def test_a_restarted_server_gets_its_values_again() -> None:
    with local_server() as url:
        port = url.rsplit(":", 1)[1]
        client = nablad.Client(url)
        x = X + 8
        handle = client.put(x)
        expected = client.evaluate("sin(x)", inputs={"x": handle}).result
    with local_server("--port", port), client:
        np.testing.assert_array_equal(client.evaluate("sin(x)", inputs={"x": handle}).result, expected)


def test_an_asynchronous_client_resends_too(url: str) -> None:
    async def work() -> None:
        async with nablad.AsyncClient(url) as client:
            x = X + 9
            handle = await client.put(x)
            httpx.delete(f"{url}/v1/values/{handle.handle}").raise_for_status()
            found = await client.evaluate("x", inputs={"x": handle})
            np.testing.assert_array_equal(found.result, x)
            assert (await client.pin(handle)).pinned
            assert handle.handle in {info.handle for info in await client.values()}
            await client.release(handle)
            await client.release(handle)

    asyncio.run(work())


def test_data_that_are_gone_from_the_client_are_told(client: nablad.Client, url: str) -> None:
    changed = X + 11
    for handle, why in (
        (client.put(X + 10), "gone from this client"),
        (client.put([1.25, 2.25]), "gone from this client"),
        (client.put(changed), "changed since"),
    ):
        changed[0, 0] = 0.0
        httpx.delete(f"{url}/v1/values/{handle.handle}").raise_for_status()
        with pytest.raises(nablad.NotFound, match=why) as refused:
            client.evaluate("x", inputs={"x": handle})
        assert (refused.value.code, refused.value.extra["handles"]) == ("unknown_handle", [handle.handle])


def test_a_client_holds_what_it_puts_weakly(client: nablad.Client) -> None:
    value = X + 12
    handle = client.put(value)
    assert client._calls._sources.find(handle.handle) is not None
    del value
    gc.collect()
    assert client._calls._sources.find(handle.handle) is None


def test_releasing_is_no_error_when_it_is_gone_already(any_client: nablad.Client) -> None:
    x = X + 13
    handle = any_client.put(x)
    any_client.release(handle)
    any_client.release(handle)
    with pytest.raises(nablad.NotFound, match="gone from this client"):
        any_client.evaluate("x", inputs={"x": handle})


# -- dedupe


@pytest.fixture
def deduping(url: str) -> Iterator[tuple[nablad.Client, Counting]]:
    transport = Counting()
    with nablad.Client(url, transport=transport, dedupe=True, dedupe_bytes=1000) as client:
        yield client, transport


def test_large_unchanged_inputs_travel_once(deduping: tuple[nablad.Client, Counting]) -> None:
    client, wire = deduping
    points = np.random.default_rng(1).standard_normal((500, 2))
    plain = client.gradient(LOSS, inputs={"x": points[:50]}, model="net", wrt=["params"])
    assert plain.value > 0
    wire.sent.clear()
    for _ in range(5):
        found = client.gradient(LOSS, inputs={"x": points}, model="net", wrt=["params"])
    with nablad.Client(client._sender.url) as plainly:
        same(found, plainly.gradient(LOSS, inputs={"x": points}, model="net"))
    assert wire.calls() == ["PUT /v1/values"] + ["POST /v1/gradient"] * 5
    total = sum(size for _, _, size in wire.sent)
    assert points.nbytes < total < points.nbytes + 6 * 1000


def test_changed_arrays_are_noticed(deduping: tuple[nablad.Client, Counting]) -> None:
    client, wire = deduping
    points = np.random.default_rng(2).standard_normal(500)
    for _ in range(3):
        assert client.evaluate("x[17]", inputs={"x": points}).result == points[17]
        points[17] += 1.0
    assert wire.calls().count("POST /v1/evaluate") == 3


def test_what_changes_at_every_call_goes_along_and_is_not_kept(
    deduping: tuple[nablad.Client, Counting],
) -> None:
    client, wire = deduping
    for step in range(6):
        client.evaluate("sum(x)", inputs={"x": np.full(500, float(step))})
    assert wire.calls().count("PUT /v1/values") == 1, "the first, whose fate nobody knew"


def test_batches_that_come_round_again_are_kept(deduping: tuple[nablad.Client, Counting]) -> None:
    client, wire = deduping
    batches = [np.full(500, float(number)) for number in range(20, 24)]
    for _ in range(4):
        for batch in batches:
            assert client.evaluate("x[0]", inputs={"x": batch}).result == batch[0]
    large = [size for _, _, size in wire.sent if size > 4000]
    assert len(large) == 1 + 3 * 2, "each of them twice, but for the first"


def test_deduped_arrays_that_the_server_lost_are_sent_again(deduping: tuple[nablad.Client, Counting]) -> None:
    client, wire = deduping
    points = np.random.default_rng(3).standard_normal(500)
    client.evaluate("sum(x)", inputs={"x": points})
    httpx.delete(f"{client._sender.url}/v1/values/{handle_of(points)}").raise_for_status()
    wire.sent.clear()
    assert client.evaluate("x[17]", inputs={"x": points}).result == points[17]
    assert wire.calls() == ["POST /v1/evaluate", "PUT /v1/values", "POST /v1/evaluate"]


def test_where_there_is_no_room_arrays_go_along_with_the_call() -> None:
    with local_server("--max-resident-bytes", "1000") as url:
        wire = Counting()
        with nablad.Client(url, transport=wire, dedupe=True, dedupe_bytes=1000) as client:
            points = np.arange(500.0)
            for _ in range(3):
                assert client.evaluate("x[17]", inputs={"x": points}).result == points[17]
        assert wire.calls() == ["PUT /v1/values"] + ["POST /v1/evaluate"] * 3


def test_arrays_that_do_not_fit_together_still_get_there() -> None:
    with local_server("--max-resident-bytes", "10000") as url:
        wire = Counting()
        with nablad.Client(url, transport=wire, dedupe=True, dedupe_bytes=1000) as client:
            inputs = {name: np.full(600, number) for name, number in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
            for _ in range(3):
                assert client.evaluate("a[0] + b[0] + c[0]", inputs=inputs).result == 6.0
        assert len(wire.calls()) < 20


def test_resident_arrays_are_spilled_by_a_server_with_a_budget() -> None:
    with local_server("--device-memory", "10000") as url, nablad.Client(url) as client:
        arrays = [np.full(1000, float(number)) for number in range(3)]
        handles = [client.put(array) for array in arrays]
        for _ in range(2):
            for array, handle in zip(arrays, handles, strict=True):
                assert client.evaluate("sum(x)", inputs={"x": handle}).result == array.sum()
                assert "nablad_device_bytes 8000.0" in httpx.get(f"{url}/metrics").text
        assert "nablad_resident_bytes 24000.0" in httpx.get(f"{url}/metrics").text


def test_large_values_keep_their_memory_to_themselves(any_client: nablad.Client) -> None:
    """Memory of bodies is used again for others: not as long as something resident lies in it."""
    rng = np.random.default_rng(5)
    values = [rng.standard_normal(400_000) for _ in range(2)]
    handles = [any_client.put(value) for value in values]
    any_client.put({"a": values[0], "b": np.ones(3)})
    for _ in range(4):
        other = rng.standard_normal(400_000)
        assert any_client.evaluate("x[7]", inputs={"x": other}).result == other[7]
    for value, handle in zip(values, handles, strict=True):
        np.testing.assert_array_equal(any_client.evaluate("x + 0", inputs={"x": handle}).result, value)


def test_an_asynchronous_client_sends_large_unchanged_inputs_once(url: str) -> None:
    class Noting(httpx.AsyncHTTPTransport):
        sent: list[str] = []  # noqa: RUF012 - of the one instance there is

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.sent.append(f"{request.method} {request.url.path}")
            return await super().handle_async_request(request)

    async def work() -> None:
        points = np.random.default_rng(6).standard_normal(500)
        async with nablad.AsyncClient(url, transport=Noting(), dedupe=True, dedupe_bytes=1000) as client:
            for _ in range(3):
                assert (await client.evaluate("x[3]", inputs={"x": points})).result == points[3]

    asyncio.run(work())
    assert Noting.sent == ["PUT /v1/values"] + ["POST /v1/evaluate"] * 3
