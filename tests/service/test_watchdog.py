"""Compilations and runs that do not end: refused, left behind, and told to whoever asks for health."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from local_server import local_server

import nablad
from nablad.messages import EvaluateRequest
from nablad.problems import Refusal
from nablad_service.planning import programs
from nablad_service.planning.learned_plans import LearnedPlans
from nablad_service.query import Query
from nablad_service.requests.validation import evaluate_query
from nablad_service.running import giving_way
from nablad_service.running.collecting import FEW
from nablad_service.running.giving_way import BEHIND, EAGER, GIVING_WAY, PAUSE, STINT
from nablad_service.running.watched_threads import Overrun, Stuck, WatchedThreads

# Each waits for as long as its file is there: at tracing, at lowering (a part of compiling), at running.
FUNCTIONS = """
import time
from pathlib import Path
import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

FOLDER = Path({folder!r})

def wait(name):
    while (FOLDER / name).exists():
        time.sleep(0.01)

def traced(x):
    wait("tracing")
    return x

lowered = Primitive("lowered")
lowered.def_abstract_eval(lambda x: x)

def lowering(context, x):
    wait("compiling")
    return [x]

mlir.register_lowering(lowered, lowering)

def ran(x):
    def body(x):
        wait("running")
        return x
    return jax.pure_callback(body, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

def compiled(x):
    return lowered.bind(x)

FUNCTIONS = {{"at_tracing": traced, "at_compiling": compiled, "at_running": ran}}
"""
X = np.ones(3)
FORM = {"dtype": "float64", "data": [1.0, 1.0, 1.0]}


class Held:
    """A server whose functions can be held, and let go."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.client = nablad.Client(url)

    def hold(self, *stages: str) -> None:
        for stage in stages:
            (self.folder / stage).touch()

    def release(self) -> None:
        for file in self.folder.iterdir():
            file.unlink()

    def refused(self, program: str) -> str:
        with pytest.raises(nablad.NabladError) as refused:
            self.client.evaluate(program, inputs={"x": X})
        assert isinstance(refused.value, nablad.ServiceError)
        return refused.value.code

    def works(self, program: str = "x + 1") -> bool:
        return bool(np.array_equal(self.client.evaluate(program, inputs={"x": X}).result, X + 1))

    def health(self, what: str) -> httpx.Response:
        return httpx.get(f"{self.url}/health/{what}")

    def until(self, true: Callable[[], bool]) -> None:
        ends = time.monotonic() + 60
        while not true():
            assert time.monotonic() < ends


@contextmanager
def held_server(folder: Path, *options: str) -> Iterator[Held]:
    gates = folder / "gates"
    gates.mkdir()
    file = folder / "functions.py"
    file.write_text(FUNCTIONS.format(folder=str(gates)))
    with local_server("--models", str(file), *options) as url:
        held = Held(url, gates)
        try:
            yield held
        finally:
            held.release()
            held.client.close()


@pytest.mark.parametrize("stage", ["tracing", "compiling"])
def test_a_program_that_does_not_compile_is_refused_and_the_others_are_served(
    tmp_path: Path, stage: str
) -> None:
    with held_server(tmp_path, "--compile-seconds", "4") as held:
        assert held.works()
        held.hold(stage)
        program = f"at_{stage}(x) + 1"
        with ThreadPoolExecutor(3) as callers:  # all who wait for it are told
            assert set(callers.map(held.refused, [program] * 3)) == {"too_slow"}
        assert held.refused(program) == "too_slow"
        assert held.works("1 + x")
        assert held.works("x + 2 - 1")
        assert held.health("ready").status_code == 200
        held.release()
        # It ends after all: what was compiled is kept, what was only traced is refused a while longer.
        answers: list[httpx.Response] = []
        held.until(lambda: _answers(held, program, answers))
        assert answers[-1].json()["timing"]["compiled"] is (stage == "tracing")


def _answers(held: Held, program: str, answers: list[httpx.Response]) -> bool:
    answer = httpx.post(f"{held.url}/v1/evaluate", json={"program": program, "inputs": {"x": FORM}})
    assert answer.status_code == 200 or answer.json()["code"] == "too_slow"
    answers.append(answer)
    return answer.status_code == 200


def test_a_run_that_does_not_end_is_told_to_all_who_wait_and_to_the_orchestrator(tmp_path: Path) -> None:
    with held_server(tmp_path, "--run-seconds", "2") as held:
        assert held.works("at_running(x) + 1")
        held.hold("running")
        with ThreadPoolExecutor(4) as callers:
            running = callers.submit(held.refused, "at_running(x) + 1")
            held.until(lambda: held.health("ready").json().get("queue") == 1)
            waiting: list[Future[str]] = [callers.submit(held.refused, "1 + x") for _ in range(3)]
            assert running.result() == "too_slow"
            assert [one.result() for one in waiting] == ["stuck"] * 3
        assert held.refused("1 + x") == "stuck"
        ready = held.health("ready")
        assert ready.status_code == 503
        assert "device" in ready.json()["reason"]
        held.until(lambda: held.health("live").status_code == 503)
        held.release()
        # Where the run ends after all, the server goes on.
        held.until(lambda: held.health("ready").status_code == 200)
        assert held.health("live").status_code == 200
        assert held.works("1 + x")


def test_no_program_is_begun_when_all_spare_threads_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SPARE", 1)
    gate = threading.Event()

    def compiled(traced: object) -> object:
        gate.wait(60)
        return traced

    engine = SimpleNamespace(trace=lambda query, choices: query.signature.text, compile=compiled)

    def query(text: str) -> Query:
        return evaluate_query(EvaluateRequest(program=text), lambda name: pytest.fail(name))

    async def ask() -> tuple[list[str], float, object]:
        kept = programs.Programs(engine, LearnedPlans(None, "test"), limit=4, threads=1, seconds=2)  # type: ignore[arg-type]

        async def code(text: str) -> str:
            try:
                return str(await kept.executable(query(text)))
            except Refusal as refusal:
                return refusal.code

        try:
            codes = [await code(text) for text in ("1", "1", "2", "3", "1")]
            stuck = kept.stuck_for()
            gate.set()
            while kept.stuck_for():
                await asyncio.sleep(0)
            ready, _ = await kept.executable(query("3"))
            return codes, stuck, ready
        finally:
            kept.close()

    codes, stuck, ready = asyncio.run(ask())
    assert codes == ["too_slow", "too_slow", "too_slow", "stuck", "too_slow"]
    assert stuck > 0
    assert ready == "3"


def test_threads_are_replaced_while_there_are_spare_ones() -> None:
    gate = threading.Event()
    threads = WatchedThreads("test", 1, 1, spare=1)
    lost = [threads.submit(lambda: gate.wait(60) and 2) for _ in range(2)]
    behind = threads.submit(lambda: "never begun")
    overruns = [future.exception(timeout=60) for future in lost]
    assert all(isinstance(one, Overrun) for one in overruns)
    assert isinstance(behind.exception(timeout=60), Stuck)
    assert isinstance(threads.submit(lambda: 3).exception(timeout=60), Stuck)
    assert threads.stuck_for() > 0
    gate.set()
    for one in overruns:
        assert isinstance(one, Overrun)
        assert one.ended.result(timeout=60) == 2
    assert threads.submit(lambda: 4).result(timeout=60) == 4
    assert threads.stuck_for() == 0
    threads.close()
    assert threads.submit(lambda: 5).cancelled()


def test_work_without_a_limit_is_never_left_behind() -> None:
    threads = WatchedThreads("test", 2, 0)
    assert [one.result(timeout=60) for one in [threads.submit(lambda: 1), threads.submit(lambda: 2)]] == [
        1,
        2,
    ]
    threads.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_threads_that_compile_stand_behind_others() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    behind, device = WatchedThreads("test", 1, 0, behind=True), WatchedThreads("test", 1, 0)
    try:
        own = priority()
        assert behind.submit(priority).result(10) == min(own + BEHIND, 19)
        assert behind.submit(priority).result(10) == min(own + BEHIND, 19), "no further with each work"
        assert device.submit(priority).result(10) == own
    finally:
        behind.close()
        device.close()


def test_python_changes_threads_more_often_while_a_program_is_compiled() -> None:
    usual = sys.getswitchinterval()
    behind, device = WatchedThreads("test", 2, 0, behind=True), WatchedThreads("test", 1, 0)
    both = threading.Barrier(2)

    def work() -> float:
        both.wait(10)
        found = sys.getswitchinterval()
        both.wait(10)
        return found

    try:
        assert device.submit(sys.getswitchinterval).result(10) == usual
        found = [one.result(10) for one in [behind.submit(work), behind.submit(work)]]
        assert found == pytest.approx([EAGER, EAGER])
        assert sys.getswitchinterval() == usual
    finally:
        behind.close()
        device.close()


class Clock:
    """Stands for `time`: ten times faster than a stint at each look, and asleep for no time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        self.now += STINT / 10
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.mark.parametrize("requests", [True, False])
def test_threads_behind_pause_while_requests_come_in(monkeypatch: pytest.MonkeyPatch, requests: bool) -> None:
    thresholds = gc.get_threshold()
    clock = Clock()
    monkeypatch.setattr(giving_way, "time", clock)
    monkeypatch.setattr(giving_way, "LATELY", math.inf if requests else 0.0)

    def work() -> None:
        looks = clock.now
        while clock.now < looks + 50 * STINT:  # where another thread collects just then, nothing is told
            makes_objects()

    with closing(WatchedThreads("test", 1, 0, behind=True)) as behind:
        GIVING_WAY.called()
        all_done([behind.submit(work)])
        assert gc.get_threshold() == thresholds
    assert set(clock.pauses) == ({PAUSE} if requests else set())
    assert len(clock.pauses) <= 50, "no more often than after each stint"


def makes_objects() -> list[set[int]]:
    return [{number} for number in range(2 * FEW)]  # of lists Python keeps some for the next


def all_done(works: Iterable[Future[None]]) -> None:
    for one in list(works):  # all of them are begun first
        one.result(60)


def pauses_for(seconds: float) -> None:
    own = threading.get_ident()
    already = GIVING_WAY.paused(own)
    while GIVING_WAY.paused(own) < already + seconds:
        makes_objects()


def test_of_threads_behind_one_begins_after_the_other_while_requests_come_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(giving_way, "LATELY", math.inf)
    monkeypatch.setattr(giving_way, "PATIENCE", 60.0)
    working: list[int] = []
    most, end = 0, threading.Event()

    def work() -> None:
        nonlocal most
        working.append(1)
        most = max(most, len(working))
        pauses_for(5 * PAUSE)
        working.pop()

    with closing(WatchedThreads("test", 4, 0, behind=True)) as behind:
        idle = behind.submit(lambda: end.wait(60))  # in XLA, say: it wants no Python
        all_done(behind.submit(work) for _ in range(3))
        assert most == 1
        end.set()
        assert idle.result(60)


def test_threads_behind_wait_for_each_other_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_way, "LATELY", math.inf)
    monkeypatch.setattr(giving_way, "PATIENCE", 0.05)
    began = [threading.Event(), threading.Event()]

    def work(one: int) -> None:
        began[one].set()
        while not began[1 - one].is_set():
            pauses_for(PAUSE)

    with closing(WatchedThreads("test", 2, 0, behind=True)) as behind:
        all_done(behind.submit(partial(work, one)) for one in range(2))


def test_pauses_do_not_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving_way, "LATELY", math.inf)
    monkeypatch.setattr(giving_way, "PAUSE", 1.0)
    end = threading.Event()
    with closing(WatchedThreads("test", 2, 2.0, behind=True)) as behind:
        all_done(behind.submit(partial(pauses_for, 3.0)) for _ in range(2))
        with pytest.raises(Overrun) as overrun:
            behind.submit(lambda: end.wait(60)).result(60)
        end.set()
    assert overrun.value.ended.result(60)
    assert not GIVING_WAY.needed
