"""The fastest variant of a program, found beside the calls that use it.

A program that is called again and again is worth a few compilations: its variants are costed, the hopeful
ones compiled on a thread of their own while the default serves, and timed in turn on the device, each run a
short piece of work among the others'. The winner takes the default's place. Programs that are called a few
times never pay for this.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import TypeVar

from nablad_service.engine.engine import Engine
from nablad_service.engine.executable import Executable
from nablad_service.engine.planner import Variant
from nablad_service.engine.race import Result, Round, race
from nablad_service.engine.timing import steady
from nablad_service.metrics import Metrics
from nablad_service.planning.learned_plans import LearnedPlan, LearnedPlans, Timed
from nablad_service.query import Query, Signature
from nablad_service.running.scheduler import Scheduler
from nablad_service.running.watched_threads import WatchedThreads

T = TypeVar("T")

log = logging.getLogger("nablad")

MOST_COUNTED = 4096
"""Programs whose calls are counted; a server that sees more begins to count anew."""
SPARE = 4
"""Threads that may be lost to programs that do not compile; after that nothing is tuned any more."""


class Tuner:
    """Counts calls, and tunes a program once it has been called often enough. Lives on one event loop."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        learned: LearnedPlans,
        replace: Callable[[Signature, Executable], None],
        *,
        after_calls: int,
        seconds: float = 0.0,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._engine = engine
        self._scheduler = scheduler
        self._learned = learned
        self._replace = replace
        self._after_calls = after_calls
        self._calls: Counter[Signature] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = WatchedThreads("tune", 1, seconds, spare=SPARE, behind=True)

    def called(self, query: Query, signature: Signature) -> None:
        """Take note of a call of the program with this signature; may begin to tune it."""
        if not self._after_calls or not query.tune or signature.nesting != "auto":
            return
        if len(self._calls) >= MOST_COUNTED:
            self._calls.clear()
        self._calls[signature] += 1
        # What is known is looked up once, not at every call: its key is a digest of the whole signature.
        if self._calls[signature] == self._after_calls and not self._learned.get(signature):
            task = asyncio.create_task(self._tune(query))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tune(self, query: Query) -> None:
        try:
            await self.tune(query)
        except Exception:
            # The default serves; a program that cannot be tuned is no failure of a call.
            log.exception("a program could not be tuned")

    async def tune(self, query: Query) -> LearnedPlan:
        """Cost, compile and time the variants of a program, and let the fastest one run from now on."""
        found = await self._aside(lambda: self._engine.variants(query))
        contest = race(
            found,
            lambda trials: self._engine.counted(query, trials),
            self._engine.examples(query),
            self._engine.memory_limit(query),
        )
        compiled: dict[int, Executable] = {}
        times: Mapping[int, float] | None = None
        while True:
            try:
                # Tracing what is tried next takes a while too.
                variants, asked = await self._aside(partial(_next, contest, times))
            except _Decided as decided:
                result = decided.result
                break
            times = await self._times(query, variants, asked, compiled)
        plan = LearnedPlan(
            self._learned.key(query.signature),
            query.signature.text,
            self._engine.device(),
            tuple(
                Timed(
                    one.choices, one.cost.flops, one.cost.peak_bytes, _milliseconds(result.times.get(index))
                )
                for index, one in enumerate(result.variants)
            ),
            result.chosen,
        )
        self._learned.put(plan)
        if result.chosen:
            self._replace(query.signature, compiled[result.chosen])
        return plan

    async def _times(
        self, query: Query, variants: list[Variant], asked: Round, compiled: dict[int, Executable]
    ) -> dict[int, float]:
        """The median seconds of each variant of a round; compiles what is not `compiled` yet."""
        for index in asked.variants:
            if index not in compiled:
                choices = dict(variants[index].choices)
                compiled[index] = await self._aside(partial(self._compile, query, choices))
        timing = asked.timing()
        index = next(timing)
        try:
            while True:
                finished = await self._scheduler.run(partial(_timed, compiled[index], query))
                index = timing.send(finished.result)
        except StopIteration as end:
            medians: dict[int, float] = end.value
            return medians

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(work))

    def _compile(self, query: Query, choices: dict[int, str]) -> Executable:
        work = partial(self._engine.compile, self._engine.trace(query, choices))
        return self._metrics.compiling("variant", work)()

    def close(self) -> None:
        """Stop tuning; what is being compiled is dropped."""
        for task in self._tasks:
            task.cancel()
        self._thread.close()


class _Decided(Exception):
    """The contest is over. A `StopIteration` cannot pass through a future."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


def _next(
    contest: Generator[tuple[list[Variant], Round], Mapping[int, float], Result],
    times: Mapping[int, float] | None,
) -> tuple[list[Variant], Round]:
    """The next round of a contest, given the times of the last one."""
    try:
        return next(contest) if times is None else contest.send(times)
    except StopIteration as end:
        raise _Decided(end.value) from None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _timed(executable: Executable, query: Query) -> float:
    """Seconds of one run in a row of them, the answer on the host."""
    return steady(lambda: executable.run(query))
