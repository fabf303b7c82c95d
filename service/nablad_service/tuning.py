"""The fastest variant of a program, found beside the calls that use it.

A program that is called again and again is worth a few compilations: its variants are costed, the hopeful
ones compiled on a thread of their own while the default serves, and timed in turn on the device, each run a
short piece of work among the others'. The winner takes the default's place. Programs that are called a few
times never pay for this.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from nablad_service.engine.engine import Engine, Executable
from nablad_service.engine.planner import Variant, fastest, second_round, worth_timing
from nablad_service.learned_plans import LearnedPlan, LearnedPlans, Timed
from nablad_service.query import Query, Signature
from nablad_service.scheduler import Scheduler
from nablad_service.watched_threads import WatchedThreads

T = TypeVar("T")

log = logging.getLogger("nablad")

MOST_COUNTED = 4096
"""Programs whose calls are counted; a server that sees more begins to count anew."""
ROUNDS = 3
"""Runs of each variant, in turn, so that what else the machine does meets all of them alike."""
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
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._learned = learned
        self._replace = replace
        self._after_calls = after_calls
        self._calls: Counter[Signature] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = WatchedThreads("tune", 1, seconds, spare=SPARE)

    def called(self, query: Query) -> None:
        """Take note of a call; may begin to tune its program."""
        signature = query.signature
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
        variants = await self._aside(lambda: self._engine.variants(query))
        limit = self._engine.memory_limit(query)
        first = worth_timing(variants, limit)
        compiled: dict[int, Executable] = {}
        medians = await self._times(query, variants, first, compiled) if len(first) > 1 else {}
        trials = second_round(variants, medians, self._engine.examples(query))
        if trials:
            more = await self._aside(lambda: self._engine.counted(query, trials))
            second = range(len(variants), len(variants) + len(more))
            variants = [*variants, *more]
            fit = [index for index in second if limit is None or variants[index].cost.peak_bytes <= limit]
            # Once more with what they must beat: times of one round are not those of another.
            best = min(medians, key=medians.__getitem__)
            medians |= await self._times(query, variants, [*dict.fromkeys((0, best)), *fit], compiled)
        chosen = fastest(medians)
        plan = LearnedPlan(
            self._learned.key(query.signature),
            query.signature.text,
            self._engine.device(),
            tuple(
                Timed(one.choices, one.cost.flops, one.cost.peak_bytes, medians.get(index))
                for index, one in enumerate(variants)
            ),
            chosen,
        )
        self._learned.put(plan)
        if chosen:
            self._replace(query.signature, compiled[chosen])
        return plan

    async def _times(
        self, query: Query, variants: list[Variant], kept: list[int], compiled: dict[int, Executable]
    ) -> dict[int, float]:
        """Median milliseconds of each variant in `kept`, run in turn; compiles what is not `compiled` yet."""
        for index in kept:
            if index not in compiled:
                choices = dict(variants[index].choices)
                compiled[index] = await self._aside(partial(self._compile, query, choices))
        times: dict[int, list[float]] = {index: [] for index in kept}
        for turn in range(ROUNDS + 1):
            for index in kept:
                finished = await self._scheduler.run(partial(_timed, compiled[index], query))
                if turn:  # the first run of each is warming up
                    times[index].append(finished.result)
        return {index: statistics.median(runs) for index, runs in times.items()}

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(work))

    def _compile(self, query: Query, choices: dict[int, str]) -> Executable:
        return self._engine.compile(self._engine.trace(query, choices))

    def close(self) -> None:
        """Stop tuning; what is being compiled is dropped."""
        for task in self._tasks:
            task.cancel()
        self._thread.close()


def _timed(executable: Executable, query: Query) -> float:
    """Milliseconds of one run, the answer on the host."""
    started = time.perf_counter()
    executable.run(query)
    return (time.perf_counter() - started) * 1e3
