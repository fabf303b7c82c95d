"""The client: one surface twice, typed errors, Python functions as losses, and tables that are complete."""

from __future__ import annotations

import ast
import asyncio
import inspect
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import nablad
from nablad import errors
from nablad.problems import CODES, Place, Problem, Refusal

ROOT = Path(__file__).parent.parent.parent
SOURCES = [file for part in ("client", "models", "service") for file in sorted((ROOT / part).rglob("*.py"))]
X = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
ARCHITECTURE = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"dense": [4, 2]}]}


@pytest.fixture(scope="module", autouse=True)
def _hosted(client: nablad.Client) -> None:
    client.create_model("net", ARCHITECTURE)
    client.create_model("field", {"layers": [{"dense": [2, 5], "activation": "tanh"}, {"dense": [5, 1]}]})


# -- what is sent


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numpy_scalars_keep_their_dtype_like_arrays(
    any_client: nablad.Client, kind: type[np.floating]
) -> None:
    for given in (kind(0.1), [kind(0.1)], [[kind(0.1)], [0.0]]):
        result = any_client.gradient("sum(sin(a))", inputs={"a": given}, wrt=["a"])
        assert result.plan.dtype == np.asarray(given).dtype.name
        assert result.gradients["a"].dtype == np.asarray(given).dtype
        expected = np.sum(np.sin(np.asarray(given, float)))
        np.testing.assert_allclose(
            result.value, expected, rtol=4 * float(np.finfo(np.asarray(given).dtype).eps)
        )


def test_numpy_scalars_that_are_whole_stay_whole(any_client: nablad.Client) -> None:
    for given in (np.int64(3), np.uint8(3), np.bool_(True), [np.int32(3), np.int32(4)]):
        found = any_client.evaluate("a", inputs={"a": given}).result
        assert found.dtype == np.asarray(given).dtype
        np.testing.assert_array_equal(found, given)


def test_plain_numbers_take_the_type_of_the_rest(any_client: nablad.Client) -> None:
    for weight, dtype in ((0.1, "float32"), (np.float32(0.1), "float32"), (np.float64(0.1), "float64")):
        asked = {"inputs": {"x": X.astype("float32"), "w": weight}, "wrt": ["x"]}
        assert any_client.gradient("w * sum(x**2)", **asked).plan.dtype == dtype


def test_constants_of_a_traced_function_take_the_type_of_scalar_inputs_too(client: nablad.Client) -> None:
    table = np.array([0.1, 0.2])
    for kind in (np.float32, np.float64):

        def loss(x: Any) -> Any:
            return np.sum(table * x)

        result = client.gradient(loss, inputs={"x": kind(3)}, wrt=["x"])
        assert result.plan.dtype == np.dtype(kind).name
        np.testing.assert_allclose(result.gradients["x"], 0.3, rtol=4 * float(np.finfo(kind).eps))


# -- one surface, twice


def surface(kind: type) -> dict[str, Callable[..., Any]]:
    """Public methods; `close` and `aclose` are one."""
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {name.replace("aclose", "close"): one for name, one in methods if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    assert set(surface(nablad.Client)) == set(surface(nablad.AsyncClient))


@pytest.mark.parametrize("name", ["__init__", *surface(nablad.Client)])
def test_both_clients_take_and_give_the_same(name: str) -> None:
    one, other = (
        inspect.signature({**surface(kind), "__init__": vars(kind)["__init__"]}[name])
        for kind in (nablad.Client, nablad.AsyncClient)
    )
    # An event loop has other work than to look for an answer.
    shared = [parameter for parameter in one.parameters.values() if parameter.name != "busy_poll"]
    assert [parameter.name for parameter in shared] == list(other.parameters)
    for parameter in shared:
        twin = other.parameters[parameter.name]
        assert (parameter.kind, parameter.default) == (twin.kind, twin.default)
        if parameter.name != "transport":
            assert parameter.annotation == twin.annotation
    assert one.return_annotation == other.return_annotation.removeprefix("Async")


@pytest.mark.parametrize("name", surface(nablad.Client))
def test_every_method_says_what_it_does(name: str) -> None:
    for kind in (nablad.Client, nablad.AsyncClient):
        assert inspect.getdoc(surface(kind)[name])


def test_the_asynchronous_client_gives_the_same_answers(url: str, client: nablad.Client) -> None:
    async def ask() -> tuple[Any, ...]:
        async with nablad.AsyncClient(url) as connected:
            await connected.create_model("ephemeral", ARCHITECTURE, seed=3)
            params = await connected.params("ephemeral")
            version = await connected.set_params("ephemeral", params.params)
            info = await connected.model("ephemeral")
            names = [one.name for one in await connected.models()]
            gradient, evaluated, checked, operators = await asyncio.gather(
                connected.gradient("sum(model(x)**2)", inputs={"x": X}, model="ephemeral"),
                connected.evaluate("model(x)", inputs={"x": X}, model="ephemeral"),
                connected.check("sum(x**3)", inputs={"x": X}, wrt=["x"]),
                connected.operators(),
            )
            await connected.delete_model("ephemeral")
            with pytest.raises(nablad.NotFound):
                await connected.model("ephemeral")
            return params, version, info, names, gradient, evaluated, checked, operators

    params, version, info, names, gradient, evaluated, checked, operators = asyncio.run(ask())
    assert version == info.version == params.version
    assert "ephemeral" in names
    assert checked.worst < 1e-8
    assert operators == client.operators()
    asked: dict[str, Any] = {"inputs": {"x": X}, "model": "net", "params": params.params}
    same = client.gradient("sum(model(x)**2)", **asked)
    assert gradient.value == same.value
    for leaf, array in same.gradients["params"].items():
        np.testing.assert_array_equal(gradient.gradients["params"][leaf], array)
    np.testing.assert_array_equal(evaluated.result, client.evaluate("model(x)", **asked).result)


def test_a_client_shows_where_it_is_connected(client: nablad.Client, url: str) -> None:
    assert url in repr(client)


def test_results_show_their_shapes(client: nablad.Client) -> None:
    result = client.gradient("sum(model(x)**2)", inputs={"x": X}, model="net", wrt=["params", "x"])
    assert "x: float64(3, 2)" in repr(result)
    assert "params: 4 arrays" in repr(result)
    assert "result: float64(3, 2)" in repr(client.evaluate("x", inputs={"x": X}))


def test_both_formats_give_the_same_bits(any_client: nablad.Client, client: nablad.Client) -> None:
    asked: dict[str, Any] = {"inputs": {"x": X}, "model": "net", "wrt": ["params", "x"], "outputs": ["y"]}
    found, same = (one.gradient("y = model(x)\nsum(y**2)", **asked) for one in (any_client, client))
    assert found.value == same.value
    np.testing.assert_array_equal(found.gradients["x"], same.gradients["x"])
    np.testing.assert_array_equal(found.outputs["y"], same.outputs["y"])
    assert found.gradients["x"].dtype == same.gradients["x"].dtype == np.float64


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_keep_their_dtype(any_client: nablad.Client, dtype: str) -> None:
    result = any_client.gradient("sum(x**2)", inputs={"x": X.astype(dtype)}, wrt=["x"])
    assert result.gradients["x"].dtype == dtype
    assert result.plan.dtype == dtype


def test_arrays_of_every_layout_travel(any_client: nablad.Client) -> None:
    block = np.arange(24.0).reshape(4, 6)
    for array in (block.T, block[::2, ::-1], np.asfortranarray(block), block[:, :0], block.astype(">f8")):
        result = any_client.evaluate("x * 1", inputs={"x": array}).result
        np.testing.assert_array_equal(result, array)


def test_parameters_go_and_come_back(any_client: nablad.Client) -> None:
    any_client.create_model("there_and_back", ARCHITECTURE, seed=1)
    params = any_client.params("there_and_back")
    assert list(params.params) == ["layer_1.weight", "layer_1.bias", "layer_2.weight", "layer_2.bias"]
    assert any_client.set_params("there_and_back", params.params) == params.version
    changed = {name: leaf + 1 for name, leaf in params.params.items()}
    assert any_client.set_params("there_and_back", changed) != params.version
    any_client.delete_model("there_and_back")


# -- errors

REFUSED: dict[str, tuple[type[nablad.ServiceError], str, Any]] = {
    "a program": (nablad.ProgramError, "unknown_name", lambda c: c.evaluate("sum(xx)", inputs={})),
    "a request": (nablad.RequestError, "extra_input", lambda c: c.evaluate("1", inputs={"x": X})),
    "wrt": (nablad.RequestError, "invalid_request", lambda c: c.gradient("1", inputs={}, wrt=["y"])),
    "a model": (nablad.NotFound, "unknown_model", lambda c: c.model("nobody")),
    "a binding": (nablad.NotFound, "unknown_model", lambda c: c.evaluate("1", inputs={}, model="nobody")),
    "a name": (nablad.RequestError, "invalid_name", lambda c: c.create_model("a b", ARCHITECTURE)),
    "a name with a slash": (nablad.ServiceError, "unknown_path", lambda c: c.model("a/b")),
    "an architecture": (nablad.RequestError, "invalid_architecture", lambda c: c.create_model("bad", {})),
    "parameters": (nablad.RequestError, "invalid_params", lambda c: c.set_params("net", {})),
    "a deadline": (
        nablad.DeadlineExceeded,
        "deadline",
        lambda c: c.evaluate("x + 0.7", inputs={"x": X}, deadline_ms=0.001),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_an_exception_of_its_kind(any_client: nablad.Client, name: str) -> None:
    kind, code, call = REFUSED[name]
    with pytest.raises(kind) as caught:
        call(any_client)
    assert caught.value.code == code
    assert caught.value.status == CODES[code].status
    assert isinstance(caught.value, nablad.NabladError)
    assert caught.value.detail in str(caught.value)
    assert code in str(caught.value)


def test_a_program_error_points_into_the_text(any_client: nablad.Client) -> None:
    with pytest.raises(nablad.ProgramError) as caught:
        any_client.gradient("y = model(x)\nsum(y + zeros(7))", inputs={"x": X}, model="net")
    assert caught.value.where == Place(line=2, column=5, end_column=17, text="y + zeros(7)")
    assert "line 2, column 5: y + zeros(7)" in str(caught.value)
    assert caught.value.extra["shapes"] == [[3, 2], [7]]


def test_an_unknown_version_tells_the_resident_one(client: nablad.Client) -> None:
    models = {"model": {"name": "net", "version": "old"}}
    with pytest.raises(nablad.NotFound) as caught:
        client.evaluate("model(x)", inputs={"x": X}, models=models)
    assert caught.value.extra["version"] == client.model("net").version


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens: the port is taken, and nobody answers there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_missing_server_is_named_with_what_to_type(nobody: str) -> None:
    with nablad.Client(nobody) as client, pytest.raises(nablad.ConnectionFailed) as caught:
        client.models()
    assert nobody in str(caught.value)
    assert "nablad serve" in str(caught.value)


@pytest.mark.parametrize("kind", [nablad.Client, nablad.AsyncClient])
@pytest.mark.parametrize(
    "text", ["localhost:8421", "127.0.0.1", "http://", "ftp://there", "http://there:port"]
)
def test_what_is_no_address_is_told_with_what_to_write(kind: type[Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is no address.*; write http://HOST:PORT"):
        kind(text)


def test_a_missing_server_is_named_to_asynchronous_callers_too(nobody: str) -> None:
    async def ask() -> None:
        async with nablad.AsyncClient(nobody) as client:
            await client.models()

    with pytest.raises(nablad.ConnectionFailed, match="nablad serve"):
        asyncio.run(ask())


JSON = {"content-type": "application/json"}
STRANGERS: dict[str, tuple[int, dict[str, Any]]] = {
    "a web page": (200, {"html": "<html>welcome</html>"}),
    "a web page that is missing": (404, {"html": "<html>not found</html>"}),
    "a gateway without its server": (502, {"text": "Bad Gateway"}),
    "a redirect": (302, {"headers": {"location": "https://example.org/login"}}),
    "an empty answer": (200, {"content": b""}),
    "an empty answer of JSON": (200, {"content": b"", "headers": JSON}),
    "JSON of another kind": (200, {"json": {"hello": "world"}}),
    "a list": (200, {"json": [1, 2]}),
    "JSON cut short": (200, {"content": b'{"models": [', "headers": JSON}),
    "models of another kind": (200, {"json": {"models": [{"id": 1}]}}),
    "msgpack that is none": (200, {"content": b"\xc1", "headers": {"content-type": "application/msgpack"}}),
    "a problem of another kind": (
        400,
        {"json": {"title": "Bad"}, "headers": {"content-type": "application/problem+json"}},
    ),
}


def stranger(name: str) -> httpx.MockTransport:
    status, holds = STRANGERS[name]
    return httpx.MockTransport(lambda request: httpx.Response(status, **holds))


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_answers_and_is_told_apart(name: str) -> None:
    with (
        nablad.Client("http://stranger", transport=stranger(name)) as client,
        pytest.raises(nablad.InvalidAnswer),
    ):
        client.models()


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_told_apart_asynchronously(name: str) -> None:
    async def ask() -> None:
        async with nablad.AsyncClient("http://stranger", transport=stranger(name)) as client:
            await client.models()

    with pytest.raises(nablad.InvalidAnswer):
        asyncio.run(ask())


def test_a_gradient_from_a_stranger_is_told_apart() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"value": 1.0}))
    with nablad.Client("http://stranger", transport=transport) as client, pytest.raises(nablad.InvalidAnswer):
        client.gradient("sum(x)", inputs={"x": X}, wrt=["x"])


FAMILIES = [
    (404, nablad.NotFound),
    (418, nablad.RequestError),
    (503, nablad.Unavailable),
    (599, nablad.ServerError),
]


@pytest.mark.parametrize(("status", "family"), FAMILIES)
def test_a_code_of_a_newer_server_becomes_the_family_of_its_status(status: int, family: type) -> None:
    document = {"title": "New", "status": status, "detail": "something new", "code": "from_the_future"}
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json=document))
    with nablad.Client("http://newer", transport=transport) as client, pytest.raises(family) as caught:
        client.models()
    assert caught.value.code == "from_the_future"


def test_wrong_use_is_an_error_before_anything_is_sent() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        pytest.fail(f"{request.url} was called")

    with nablad.Client("http://never", transport=httpx.MockTransport(never)) as client:
        with pytest.raises(ValueError, match="not both"):
            client.evaluate("1", inputs={}, model="net", models={"u": "net"})
        with pytest.raises(ValueError, match="model="):
            client.evaluate("1", inputs={}, params={"layer_1.bias": X})
        with pytest.raises(ValueError, match="several models"):
            client.evaluate("1", inputs={}, models={"u": "net", "v": "net"}, params={"layer_1.bias": X})
        with pytest.raises(TypeError, match="complex128"):
            client.evaluate("x", inputs={"x": X + 1j})
        with pytest.raises(nablad.TraceError):
            client.evaluate(lambda y: y, inputs={"x": X})
    with pytest.raises(ValueError, match="msgpack"):
        nablad.Client(format="yaml")  # type: ignore[arg-type]


# -- what is exported, and the table of codes


def test_every_public_name_is_exported_once_and_in_order() -> None:
    exported = nablad.__all__
    assert exported == sorted(exported)
    assert len(exported) == len(set(exported))
    public = {
        name
        for name, value in vars(nablad).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public | {"__version__"} == set(exported)


def test_every_exception_is_exported() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert kinds <= set(nablad.__all__)


def calls_of(names: set[str]) -> Iterator[tuple[str, str]]:
    """First arguments of these calls that are literal, with where they stand."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if name in names and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, f"{file.relative_to(ROOT)}:{node.lineno}"


def test_every_code_that_is_used_is_in_the_table() -> None:
    used = list(calls_of({"Refusal", "refusal", "refuse"}))
    assert len(used) > 100
    assert [(code, place) for code, place in used if code not in CODES] == []


def test_every_code_in_the_table_is_used() -> None:
    literals = {
        node.value
        for file in SOURCES
        if file.name != "problems.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert sorted(set(CODES) - literals) == []


@pytest.mark.parametrize("code", CODES)
def test_a_code_travels_from_refusal_to_exception(code: str) -> None:
    place = Place(line=1, column=2, end_column=3, text="x")
    document = Problem.of(Refusal(code, "a sentence", place, {"more": [1]})).model_dump_json()
    raised = Problem.model_validate_json(document).exception()
    assert type(raised) is CODES[code].exception
    assert (raised.code, raised.detail, raised.where) == (code, "a sentence", place)
    assert raised.extra == {"more": [1]}
    assert raised.status == CODES[code].status


# -- a Python function gives the numbers of its text


def jacobian_penalty(model: Any, x: Any, y: Any) -> Any:
    """The seed's loss_function1."""
    prediction = model(x)
    slope = nablad.jacobian(prediction, x)
    data = np.sum((prediction - y) ** 2)
    smooth = nablad.norm(0.01 * slope) ** 2
    return data + smooth


def burgers(field: Any, points: Any, nu: Any) -> Any:
    def residual(t: Any, x: Any) -> Any:
        u = field(np.stack([t, x]))[0]
        return nablad.d(u, t) + u * nablad.d(u, x) - nu * nablad.d(u, x, x)

    return np.mean(nablad.vmap(residual)(points[:, 0], points[:, 1]) ** 2)


def constants(model: Any, x: Any) -> Any:
    target = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    weights = np.linspace(1.0, 2.0, 3)
    return np.sum(weights[:, None] * (model(x) - target) ** 2) / np.sqrt(2.0)


def loops(x: Any, y: Any) -> Any:
    total = 0.0
    for power in range(1, 4):
        total = total + np.sum(np.cos(x) ** power * y) / power
    return total


def penalty(model: Any, x: Any) -> Any:
    gradient = nablad.grad(np.sum(model(x) ** 2), x)
    return np.mean((np.sqrt(np.sum(gradient**2, axis=1)) - 1.0) ** 2)


def leaf(model: Any, x: Any) -> Any:
    weight = model.params["layer_1.weight"]
    return np.sum(nablad.grad(np.sum(model(x) ** 2), weight) ** 2) + 0.1 * np.sum(weight**2)


FUNCTIONS: dict[str, tuple[Callable[..., Any], str, list[str]]] = {
    # function, the same as text, what to differentiate
    "jacobian": (
        jacobian_penalty,
        "p = model(x)\nsum((p - y)**2) + norm(0.01 * jacobian(p, x))**2",
        ["params", "x", "y"],
    ),
    "burgers": (
        burgers,
        "def residual(t, x):\n"
        "    u = field(stack([t, x]))[0]\n"
        "    return d(u, t) + u * d(u, x) - nu * d(u, x, x)\n"
        "mean(vmap(residual)(points[:, 0], points[:, 1])**2)",
        ["params", "nu"],
    ),
    "constants": (
        constants,
        "target = stack([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])\n"
        "sum(stack([[1.0], [1.5], [2.0]]) * (model(x) - target)**2) / sqrt(2.0)",
        ["params", "x"],
    ),
    "loops": (loops, "sum(cos(x) * y) + sum(cos(x)**2 * y) / 2 + sum(cos(x)**3 * y) / 3", ["x", "y"]),
    "penalty": (
        penalty,
        "g = grad(sum(model(x)**2), x)\nmean((sqrt(sum(g**2, axis=1)) - 1)**2)",
        ["params", "x"],
    ),
    "leaf": (
        leaf,
        'sum(grad(sum(model(x)**2), model.params["layer_1.weight"])**2)'
        ' + 0.1 * sum(model.params["layer_1.weight"]**2)',
        ["params", "model.params[layer_1.weight]", "x"],
    ),
}
INPUTS: dict[str, Any] = {"x": X, "y": np.cos(X), "points": X, "nu": 0.02}


def flat(gradient: Any) -> dict[str, Any]:
    return gradient if isinstance(gradient, dict) else {"": gradient}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_the_numbers_of_its_text(any_client: nablad.Client, name: str, dtype: str) -> None:
    function, text, wrt = FUNCTIONS[name]
    names = list(inspect.signature(function).parameters)
    asked: dict[str, Any] = {
        "inputs": {
            key: value.astype(dtype) if isinstance(value, np.ndarray) else value
            for key, value in INPUTS.items()
            if key in names
        },
        "models": {key: hosted for key, hosted in (("model", "net"), ("field", "field")) if key in names},
        "wrt": wrt,
    }
    found, same = (any_client.gradient(loss, **asked) for loss in (function, text))
    assert found.plan.dtype == same.plan.dtype == dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert found.value == pytest.approx(same.value, rel=tolerance)
    for key in wrt:
        for one, other in zip(
            flat(found.gradients[key]).values(), flat(same.gradients[key]).values(), strict=True
        ):
            assert one.dtype == other.dtype == dtype
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


def test_names_of_a_function_can_be_terms_and_outputs(client: nablad.Client) -> None:
    result = client.gradient(
        jacobian_penalty,
        inputs={"x": X, "y": np.cos(X)},
        model="net",
        terms=["data", "smooth"],
        outputs=["prediction", "slope"],
    )
    assert result.terms["data"] + result.terms["smooth"] == pytest.approx(result.value, rel=1e-14)
    assert result.outputs["slope"].shape == (3, 2, 3, 2)
    expected = np.sum((result.outputs["prediction"] - np.cos(X)) ** 2)
    assert result.terms["data"] == pytest.approx(expected, rel=1e-14)


def test_a_constant_of_numpy_does_not_widen_the_type(client: nablad.Client) -> None:
    result = client.gradient(constants, inputs={"x": X.tolist()}, model="net", wrt=["x"])
    assert result.gradients["x"].dtype == np.float32


def test_a_function_evaluates_too(client: nablad.Client) -> None:
    found = client.evaluate(
        lambda model, x: nablad.batched_jacobian(model(x), x), inputs={"x": X}, model="net"
    )
    assert found.result.shape == (3, 2, 2)


@pytest.mark.parametrize("name", ["jacobian", "penalty"])
def test_a_function_passes_the_check_against_differences(client: nablad.Client, name: str) -> None:
    function, _, wrt = FUNCTIONS[name]
    names = list(inspect.signature(function).parameters)
    result = client.check(
        function,
        inputs={key: value for key, value in INPUTS.items() if key in names},
        models={key: hosted for key, hosted in (("model", "net"), ("field", "field")) if key in names},
        wrt=wrt,
    )
    assert set(result.arguments) == set(wrt)
    assert result.worst < 1e-8


def test_a_mistake_in_a_function_shows_the_text_it_became(client: nablad.Client) -> None:
    with pytest.raises(nablad.ProgramError) as caught:
        client.evaluate(lambda x, y: np.sum(x @ y), inputs={"x": X, "y": X})
    assert caught.value.code == "shape_mismatch"
    assert caught.value.where is not None
    assert caught.value.where.text == "x @ y"
