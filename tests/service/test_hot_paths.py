"""Calls of hot paths are answered before the application's layers, as those would answer them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.responses import Response

from nablad import messages
from nablad.compression import available
from nablad.problems import Refusal
from nablad_service import app as application
from nablad_service.answers.timing import Timing
from nablad_service.app import Application, create_app
from nablad_service.settings import Settings

ASKED = {"loss": "sum(x**2)", "inputs": {"x": [1.0, 2.0]}, "wrt": ["x"]}
GRADIENT = "/v1/gradient"


def inside(
    scenario: Callable[[Application, httpx.AsyncClient], Coroutine[Any, Any, None]],
    app: Application | None = None,
) -> None:
    """Run a scenario in an application that is alive."""

    async def run() -> None:
        served = app or create_app(Settings(tune_after_calls=0))
        transport = httpx.ASGITransport(served)
        async with (
            served.router.lifespan_context(served),
            httpx.AsyncClient(transport=transport, base_url="http://nablad", timeout=60) as client,
        ):
            await scenario(served, client)

    asyncio.run(run())


def passed(app: Application) -> list[str]:
    """The paths of requests that come to FastAPI from now on."""
    paths: list[str] = []
    behind = app.middleware_stack or app.build_middleware_stack()

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await behind(scope, receive, send)

    app.middleware_stack = noting
    return paths


def counted(text: str, path: str, status: int) -> float:
    line = f'nablad_requests_total{{endpoint="{path}",status="{status}"}} '
    return sum(float(found.removeprefix(line)) for found in text.splitlines() if found.startswith(line))


def test_only_calls_that_need_a_layer_come_to_the_application() -> None:
    async def scenario(app: Application, client: httpx.AsyncClient) -> None:
        paths = passed(app)
        data = json.dumps(ASKED).encode()
        typed = {"content-type": "application/json", "accept-encoding": "identity"}

        async def pieces() -> Any:
            yield data

        plain = await client.post(GRADIENT, content=data, headers=typed)
        assert not paths
        ways: list[tuple[Any, dict[str, str]]] = [(pieces(), {})]
        if available():
            ways.append((data, {"accept-encoding": "zstd"}))
        for content, headers in ways:
            layered = await client.post(GRADIENT, content=content, headers=typed | headers)
            for answer in (plain, layered):
                assert (answer.json()["value"], answer.json()["gradients"]) == (5.0, {"x": [2.0, 4.0]})
        assert paths == [GRADIENT] * len(ways)
        assert (await client.get(GRADIENT)).status_code == 405
        text = (await client.get("/metrics")).text
        assert counted(text, GRADIENT, 200) == 1 + len(ways)

    inside(scenario)


def test_what_goes_wrong_is_answered_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(request: Request) -> Response:
        raise Refusal("limit", "too much")

    async def broken(request: Request) -> Response:
        raise RuntimeError("not for callers")

    monkeypatch.setattr(application, "HOT", {GRADIENT: refused, "/v1/evaluate": broken})

    async def scenario(app: Application, client: httpx.AsyncClient) -> None:
        paths = passed(app)
        first, second = await client.post(GRADIENT, json={}), await client.post("/v1/evaluate", json={})
        assert not paths
        assert (first.status_code, first.json()["code"]) == (422, "limit")
        assert (second.status_code, second.json()["code"]) == (500, "internal")
        assert second.headers["content-type"] == "application/problem+json"
        assert "not for callers" not in second.text
        text = (await client.get("/metrics")).text
        assert counted(text, GRADIENT, 422) == 1
        assert counted(text, "/v1/evaluate", 500) == 1
        assert 'nablad_refusals_total{code="limit"} 1.0' in text

    inside(scenario)


def refusing(app: Any) -> Any:
    async def refused(scope: Any, receive: Any, send: Any) -> None:
        await (Response(status_code=401) if scope["type"] == "http" else app)(scope, receive, send)

    return refused


@pytest.mark.parametrize("by", ["middleware", "instrumentation", "telemetry"])
def test_an_application_that_is_observed_leads_every_call_through(
    monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    app = create_app(Settings(tune_after_calls=0))
    if by == "middleware":
        app.add_middleware(refusing)
    elif by == "instrumentation":
        build = app.build_middleware_stack
        monkeypatch.setattr(app, "build_middleware_stack", lambda: refusing(build()), raising=False)
    else:
        telemetry = SimpleNamespace(enabled=lambda: True)
        monkeypatch.setattr(app, "_native_telemetry", telemetry, raising=False)

    async def scenario(app: Application, client: httpx.AsyncClient) -> None:
        if by == "telemetry":
            assert app.hot is None
        else:
            assert (await client.post(GRADIENT, json=ASKED)).status_code == 401

    inside(scenario, app)


def test_an_application_that_is_observed_sees_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(tune_after_calls=0))
    monkeypatch.setattr(app, "observed", lambda: True)

    async def scenario(app: Application, client: httpx.AsyncClient) -> None:
        paths = passed(app)
        assert (await client.post(GRADIENT, json=ASKED)).json()["value"] == 5.0
        assert paths == [GRADIENT]

    inside(scenario, app)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("none", "unknown_session"),
        ("{name}", "unknown_session"),
        ("", "unknown_path"),
        ("a/b", "unknown_path"),
    ],
)
def test_only_one_part_of_a_path_is_a_name(name: str, code: str) -> None:
    async def scenario(app: Application, client: httpx.AsyncClient) -> None:
        answer = await client.post(f"/v1/sessions/{name}/gradient", json={"sequence": 1, "loss": "1.0"})
        assert (answer.status_code, answer.json()["code"]) == (404, code)

    inside(scenario)


def test_timing_is_what_callers_are_promised() -> None:
    promised = {name: field.default for name, field in messages.Timing.model_fields.items()}
    assert dataclasses.asdict(Timing()) == promised
    assert Timing(1.25, 2.0, 3.0, 4.0, 0.5).header() == (
        "decode;dur=1.250, queue;dur=2.000, compile;dur=3.000, device;dur=4.000, encode;dur=0.500"
    )
