"""The straight path of a call: bytes -> request -> query -> plan -> executable -> result -> bytes.

Small bodies are decoded and encoded where they are; large ones off the event loop, as are compiling (its own
threads) and the device's work (one thread), so that health checks answer meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from nablad import wire
from nablad.frame import Buffer
from nablad.messages import Warming
from nablad.problems import Refusal
from nablad_service.answers.answering import Answers
from nablad_service.answers.timing import Timing
from nablad_service.engine.buckets import InBucket
from nablad_service.engine.executable import Executable
from nablad_service.hosting import ModelStore, Values
from nablad_service.metrics import Metrics
from nablad_service.planning.diagnosing import diagnosed
from nablad_service.planning.documents import plan_document
from nablad_service.planning.programs import Programs
from nablad_service.planning.tuning import Tuner
from nablad_service.planning.warming import warmed, with_stand_ins
from nablad_service.query import Query
from nablad_service.requests import reading
from nablad_service.requests.reading import Body, Reader, Reading, validated
from nablad_service.running.batches import Batches
from nablad_service.running.off_loop import off_loop
from nablad_service.running.scheduler import Finished, Scheduler

T = TypeVar("T")

SHORT = 2e-3
"""Seconds of a run that the event loop has for a lone call: to hand it to a thread and back takes 0.2e-3, and
what comes meanwhile would wait for the device anyway, but for health checks."""
LARGEST_LISTS = 64 * 1024 * 1024
"""Bytes of arrays that are written as nested lists: as Python's numbers they take many times the room."""


class Answer(NamedTuple):
    """An answer's body in pieces, its media type and where the time went."""

    pieces: list[Buffer]
    media: str
    timing: Timing


class Pipeline:
    """What all calls share: the models, the compiled programs and the device's queue."""

    def __init__(
        self,
        models: ModelStore,
        values: Values,
        programs: Programs,
        scheduler: Scheduler,
        tuner: Tuner,
        batches: Batches,
        metrics: Metrics,
    ) -> None:
        self.models = models
        self.values = values
        self.reader = Reader(models, values)
        self.programs = programs
        self.scheduler = scheduler
        self.tuner = tuner
        self.batches = batches
        self.metrics = metrics
        self._answers = Answers()

    def gradient(self, body: Body) -> Awaitable[Answer]:
        """`POST /v1/gradient`."""
        return self._answer(body, reading.GRADIENT)

    def evaluate(self, body: Body) -> Awaitable[Answer]:
        """`POST /v1/evaluate`."""
        return self._answer(body, reading.EVALUATE)

    def shortcut(self, name: str, operator: str, body: Body) -> Awaitable[Answer]:
        """`POST /v1/models/{name}/{operator}`."""
        return self._answer(body, reading.shortcut(name, operator))

    async def check(self, body: Body) -> Answer:
        """`POST /v1/check`: everything in float64."""
        started = time.perf_counter()
        query = await off_loop(len(body.data), lambda: reading.check(body, self.reader.lookups(body)))
        decoded = time.perf_counter() - started

        async def work() -> tuple[dict[str, Any], Finished[dict[str, Any]], bool, float]:
            started = time.perf_counter()
            compare = await self.programs.check(query)
            compiling = time.perf_counter() - started
            finished = await self.scheduler.run(compare)
            return {**finished.result, "dtype": "float64"}, finished, True, compiling

        return await self._finish(query, body, decoded, work)

    async def plan(self, body: Body) -> dict[str, Any]:
        """`POST /v1/plan`: the body of a gradient, or of an evaluation; compiles and runs nothing."""
        query = await off_loop(len(body.data), lambda: reading.either(body, self.reader.lookups(body)))
        return plan_document(await self.programs.planned(query))

    async def warm(self, body: Body) -> dict[str, Any]:
        """`POST /v1/warm`: the body of a gradient, or of an evaluation; compiles, and runs nothing."""

        def read() -> tuple[Query, list[int]]:
            structure = with_stand_ins(wire.decode_body(body.data, body.media))
            asked = validated({"batch_sizes": structure.pop("batch_sizes", [])}, Warming)
            return reading.question(structure, self.reader.lookups(body)), asked.batch_sizes

        query, sizes = await off_loop(len(body.data), read)
        programs = await warmed(query, sizes, self.programs, self.batches)
        return {"programs": [one.model_dump() for one in programs]}

    async def _answer(self, body: Body, how: Reading) -> Answer:
        started = time.perf_counter()
        query, key = self.reader.recalled(body, how)
        if query is None:
            query = await off_loop(len(body.data), lambda: self.reader.read(body, how, key))
        # The query views a frame's bytes, and has copied those of another format: they may go.
        body = body.emptied()
        decoded = time.perf_counter() - started
        until = math.inf
        if query.deadline_ms is not None:
            until = time.perf_counter() + query.deadline_ms / 1e3 - decoded

        async def work() -> tuple[dict[str, Any], Finished[dict[str, Any]], bool, float]:
            started = time.perf_counter()
            executable, compiled = await self.programs.executable(query)
            compiling = time.perf_counter() - started if compiled else 0.0
            if body.encoding == "lists" and executable.answer_bytes > LARGEST_LISTS:
                detail = f"the answer has {executable.answer_bytes / 1e6:.0f} MB, too much for nested lists"
                raise Refusal("limit", f"{detail}; accept {wire.MSGPACK} or {wire.JSON}; arrays=base64")
            finished = await self._run(query, executable, until, alone=body.alone)
            if isinstance(executable, Executable):
                # The signature that the plan has is known by identity to whatever is kept by it.
                self.tuner.called(query, executable.plan.signature)
            result = _sections(finished.result, executable)
            if not result.pop("finite"):
                result["non_finite"] = await diagnosed(self.programs, self.scheduler.run, query)
            return result, finished, compiled, compiling

        return await self._finish(query, body, decoded, work)

    async def _run(
        self, query: Query, executable: Executable | InBucket, until: float, *, alone: bool
    ) -> Finished[dict[str, Any]]:
        """The arrays of the answer, computed together with others that wait for the same.

        A call that is alone, of a program that takes no time, is computed here and now.
        """
        if isinstance(executable, InBucket):
            return await self.scheduler.run(lambda: executable.run(query))
        if alone and executable.pace.under(SHORT):
            finished = self.scheduler.run_here(lambda: executable.run(query))
            if finished is not None:
                return finished
        key = self.batches.key(query, executable)
        if key is None:
            return await self.scheduler.run(lambda: executable.run(query))
        company = self.batches.company(query, executable)
        return await self.scheduler.run_in_company(key, query, company, until=until)

    async def _finish(
        self,
        query: Query,
        body: Body,
        decoded: float,
        work: Callable[[], Awaitable[tuple[dict[str, Any], Finished[dict[str, Any]], bool, float]]],
    ) -> Answer:
        try:
            result, finished, compiled, compiling = await _within(query.deadline_ms, decoded, work())
        except asyncio.CancelledError:  # the drain time of a stopping server is over
            raise Refusal("stopping", "the server stopped before the answer was ready; ask again") from None
        self.metrics.queue.add(finished.waited)
        timing = Timing(
            decode_ms=decoded * 1e3,
            queue_ms=finished.waited * 1e3,
            compile_ms=compiling * 1e3,
            device_ms=finished.ran * 1e3,
            compiled=compiled,
            together=finished.together,
        )
        return Answer(await self._answers.body(result, timing, body), body.answer, timing)


async def _within(deadline_ms: float | None, spent: float, work: Awaitable[T]) -> T:
    if deadline_ms is None:
        return await work
    try:
        return await asyncio.wait_for(work, max(deadline_ms / 1e3 - spent, 0.0))
    except TimeoutError:
        detail = f"the answer was not ready within {deadline_ms:g} ms; a first call also compiles"
        raise Refusal("deadline", detail) from None


def _sections(result: dict[str, Any], executable: Executable | InBucket) -> dict[str, Any]:
    # JAX gives a dict's members back sorted; people look for the value first.
    first: dict[str, Any] = {name: result[name] for name in ("value", "terms", "gradients") if name in result}
    return {**first, **result, "plan": executable.document}
