"""A call that is alone, of a program that takes no time, is computed where it was read."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from served import served

import nablad
from nablad import wire
from nablad.arrays import encode_array
from nablad_service import pipeline
from nablad_service.app import create_app
from nablad_service.engine.executable import LATELY, Pace
from nablad_service.requests.reading import Body
from nablad_service.running.scheduler import Scheduler
from nablad_service.settings import Settings
from nablad_service.sockets.receiving import OPEN, is_alone

X = np.random.default_rng(0).standard_normal((4, 3))


def test_work_is_done_here_only_where_the_device_is_free() -> None:
    scheduler = Scheduler(4)
    held, begun = threading.Event(), threading.Event()

    def occupy() -> int:
        begun.set()
        held.wait(10)
        return threading.get_ident()

    async def calls() -> None:
        here = scheduler.run_here(threading.get_ident)
        assert here is not None
        assert (here.result, here.waited, here.together) == (threading.get_ident(), 0.0, 1)
        other = asyncio.create_task(scheduler.run(occupy))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert scheduler.run_here(threading.get_ident) is None
        held.set()
        assert (await other).result != threading.get_ident()
        assert scheduler.run_here(threading.get_ident) is not None

    try:
        asyncio.run(calls())
        assert scheduler.statistics().finished == 3
    finally:
        held.set()
        scheduler.close()


def test_a_program_is_short_when_its_last_runs_were() -> None:
    pace = Pace()
    for _ in range(LATELY - 1):
        pace.note(1e-4)
        assert not pace.under(1e-3)
    pace.note(1e-4)
    assert pace.under(1e-3)
    for _ in range(3 * LATELY):
        pace.note(2e-3)
    assert not pace.under(1e-3)


@pytest.mark.parametrize(("requests", "alone"), [({1}, True), ({1, 2}, False), (None, False)])
def test_a_request_is_alone_where_the_server_says_so(requests: set[int] | None, alone: bool) -> None:
    extensions = None if requests is None else {OPEN: requests}
    assert is_alone({"extensions": extensions}) is alone
    assert is_alone({}) is False


@pytest.mark.parametrize("protocol", ["own", "stock"])
def test_answers_are_the_same_wherever_they_are_computed(protocol: str) -> None:
    with (
        served("--port=0", f"--protocol={protocol}", "--tune-after-calls=0") as server,
        nablad.Client(server.urls[0]) as client,
    ):
        waited = []
        for number in range(4 * LATELY):
            x = X + number
            found = client.gradient("sum(x**2)", inputs={"x": x}, wrt=["x"])
            np.testing.assert_allclose(found.value, np.sum(x**2), rtol=1e-12)
            np.testing.assert_allclose(found.gradients["x"], 2 * x, rtol=1e-12)
            waited.append(found.timing.queue_ms)
        # What a thread computes has waited, however little.
        assert all(waited[: LATELY if protocol == "own" else None])


@pytest.mark.parametrize("alone", [True, False])
def test_a_lone_call_does_not_wait_and_others_do(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SHORT", float("inf"))  # whatever this machine takes
    app = create_app(Settings(tune_after_calls=0))
    asked = {"loss": "sum(x**2)", "inputs": {"x": encode_array(X, "attached")}, "wrt": ["x"]}
    frame = b"".join(wire.encode_body(asked, wire.FRAME))
    body = Body(frame, wire.FRAME, wire.FRAME, "attached", alone=alone)

    async def calls() -> list[float]:
        async with app.router.lifespan_context(app):
            made = [await app.state.pipeline.gradient(body) for _ in range(LATELY + 4)]
            return [one.timing.queue_ms for one in made]

    waited = asyncio.run(calls())
    assert all(waited[:LATELY])
    assert [one == 0.0 for one in waited[LATELY:]] == [alone] * 4
