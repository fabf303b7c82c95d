"""Calls computed together: who is taken, what each gets, and who goes alone."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import pytest
from ask import ENGINE, MODELS, host, rng
from local_server import local_server

import nablad
from nablad.messages import EvaluateRequest, GradientRequest
from nablad.problems import Refusal
from nablad_service.engine.executable import Executable
from nablad_service.engine.together import Unfit, together
from nablad_service.query import Query
from nablad_service.requests.validation import evaluate_query, gradient_query
from nablad_service.resident import Resident
from nablad_service.running.batches import AGAIN, TRIES, Batched, Batches, BatchLimits, power_of_two
from nablad_service.running.scheduler import Finished, Scheduler

GIBIBYTE = 2**30


# -- the scheduler


class Recorder:
    """A company that takes up to `most`, doubles what it is given, and fails on negative numbers."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.runs: list[list[int]] = []

    def count(self, waiting: Sequence[int]) -> int:
        return min(len(waiting), self.most)

    def run(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.runs.append(list(items))
        return [2 * item if item >= 0 else ValueError(item) for item in items]


class Busy:
    """A scheduler whose device is occupied until it is let go."""

    def __init__(self, limit: int = 100) -> None:
        self.scheduler = Scheduler(limit)
        self.gate = threading.Event()
        self.begun = threading.Event()

    async def occupy(self) -> asyncio.Task[Finished[bool]]:
        def work() -> bool:
            self.begun.set()
            return self.gate.wait(60)

        task = asyncio.create_task(self.scheduler.run(work))
        await asyncio.to_thread(self.begun.wait, 60)
        return task


def in_company(scenario: Callable[[Busy], Any], limit: int = 100) -> Any:
    async def run() -> Any:
        busy = Busy(limit)
        occupied = await busy.occupy()
        try:
            return await scenario(busy)
        finally:
            busy.gate.set()
            await occupied
            busy.scheduler.close()

    return asyncio.run(run())


async def queued(busy: Busy, key: str, items: Sequence[int], company: Recorder) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(busy.scheduler.run_in_company(key, item, company)) for item in items]
    await asyncio.sleep(0)
    return tasks


def test_those_that_wait_are_taken_together_and_those_of_another_kind_apart() -> None:
    async def scenario(busy: Busy) -> None:
        one, other = Recorder(), Recorder()
        tasks = [*await queued(busy, "a", [1, 2], one), *await queued(busy, "b", [3], other)]
        tasks += await queued(busy, "a", [4], one)
        busy.gate.set()
        found = await asyncio.gather(*tasks)
        assert [each.result for each in found] == [2, 4, 6, 8]
        assert [each.together for each in found] == [3, 3, 1, 3]
        assert (one.runs, other.runs) == ([[1, 2, 4]], [[3]])
        assert busy.scheduler.statistics().waiting_or_running == 0

    in_company(scenario)


def test_a_lone_call_waits_for_nobody() -> None:
    async def scenario() -> None:
        scheduler, company = Scheduler(4), Recorder()
        finished = await scheduler.run_in_company("a", 1, company)
        assert (finished.result, finished.together) == (2, 1)
        scheduler.close()

    asyncio.run(scenario())


def test_a_group_too_large_for_one_turn_has_several_and_others_go_between() -> None:
    async def scenario(busy: Busy) -> None:
        order: list[str] = []
        company = Recorder(most=2)
        tasks = await queued(busy, "a", range(5), company)
        other = asyncio.create_task(busy.scheduler.run(lambda: order.append(str(company.runs))))
        await asyncio.sleep(0)
        busy.gate.set()
        await asyncio.gather(*tasks, other)
        assert company.runs == [[0, 1], [2, 3], [4]]
        assert order == ["[[0, 1]]"]

    in_company(scenario)


def test_a_failure_concerns_only_the_call_that_fails() -> None:
    async def scenario(busy: Busy) -> None:
        tasks = await queued(busy, "a", [1, -1, 2], Recorder())
        busy.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [found[0].result, found[2].result] == [2, 4]
        assert isinstance(found[1], ValueError)

    in_company(scenario)


def test_callers_who_gave_up_are_not_computed_and_give_their_place_back() -> None:
    async def scenario(busy: Busy) -> None:
        company = Recorder()
        tasks = await queued(busy, "a", [1, 2, 3], company)
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert busy.scheduler.statistics().waiting_or_running == 3  # the one that runs, and two
        late = asyncio.create_task(
            busy.scheduler.run_in_company("a", 4, company, until=time.perf_counter() - 1.0)
        )
        await asyncio.sleep(0)
        busy.gate.set()
        found = await asyncio.gather(*tasks, late, return_exceptions=True)
        assert company.runs == [[1, 3]]
        assert isinstance(found[1], asyncio.CancelledError)
        assert isinstance(found[3], TimeoutError)
        assert busy.scheduler.statistics().waiting_or_running == 0

    in_company(scenario)


def test_too_many_that_wait_are_refused() -> None:
    async def scenario(busy: Busy) -> None:
        company = Recorder()
        tasks = await queued(busy, "a", [1, 2], company)
        with pytest.raises(Refusal, match="overloaded"):
            await busy.scheduler.run_in_company("a", 3, company)
        busy.gate.set()
        await asyncio.gather(*tasks)

    in_company(scenario, limit=3)


def test_a_group_whose_run_does_not_end_is_told_and_so_are_those_behind_it() -> None:
    gate = threading.Event()

    class Endless(Recorder):
        def run(self, items: Sequence[int]) -> Sequence[int | Exception]:
            gate.wait(60)
            return super().run(items)

    async def scenario() -> list[str]:
        scheduler = Scheduler(100, seconds=1)
        company = Endless(most=2)
        tasks = [asyncio.create_task(scheduler.run_in_company("a", item, company)) for item in range(3)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert scheduler.statistics().waiting_or_running == 0
        gate.set()
        while scheduler.stuck_for():
            await asyncio.sleep(0)
        assert (await scheduler.run_in_company("a", 7, company)).result == 14
        scheduler.close()
        return [one.code for one in found if isinstance(one, Refusal)]

    codes = asyncio.run(scenario())
    assert codes in (["too_slow", "stuck", "stuck"], ["too_slow", "too_slow", "stuck"])


# -- the engine

NET = {"layers": [{"dense": [2, 5], "activation": "tanh"}, {"dense": [5, 2]}]}
NORMED = {"layers": [{"dense": [2, 4]}, {"batchnorm": 4}, {"dense": [4, 2]}]}
PROGRAMS: dict[str, dict[str, Any]] = {
    "plain": {"loss": "sum((model(x) - y)**2)", "wrt": ["params", "x"]},
    "nested": {"loss": "u = model(x)[:, 0]\nmean(laplacian(u, x)**2)", "outputs": ["u"]},
    "random": {"loss": "z = normal(x, seed=3)\nsum(model(x + 0.1 * z)**2)", "outputs": ["z"]},
    "estimated": {"loss": "mean(hutchinson_trace(model(x), x, probes=4)**2)"},
    "until": {
        "loss": "t, s, n = hutchinson(model(x), x, probes=64, until=0.5)\nmean(t**2)",
        "outputs": ["n"],
    },
    "loop": {"loss": "def body(i, c): return c + 0.1 * tanh(c)\nsum(fori(5, body, model(x))**2)"},
    "weighted": {
        "loss": "a = mean((model(x) - y)**2)\nb = mean(model(x)**2)",
        "terms": {"a": 1.0, "b": 0.5},
        "term_gradients": "norms",
    },
    "linear_algebra": {"loss": "a = model(x).T @ model(x) + eye(2)\nslogdet(a)[1] + sum(solve(a, y.T)**2)"},
    "trained": {"loss": "sum((model(x) - y)**2)", "mode": "train", "name": "batch_normed"},
}


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    host("batch_net", NET)
    host("batch_normed", NORMED)


def queries(count: int, *, own: bool = False, **asked: Any) -> list[Query]:
    """Requests of one signature, each with its own data and seed; with their `own` parameters or not."""
    asked = dict(asked)
    name, mode = asked.pop("name", "batch_net"), asked.pop("mode", "eval")
    weights = asked.get("terms")
    found = []
    for number in range(count):
        bound: dict[str, Any] = {"name": name, "mode": mode}
        if own:
            params = MODELS.get(name).params
            bound["params"] = {leaf: array * (1 + 0.1 * number) for leaf, array in params.items()}
        if isinstance(weights, dict):
            asked["terms"] = {term: weight + number for term, weight in weights.items()}
        inputs = {"x": rng(6, 2, seed=number)}
        if "- y" in asked["loss"] or "y.T" in asked["loss"]:
            inputs["y"] = rng(6, 2, seed=100 + number)
        request = GradientRequest(inputs=inputs, models={"model": bound}, seed=number, **asked)
        found.append(gradient_query(request, MODELS.get))
    return found


def compiled(query: Query) -> Executable:
    return ENGINE.compile(ENGINE.trace(query))


def close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("own", [False, True], ids=["resident", "own"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_each_gets_what_it_gets_alone(name: str, own: bool) -> None:
    asked = queries(3, own=own, **PROGRAMS[name])
    alone = compiled(asked[0])
    found = ENGINE.together(alone, asked[0], 4, GIBIBYTE).run(asked)
    assert len(found) == 3
    for one, query in zip(found, asked, strict=True):
        close(one, alone.run(query))
    values = [float(one["value"]) for one in found]
    assert len(set(values)) == 3  # each its own data, or the test would prove nothing


def test_one_that_is_not_finite_leaves_the_others_alone() -> None:
    asked = queries(3, **PROGRAMS["plain"])
    broken = replace(asked[1], inputs={**asked[1].inputs, "x": np.full((6, 2), np.nan)})
    alone = compiled(asked[0])
    found = ENGINE.together(alone, asked[0], 4, GIBIBYTE).run([asked[0], broken, asked[2]])
    assert [bool(one["finite"]) for one in found] == [True, False, True]
    close(found[2], alone.run(asked[2]))


def test_programs_that_call_python_or_run_in_chunks_are_not_batched() -> None:
    (chunked,) = queries(1, **PROGRAMS["plain"], examples_at_once=2)
    with pytest.raises(Unfit, match="chunks"):
        ENGINE.together(compiled(chunked), chunked, 2, GIBIBYTE)
    (query,) = queries(1, **PROGRAMS["plain"])

    def calls_back(given: Any) -> Any:
        x = given["inputs"]["x"]
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x).sum()

    from nablad_service.query import arguments

    with pytest.raises(Unfit, match="callback"):
        together(jax.jit(calls_back).trace(arguments(query)), query, 2, GIBIBYTE, ENGINE.placement)


def test_a_batch_that_would_take_too_much_memory_is_made_smaller() -> None:
    (query,) = queries(1, **PROGRAMS["plain"])
    alone = compiled(query)
    with pytest.raises(Unfit, match="limit") as refused:
        ENGINE.together(alone, query, 64, 20_000)
    assert not refused.value.at_any_size
    batches = Batches(ENGINE, BatchLimits(64, 20_000))
    try:
        company = batches.company(query, alone)
        while True:
            size, _, settled = company.prepare(query, 64)
            reason = settled.result(60)
            if reason is None:
                break
            assert "limit" in reason
        assert size in (2, 4, 8, 16)
        assert company.count([query] * 64) == size
    finally:
        batches.close()


# -- how many are taken


class Fake:
    """A compiled program, or a batch of them, that takes as long as it is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.runs: list[int] = []

    def run(self, given: Any) -> Any:
        one = not isinstance(given, list | tuple)
        self.runs.append(1 if one else len(given))
        return {} if one else [{} for _ in given]


def test_sizes_are_powers_of_two() -> None:
    assert [power_of_two(number) for number in (1, 2, 3, 4, 5, 64, 65)] == [1, 2, 4, 4, 8, 64, 128]


def test_company_is_compiled_when_it_is_first_seen_and_used_when_it_is_ready() -> None:
    begun: dict[int, Future[Any]] = {}

    def begin(executable: Any, query: Any, size: int) -> Future[Any]:
        return begun.setdefault(size, Future())

    company = Batched(Fake(1.0), 48, begin)  # type: ignore[arg-type]
    queries: list[Any] = [object()] * 100
    assert company.count(queries[:1]) == 1
    assert not begun  # a lone call compiles nothing
    assert company.count(queries[:3]) == 1
    assert list(begun) == [4]
    assert company.count(queries) == 1
    assert list(begun) == [4, 32]  # the largest power of two within 48
    begun[4].set_result(Fake(1.0))
    assert company.count(queries) == 4
    begun[32].set_result(Fake(1.0))
    assert company.count(queries) == 32
    assert company.count(queries[:3]) == 3


def test_what_fails_together_is_computed_one_by_one_and_not_tried_again() -> None:
    class Broken(Fake):
        def run(self, given: Any) -> Any:
            raise RuntimeError("out of memory")

    begun: dict[int, Future[Any]] = {}
    alone = Fake(1.0)
    company = Batched(alone, 64, lambda executable, query, size: begun.setdefault(size, Future()))  # type: ignore[arg-type]
    queries: list[Any] = [object()] * 4
    company.count(queries)
    begun[4].set_result(Broken(1.0))
    assert company.count(queries) == 4
    assert company.run(queries) == [{}, {}, {}, {}]
    assert alone.runs == [1, 1, 1, 1]
    assert company.count(queries) == 1


def test_a_batch_that_is_slower_than_one_by_one_is_not_used() -> None:
    begun: dict[int, Future[Any]] = {}

    class Slow(Fake):
        def run(self, given: Any) -> Any:
            gate = threading.Event()
            gate.wait(self.seconds)
            return super().run(given)

    company = Batched(Fake(0.0), 64, lambda executable, query, size: begun.setdefault(size, Future()))  # type: ignore[arg-type]
    queries: list[Any] = [object()] * 4
    for _ in range(TRIES):  # the least time counts, whatever holds up the others
        company.run(queries[:1])
    company.count(queries)
    begun[4].set_result(Slow(0.05))
    for _ in range(TRIES):
        assert company.count(queries) == 4
        company.run(queries)
    counts = [company.count(queries) for _ in range(AGAIN)]
    assert counts.count(4) == 1  # tried again, later
    assert counts.count(1) == AGAIN - 1


# -- over HTTP

FUNCTIONS = """
import time
from pathlib import Path
import jax

def held(x):
    def body(x):
        while Path({held!r}).exists():
            time.sleep(0.001)
        return x
    return jax.pure_callback(body, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

FUNCTIONS = {{"held": held}}
"""


class Crowd:
    """A server whose device can be occupied, so that calls wait for it together."""

    def __init__(self, url: str, client: nablad.Client, held: Path) -> None:
        self.url, self.client, self.held = url, client, held
        client.create_model("net", NET)

    def together(self, asks: Sequence[Callable[[], Any]]) -> list[Any]:
        """The answers to calls that all waited for the device."""
        self.held.touch()
        with ThreadPoolExecutor(len(asks) + 1) as threads:
            try:
                held = threads.submit(self.client.evaluate, "held(x)", inputs={"x": np.ones(1)}, batch=False)
                self.until(lambda: self.waiting(1))
                answers = [threads.submit(ask) for ask in asks]
                self.until(lambda: self.waiting(len(asks) + 1))
            finally:
                self.held.unlink()
            held.result()
            return [answer.result() for answer in answers]

    def waiting(self, count: int) -> bool:
        return bool(httpx.get(f"{self.url}/health/ready").json()["queue"] >= count)

    def until(self, true: Callable[[], bool]) -> None:
        ends = time.monotonic() + 60
        while not true():
            assert time.monotonic() < ends


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "functions.py").write_text(FUNCTIONS.format(held=str(folder / "held")))
    with local_server("--models", str(folder / "functions.py")) as url, nablad.Client(url) as client:
        yield Crowd(url, client, folder / "held")


def until_batched(crowd: Crowd, asks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Answers that were computed together; the batch is compiled beside the first ones."""
    for _ in range(1000):
        answers = crowd.together(asks)
        if all(one.timing.together == len(asks) for one in answers):
            return answers
    raise AssertionError("the calls were never computed together")


LOSS = "u = model(x)\nsum((u - y)**2)"
X, Y = rng(8, 6, 2), rng(8, 6, 2, seed=1)


def ask(client: nablad.Client, number: int, **asked: Any) -> nablad.GradientResult:
    return client.gradient(
        LOSS, inputs={"x": X[number], "y": Y[number]}, model="net", wrt=["params", "x"], **asked
    )


def test_calls_that_wait_together_are_computed_together_and_answered_as_alone(crowd: Crowd) -> None:
    alone = [ask(crowd.client, number, batch=False) for number in range(8)]
    answers = until_batched(crowd, [lambda number=number: ask(crowd.client, number) for number in range(8)])
    for one, other in zip(answers, alone, strict=True):
        assert other.timing.together == 1
        np.testing.assert_allclose(one.value, other.value, rtol=1e-12)
        close(one.gradients, other.gradients)


def test_calls_that_do_not_want_company_have_none(crowd: Crowd) -> None:
    until_batched(crowd, [lambda number=number: ask(crowd.client, number) for number in range(4)])
    apart = crowd.together(
        [lambda number=number: ask(crowd.client, number, batch=False) for number in range(4)]
    )
    assert [one.timing.together for one in apart] == [1, 1, 1, 1]


def test_the_diagnosis_of_one_that_is_not_finite_is_its_own(crowd: Crowd) -> None:
    def root(value: float) -> nablad.EvaluateResult:
        return crowd.client.evaluate("r = log(x)\nr", inputs={"x": np.array([value, 1.0])})

    root(1.0)
    good, bad = until_batched(crowd, [lambda: root(1.0), lambda: root(-1.0)])
    assert good.non_finite is None
    assert bad.non_finite is not None
    assert "log(x)" in bad.non_finite.message


def test_a_caller_that_leaves_frees_its_place(crowd: Crowd) -> None:
    crowd.held.touch()
    with ThreadPoolExecutor(2) as threads:
        try:
            held = threads.submit(crowd.client.evaluate, "held(x)", inputs={"x": np.ones(1)}, batch=False)
            crowd.until(lambda: crowd.waiting(1))
            for batch in (True, False):
                with asking(crowd.url, {"program": "x + 1", "inputs": {"x": 1.0}, "batch": batch}):
                    crowd.until(lambda: crowd.waiting(2))
                crowd.until(lambda: not crowd.waiting(2))  # the server has seen it go
        finally:
            crowd.held.unlink()
        held.result()
    gone = 'nablad_requests_total{endpoint="/v1/evaluate",status="499"} 2.0'
    crowd.until(lambda: gone in httpx.get(f"{crowd.url}/metrics").text)


@contextmanager
def asking(url: str, body: dict[str, Any]) -> Iterator[None]:
    """A caller who sends a call, and leaves at the end of the `with`."""
    place, data = httpx.URL(url), json.dumps(body).encode()
    head = b"POST /v1/evaluate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    with socket.create_connection((place.host, place.port or 80), timeout=60) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        yield


def test_large_parameters_of_a_call_go_alone(crowd: Crowd) -> None:
    crowd.client.create_model("wide", {"preset": "mlp", "sizes": [2, 300, 300, 1]})
    params = crowd.client.params("wide").params

    def own() -> nablad.GradientResult:
        return crowd.client.gradient("sum(model(x)**2)", inputs={"x": X[0]}, model="wide", params=params)

    own()
    for _ in range(3):
        assert [one.timing.together for one in crowd.together([own, own])] == [1, 1]


def test_new_resident_parameters_are_not_mixed_with_old_ones(crowd: Crowd) -> None:
    batches = Batches(ENGINE, BatchLimits(64, GIBIBYTE))
    try:
        before = queries(1, **PROGRAMS["plain"])[0]
        program = compiled(before)
        again = queries(1, **PROGRAMS["plain"])[0]
        assert batches.key(before, program) == batches.key(again, program)
        hosted = MODELS.get("batch_net")
        MODELS.set_params("batch_net", dict(hosted.params), None)
        after = queries(1, **PROGRAMS["plain"])[0]
        assert batches.key(before, program) != batches.key(after, program)
        assert batches.key(replace(before, batch=False), program) is None
        values = evaluate_query(EvaluateRequest(program="x", inputs={"x": np.ones(40_000)}), MODELS.get)
        assert batches.key(values, program) is None
    finally:
        batches.close()


def test_calls_that_name_the_same_values_share_them() -> None:
    points, others = Resident(np.linspace(0, 1, 40_000)), Resident(np.linspace(1, 2, 40_000))

    def asking(a: float, values: Resident) -> Query:
        request = EvaluateRequest(program="sum(sin(a * x))", inputs={"a": np.float64(a), "x": values})
        return evaluate_query(request, MODELS.get)

    asked = [asking(a, points) for a in (1.0, 2.0, 3.0)]
    program = compiled(asked[0])
    batches = Batches(ENGINE, BatchLimits(64, GIBIBYTE))
    try:
        keys = {batches.key(query, program) for query in asked}
        assert len(keys) == 1
        assert None not in keys
        assert batches.key(asking(1.0, others), program) not in keys
    finally:
        batches.close()
    both = ENGINE.together(program, asked[0], 4, GIBIBYTE)
    for found, query in zip(both.run(asked), asked, strict=True):
        close(found, program.run(query))
    shared = [place for place, alike in both.places if alike]
    assert shared == [("inputs", "x", None)]
