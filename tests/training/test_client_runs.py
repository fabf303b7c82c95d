"""A run from the client's side: reports, broken connections, restarts, early ends, and what it leaves."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np
import pytest

import nablad
from nablad.command_line import train
from nablad.problems import Problem, Refusal
from nablad.training import progress
from nablad.training.events import Event, EventLines
from nablad.training.history import History
from nablad.training.messages import Report

matplotlib.use("Agg")

ASKED: dict[str, Any] = {
    "model": "net",
    "optimiser": {"name": "adam", "learning_rate": 1e-3},
    "steps": 300,
}
STARTED = ("started", {"name": "run", "step": 0})
ENDS = {
    (0, None): ", before the first was done; begin it again",
    (9, None): "; it cannot be resumed, since the server keeps no saves",
    (9, 9): "; go on with --resume",
}


def report(step: int, value: float = 0.5) -> tuple[str, dict[str, Any]]:
    norms: dict[str, Any] = {"norms": {"model.params": 1.0}, "weights": {}, "terms": {"fit": value / 2}}
    rates = {"learning_rate": 1e-3, "steps_per_second": 100.0, "seconds": step / 100}
    return "report", {"step": step, "value": value, **norms, **rates}


def end(kind: str, step: int, checkpoint: int | None = None) -> tuple[str, dict[str, Any]]:
    said = {"reason": f"{kind} at step {step}", "checkpoint": checkpoint, "seconds": 3.0, "value": 0.5}
    return kind, {"name": "run", "step": step, **said}


class Lines(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Events as they travel, and then, where told to, a broken connection."""

    def __init__(self, first: int, events: list[Any]) -> None:
        self.first = first
        self.events = events

    def __iter__(self) -> Iterator[bytes]:
        for number, event in enumerate(self.events, self.first):
            if event is None:
                raise httpx.ReadError("the connection broke")
            kind, data = event
            yield f": still here\nevent: {kind}\nid: {number}\ndata: {json.dumps(data)}\n\n".encode()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


class PretendedRuns:
    """Answers each request for events with the next script; None in a script breaks the connection."""

    def __init__(self, *scripts: list[Any] | Refusal) -> None:
        self.scripts = list(scripts)
        self.asked: list[tuple[str, str, str | None]] = []
        self.bodies: list[dict[str, Any]] = []
        self.stopped = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/stop"):
            self.stopped += 1
            return httpx.Response(200, json=end("stopped", 100, 100)[1])
        if request.url.path.endswith("/params"):
            trained = {"step": 300, "params": {"model": {"w": [1.0]}}, "state": {"model": {}}}
            return httpx.Response(200, json={**trained, "trained": {"c": 0.5}})
        last = request.headers.get("last-event-id")
        self.asked.append((request.method, request.url.path, last))
        if request.method == "POST":
            self.bodies.append(json.loads(b"".join(request.stream)))  # type: ignore[arg-type]
        script = self.scripts.pop(0)
        if isinstance(script, Refusal):
            problem = Problem.of(script)
            return httpx.Response(problem.status, content=problem.json_bytes())
        return httpx.Response(200, stream=Lines(int(last or 0) + 1, script))

    def client(self) -> nablad.Client:
        return nablad.Client(format="json", transport=httpx.MockTransport(self))


def test_reports_come_one_by_one_and_stay_in_the_history() -> None:
    server = PretendedRuns([STARTED, report(100, 0.4), report(200, 0.3), end("done", 200)])
    with server.client() as client:
        run = client.train("mean(model(x)**2)", inputs={"x": np.ones(3)}, terms=["fit"], **ASKED)
        assert run.name == "run"
        assert [one.step for one in run] == [100, 200]
        assert run.history.value == [0.4, 0.3]
        assert run.history.terms == {"fit": [0.2, 0.15]}
        assert run.ended is not None
        assert run.ended.reason == "done at step 200"
        assert repr(run) == "<Run 'run', done: <History of 2 reports: step 200, value 0.3>>"
        assert run.params().trained["c"] == 0.5
    assert server.stopped == 0
    (body,) = server.bodies
    assert body["steps"] == 300
    assert body["optimiser"] == {"name": "adam", "learning_rate": 1e-3}
    assert "balance" not in body


def test_a_broken_connection_is_opened_again_behind_the_last_event() -> None:
    server = PretendedRuns([STARTED, report(100), None], [report(200), None], [end("done", 200)])
    with server.client() as client:
        history = client.train("1.0", **ASKED).wait()
    assert history.step == [100, 200]
    assert server.asked == [
        ("POST", "/v1/train", None),
        ("GET", "/v1/train/run/events", "2"),
        ("GET", "/v1/train/run/events", "3"),
    ]


def test_a_server_that_was_started_again_goes_on_from_the_last_save() -> None:
    gone = Refusal("unknown_run", "there is no run 'run'")
    before = [STARTED, report(100, 0.5), ("checkpoint", {"step": 100}), report(200, 0.4), None]
    after = [("started", {"name": "run", "step": 100}), report(200, 0.4), report(300, 0.3), end("done", 300)]
    server = PretendedRuns(before, gone, after)
    with server.client() as client:
        history = client.train("1.0", checkpoint_every=100, **ASKED).wait()
    assert history.step == [100, 200, 300]
    assert history.terms["fit"] == [0.25, 0.2, 0.15]
    assert (server.bodies[1]["resume"], server.bodies[1]["name"]) == (True, "run")


def test_a_run_without_a_save_is_lost_with_its_server() -> None:
    gone = Refusal("unknown_run", "there is no run 'run'")
    server = PretendedRuns([STARTED, report(100), None], gone)
    with server.client() as client, pytest.raises(nablad.NotFound, match="no run"):
        client.train("1.0", **ASKED).wait()


def test_leaving_the_loop_early_stops_the_run() -> None:
    server = PretendedRuns([STARTED, report(100), report(200), end("done", 200)])
    with server.client() as client:
        run = client.train("1.0", **ASKED)
        for _ in run:
            break
        assert server.stopped == 1
        assert run.ended is not None
        assert run.ended.checkpoint == 100
        assert list(run) == []


def test_a_run_that_was_stopped_is_said_to_go_on_only_where_it_can() -> None:
    with PretendedRuns(*([STARTED, end("stopped", step, saved)] for step, saved in ENDS)).client() as client:
        for step, saved in ENDS:
            run = client.train("1.0", **ASKED)
            run.wait()
            assert train._left(run, "--resume") == f"stopped at step {step}{ENDS[step, saved]}"


@pytest.mark.parametrize("stops", [True, False])
def test_the_with_of_a_run_stops_it_unless_it_keeps_going(stops: bool) -> None:
    server = PretendedRuns([STARTED, report(100)])
    with server.client() as client, client.train("1.0", keep_going=not stops, **ASKED):
        pass
    assert server.stopped == stops


def test_a_run_is_followed_by_its_name_and_not_stopped() -> None:
    server = PretendedRuns([STARTED, report(100), report(200)])
    with server.client() as client:
        for one in client.follow("run"):
            assert one.step == 100
            break
    assert server.stopped == 0
    assert server.asked == [("GET", "/v1/train/run/events", None)]


def test_an_optimiser_is_more_than_its_name() -> None:
    with PretendedRuns().client() as client:
        for begin in (client.session, partial(client.train, "1.0", steps=3)):
            with pytest.raises(ValueError, match=r"a name with its settings, .*, not 'adam'"):
                begin(model="net", optimiser="adam")


def test_what_a_sampler_lacks_the_server_tells() -> None:
    server = PretendedRuns(Refusal("invalid_request", "the request lacks its member 'samplers.x.n'"))
    box = {"distribution": "uniform"}
    with server.client() as client, pytest.raises(nablad.RequestError, match=r"samplers\.x\.n"):
        client.train(lambda model, x: np.mean(model(x)), samplers={"x": box}, **ASKED)


def test_a_refusal_is_raised_before_anything_is_read() -> None:
    server = PretendedRuns(Refusal("invalid_request", "steps must be positive"))
    with server.client() as client, pytest.raises(nablad.RequestError, match="steps must be positive"):
        client.train("1.0", **ASKED)


def test_a_loop_that_diverges_raises_and_keeps_its_history() -> None:
    server = PretendedRuns([STARTED, report(100), end("diverged", 150, 100)])
    with server.client() as client:
        run = client.train("1.0", **ASKED)
        with pytest.raises(nablad.Diverged, match="diverged at step 150") as caught:
            run.wait()
        assert (caught.value.step, caught.value.checkpoint) == (150, 100)
        assert run.history.step == [100]


def test_a_loop_that_fails_raises_its_problem() -> None:
    problem = Problem.of(Refusal("out_of_memory", "the device ran out of memory")).model_dump()
    server = PretendedRuns([STARTED, ("failed", problem)])
    with server.client() as client, pytest.raises(nablad.Unavailable, match="ran out of memory"):
        client.train("1.0", **ASKED).wait()


def test_a_python_function_may_use_what_the_server_draws() -> None:
    server = PretendedRuns([STARTED, end("done", 1)], [STARTED, end("done", 1)])
    x = np.ones((10, 3), "float32")

    def inside(model: Any, t: Any, x: Any) -> Any:
        return np.mean((model(np.stack([t, x], axis=1)) - t[:, None]) ** 2)

    def fitted(model: Any, x: Any) -> Any:
        return np.mean(model(x) ** 2)

    box = {"distribution": "uniform", "low": [0, -1], "high": [1, 1], "n": 16, "names": ["t", "x"]}
    batches = {"distribution": "batches", "data": {"x": x}, "n": 2}
    with server.client() as client:
        client.train(inside, samplers={"points": box}, **ASKED).wait()
        client.train(fitted, samplers={"examples": batches}, **ASKED).wait()
    assert "model(" in server.bodies[0]["loss"]
    assert server.bodies[0]["samplers"] == {"points": box}
    assert server.bodies[1]["samplers"]["examples"]["data"]["x"]["shape"] == [10, 3]


def test_phases_travel_and_count_for_the_bar() -> None:
    server = PretendedRuns([STARTED, end("done", 1)])
    phases = [{"optimiser": {"name": "adam", "learning_rate": 1e-3}, "steps": 20}]
    phases.append({"optimiser": {"name": "lbfgs"}, "steps": 5, "dtype": "float64"})
    with server.client() as client:
        run = client.train("1.0", model="net", phases=phases)
        assert run.total == 25
        run.wait()
    assert server.bodies[0]["phases"] == phases


# -- awaited


def test_runs_are_awaited_too() -> None:
    server = PretendedRuns(
        [STARTED, report(100), None],
        [report(200), end("done", 200)],
        [STARTED, report(100), report(200)],
        [STARTED, report(100)],
    )

    async def ask() -> None:
        async with nablad.AsyncClient(format="json", transport=httpx.MockTransport(server)) as client:
            run = client.train("1.0", **ASKED)
            assert [one.step async for one in run] == [100, 200]
            assert repr(run).startswith("<AsyncRun 'run', done")
            assert (await run.params()).params["w"] == [1.0]
            assert server.stopped == 0
            async with client.train("1.0", **ASKED) as left:
                async for _ in left:
                    break
            assert server.stopped == 1
            run = await client.train("1.0", **ASKED)
            assert run.name == "run"
            assert (await run.stop()).step == 100
            await run.aclose()

    asyncio.run(ask())


# -- what is left


def history() -> History:
    found = History()
    for step in (1, 2, 3):
        found.add(Report.model_validate(report(step, 1 / step)[1]))
    return found


def test_a_history_is_drawn_and_saved(tmp_path: Path) -> None:
    axes = history().plot()
    assert axes.get_yscale() == "log"
    assert [line.get_label() for line in axes.lines] == ["loss", "fit"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, 1 / 2, 1 / 3])
    history().write_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [float(row["terms.fit"]) for row in rows] == [1 / 2, 1 / 4, 1 / 6]


def test_drawing_without_matplotlib_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        history().plot()


def test_the_bar_is_for_terminals_with_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Report.model_validate(report(100, 0.25)[1])
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stderr", elsewhere)
    with progress.bar(300) as show:
        show(shown)
    assert elsewhere.getvalue() == ""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with progress.bar(300) as show:
            show(shown)
        seen = b""
        while b"100/300" not in seen or b"loss 0.25" not in seen:
            seen += screen.read(65536)
        monkeypatch.setitem(sys.modules, "rich.progress", None)
        assert not progress.drawable()


def test_events_are_read_as_the_standard_has_them() -> None:
    lines = EventLines()
    text = [": a comment", "event:report", "id: 7", 'data: {"a":', "data: 1}", "", "", "data: {}", ""]
    found = [event for line in text if (event := lines.take(line))]
    assert found == [Event("report", {"a": 1}, "7"), Event("message", {}, "7")]
