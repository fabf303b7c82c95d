"""Callers that leave a run, servers that stop under one, and what a stream of events consists of."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from following import ARCHITECTURE, events_of
from served import served

from nablad_service.app import create_app
from nablad_service.settings import Settings
from nablad_service.training import events as told
from nablad_service.training.events import Events

LONG: dict[str, Any] = {
    "loss": "mean((model(x)[:, 0] - x[:, 0])**2)",
    "models": {"model": "net"},
    "inputs": {"x": [[0.1, 0.2], [0.3, 0.4]]},
    "optimiser": {"name": "adam", "learning_rate": 1e-3},
    "steps": 10**8,
    "report_every": 1000,
    "name": "long",
}


@contextmanager
def in_thread(app: FastAPI) -> Iterator[httpx.Client]:
    """HTTP to a server in this process, whose insides a test may touch."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        (port,) = (one.getsockname()[1] for each in server.servers for one in each.sockets)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            http.put("/v1/models/net", json={"architecture": ARCHITECTURE}).raise_for_status()
            yield http
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FastAPI, httpx.Client]]:
    made = create_app(Settings(checkpoints=str(tmp_path_factory.mktemp("saves"))))
    with in_thread(made) as http:
        made.state.runs.patience = 0.05
        yield made, http


def begun(http: httpx.Client, **members: Any) -> None:
    """Begin a run, hear its first report, and leave."""
    with http.stream("POST", "/v1/train", json={**LONG, **members}) as response:
        next(event for event in events_of(response.iter_lines()) if event.kind == "report")


def wait_for_the_end(app: FastAPI, name: str) -> None:
    """Without listening, which would keep it going."""
    run = app.state.runs.get("", name)

    async def ended() -> None:
        await asyncio.shield(run._task)

    asyncio.run_coroutine_threadsafe(ended(), run._task.get_loop()).result(30)


def test_a_run_that_nobody_listens_to_is_saved_and_stopped(app: tuple[FastAPI, httpx.Client]) -> None:
    made, http = app
    begun(http)
    wait_for_the_end(made, "long")
    standing = http.get("/v1/train/long").json()
    assert standing["status"] == "stopped"
    assert standing["reason"].startswith("nobody listens any more")
    assert standing["saved"] == [standing["step"]]


def test_one_that_is_listened_to_again_in_time_goes_on(app: tuple[FastAPI, httpx.Client]) -> None:
    made, http = app
    made.state.runs.patience = 60.0
    begun(http, name="again")
    with http.stream("GET", "/v1/train/again/events") as response:
        made.state.runs.patience = 0.05
        events = events_of(response.iter_lines())
        steps = [next(event for event in events if event.kind == "report").data["step"] for _ in range(5)]
    assert steps == [1, 1000, 2000, 3000, 4000]
    http.delete("/v1/train/again")


def test_one_that_is_to_keep_going_does(app: tuple[FastAPI, httpx.Client]) -> None:
    made, http = app
    begun(http, name="kept", keep_going=True)
    begun(http, name="stopped")
    wait_for_the_end(made, "stopped")  # which was left later
    assert http.get("/v1/train/kept").json()["status"] == "running"
    http.delete("/v1/train/kept")


def test_a_server_that_is_told_to_stop_saves_its_runs_and_ends_their_streams(tmp_path: Path) -> None:
    with (
        served("--port", "0", "--checkpoints", str(tmp_path)) as server,
        httpx.Client(base_url=server.urls[0], timeout=60) as http,
    ):
        http.put("/v1/models/net", json={"architecture": ARCHITECTURE}).raise_for_status()
        with http.stream("POST", "/v1/train", json=LONG) as response:
            events = events_of(response.iter_lines())
            next(event for event in events if event.kind == "report")
            server.process.terminate()
            rest = list(events)
    assert [event.kind for event in rest[-2:]] == ["checkpoint", "stopped"]
    assert rest[-1].data["reason"] == "the server stops"
    assert server.process.wait(10) == 0
    assert list(tmp_path.glob(f"common/long/*-{rest[-1].data['step']}.safetensors"))


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "HEARTBEAT", 0.001)

    async def listen() -> list[bytes]:
        events = Events(1, lambda: None)
        stream = events.stream(0)
        pieces = [await anext(stream) for _ in range(3)]
        events.tell("done", {"step": 1}, last=True)
        return [*pieces, *[piece async for piece in stream if piece != told.ALIVE]]

    retry, *alive, last = asyncio.run(listen())
    assert retry == b"retry: 1000\n\n"
    assert set(alive) == {b": alive\n\n"}
    assert last == b'id: 1\nevent: done\ndata: {"step": 1}\n\n'


def test_a_listener_that_comes_late_hears_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "MOST_KEPT", 3)

    async def listen() -> list[bytes]:
        events = Events(1, lambda: None)
        for number in range(5):
            events.tell("report", {"step": number}, last=number == 4)
        return [piece async for piece in events.stream(0)]

    assert [piece.split(b"\n")[0] for piece in asyncio.run(listen())] == [
        *(b"retry: 1000", b"id: 3", b"id: 4", b"id: 5")
    ]
