"""Compiled programs by signature: compiled once however many ask, off the event loop.

Neither tracing nor compiling can be interrupted. A program that takes too long with either is refused, and
refused at once when it is asked for again: else a few calls of it would take all threads from the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from nablad.problems import Refusal
from nablad_service.engine.buckets import Bucket, InBucket, bucket_of, resized
from nablad_service.engine.diagnosis import Diagnosis
from nablad_service.engine.engine import Engine
from nablad_service.engine.examples import examples_of
from nablad_service.engine.executable import Executable, Traced
from nablad_service.engine.padding import Unpadded
from nablad_service.engine.planner import Choices
from nablad_service.metrics import Metrics
from nablad_service.planning.documents import Planned
from nablad_service.planning.learned_plans import LearnedPlan, LearnedPlans
from nablad_service.query import Query, Signature
from nablad_service.running.watched_threads import Overrun, Stuck, WatchedThreads

T = TypeVar("T")

DIAGNOSES = 16
"""Kept at once; a program needs one only where its result was not finite."""
PLANS = 64
"""Plans kept with the costs of their variants: figures, a few kilobytes each; and programs traced by one."""
CHECKERS = 4
"""Programs traced at the same time."""
SPARE = 8
"""Threads of a kind that may be lost to work that does not end, before nothing new is begun."""
OCCUPIED = "all threads that compile programs are occupied by work that does not end; ask again later"
"""For callers and for `/health/ready` alike."""


class Programs:
    """A cache of executables, least recently used first out. Lives on one event loop.

    `seconds` bound the tracing, and again the compiling, of one program; 0 for no limit.
    """

    def __init__(
        self,
        engine: Engine,
        learned: LearnedPlans,
        *,
        limit: int,
        threads: int,
        seconds: float = 0.0,
        metrics: Metrics | None = None,
    ) -> None:
        self._engine = engine
        self.learned = learned
        self._limit = limit
        self._seconds = seconds
        self._metrics = metrics or Metrics()
        # Checked apart from compiling: a mistake is answered at once, whatever else compiles.
        self._checkers = WatchedThreads("check", CHECKERS, seconds, spare=SPARE, behind=True)
        self._compilers = WatchedThreads("compile", threads, seconds, spare=SPARE, behind=True)
        self._ready: OrderedDict[Signature, Executable | InBucket] = OrderedDict()
        self._diagnoses: OrderedDict[Signature, Diagnosis] = OrderedDict()
        self._planned: OrderedDict[Signature, Planned] = OrderedDict()
        self._traced: OrderedDict[tuple[Signature, Hashable], Traced] = OrderedDict()
        self._buckets: OrderedDict[Signature, asyncio.Task[Bucket]] = OrderedDict()
        self._compiling: dict[Signature, asyncio.Task[Executable | InBucket]] = {}
        self._slow: dict[tuple[str, Hashable], float] = {}
        """What was given up, and until when it is refused: for ever, while its thread still works on it."""

    async def executable(self, query: Query) -> tuple[Executable | InBucket, bool]:
        """The compiled program for `query`, and whether it had to be compiled for this call.

        Raises:
            Refusal: whatever checking the program finds; that is not remembered. `too_slow` where tracing or
                compiling it takes too long; that is remembered for a while.
        """
        signature = query.signature
        ready = self._ready.get(signature)
        if ready is not None:
            self._ready.move_to_end(signature)
            self._metrics.programs.add(1, "hit")
            return ready, False
        self._metrics.programs.add(1, "miss")
        compiling = self._compiling.get(signature)
        if compiling is None:
            compiling = asyncio.create_task(self._compile(query))
            self._compiling[signature] = compiling
            compiling.add_done_callback(lambda future: self._settle(signature, future))
        # Shielded: a caller that gives up must not take the program from the others.
        return await asyncio.shield(compiling), True

    async def _compile(self, query: Query) -> Executable | InBucket:
        signature = query.signature
        self._refuse_slow("compiling", signature)
        if (bucket := bucket_of(query)) is not None:
            return await self._in_bucket(query, *bucket)
        traced = await self.traced(query, self.learned.get(signature))
        if signature.buckets:
            sizes = ", ".join(map(str, signature.buckets))
            examples = examples_of(query)
            number = examples.number if examples else 0
            detail = f"none of {sizes} holds them" if number else "no input is an array of examples"
            traced = traced.without_bucket(number, detail)
        return await self._compiled(signature, traced)

    async def _compiled(self, signature: Signature, traced: Traced) -> Executable:
        return await self._on(
            self._compilers,
            "compiling",
            signature,
            self._metrics.compiling("program", lambda: self._engine.compile(traced)),
            late=lambda executable: self._keep(signature, executable),
        )

    async def _in_bucket(self, query: Query, number: int, size: int) -> Executable | InBucket:
        """The program of the bucket that holds the examples, or one of their own where that is inexact."""
        signature = query.signature
        # Traced as it is, too: what depends on the number of examples is found there, and what is wrong.
        traced = await self.traced(query, None)
        try:
            bucket = await self._bucket(query, number, size)
            return await self._on(self._checkers, "tracing", signature, lambda: bucket.fit(traced, number))
        except Unpadded as why:
            return await self._compiled(signature, traced.without_bucket(number, str(why)))

    async def _bucket(self, query: Query, number: int, size: int) -> Bucket:
        """A bucket's program, compiled once for all that fit in it."""
        signature = resized(query, number, size).signature
        work = self._metrics.compiling("bucket", lambda: self._engine.bucket(query, number, size))
        making = self._buckets.get(signature)
        if making is None:
            making = asyncio.create_task(self._on(self._compilers, "compiling", signature, work))
            self._buckets[signature] = making
            while len(self._buckets) > self._limit:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(signature)
        try:
            return await asyncio.shield(making)
        except Refusal:  # too slow, say; the next one may try again
            self._buckets.pop(signature, None)
            raise

    def replace(self, signature: Signature, executable: Executable) -> None:
        """Let a program that is kept run as `executable` from now on."""
        if signature in self._ready:
            self._ready[signature] = executable

    async def planned(self, query: Query) -> Planned:
        """The plan of a program, and the ways to compute it with their costs; compiles nothing."""
        signature = query.signature
        # Asked once: what is learned meanwhile would not fit the plan.
        learned = self.learned.get(signature)
        kept = self._planned.get(signature)
        if kept is not None and kept.learned is learned:
            self._planned.move_to_end(signature)
            return kept
        default = await self.traced(query, None)
        traced = await self.traced(query, learned) if learned else default
        skipped: dict[tuple[tuple[int, str], ...], str] = {}

        def work() -> Planned:
            found = self._engine.variants(
                query, default, lambda choices, why: skipped.update({tuple(sorted(choices.items())): why})
            )
            examples = examples_of(query)
            number = examples.number if examples else None
            return Planned(traced.plan, traced.cost, default.plan, found, skipped, learned, number)

        planned = await self._on(self._checkers, "planning", signature, work)
        self._planned[signature] = planned
        while len(self._planned) > PLANS:
            self._planned.popitem(last=False)
        return planned

    async def traced(self, query: Query, learned: LearnedPlan | None) -> Traced:
        """The plan that a program runs by, and the computation that follows it; compiles nothing."""
        return await self.following(query, learned.choices if learned else {})

    async def following(self, query: Query, choices: Choices) -> Traced:
        """A program traced by some choices of strategies, whatever is learned of it; compiles nothing."""
        key = query.signature, tuple(sorted(choices.items()))
        traced = self._traced.get(key)
        if traced is None:
            work = partial(self._engine.trace, query, choices)
            traced = await self._on(self._checkers, "tracing", query.signature, work)
            self._traced[key] = traced
            while len(self._traced) > PLANS:
                self._traced.popitem(last=False)
        self._traced.move_to_end(key)
        return traced

    async def compiled(self, what: str, key: Hashable, compile_: Callable[[], T]) -> T:
        """What `compile_` makes of a program, on the threads that compile; `what` is the word for metrics."""
        return await self._on(self._compilers, "compiling", key, self._metrics.compiling(what, compile_))

    async def diagnosis(self, query: Query) -> Diagnosis:
        """The program of a query compiled so that it reports where it stops being finite."""
        signature = query.signature
        if signature not in self._diagnoses:
            compiling = self._metrics.compiling("diagnosis", lambda: self._engine.diagnose(query))
            compiled = await self._on(self._compilers, "diagnosing", signature, compiling)
            self._diagnoses[signature] = compiled
            while len(self._diagnoses) > DIAGNOSES:
                self._diagnoses.popitem(last=False)
        return self._diagnoses[signature]

    async def check(self, query: Query) -> Callable[[], dict[str, Any]]:
        """The compiled comparison of a query's gradients with differences; not kept."""
        compiling = self._metrics.compiling("check", lambda: self._engine.compile_check(query))
        return await self._on(self._compilers, "checking", query.signature, compiling)

    async def _on(
        self,
        threads: WatchedThreads,
        what: str,
        signature: Hashable,
        work: Callable[[], T],
        *,
        late: Callable[[T], None] | None = None,
    ) -> T:
        """`work` on one of `threads`; `late` takes its result where nobody waits for that any more."""
        self._refuse_slow(what, signature)
        try:
            return await asyncio.wrap_future(threads.submit(work))
        except Overrun as overrun:
            self._leave(what, signature, overrun.ended, late)
            raise self._too_slow(what) from None
        except Stuck:
            raise Refusal("stuck", OCCUPIED, extra={"retry_after": 30}) from None

    def _leave(
        self, what: str, signature: Hashable, ended: Future[T], late: Callable[[T], None] | None
    ) -> None:
        """Refuse a program from now on, until the thread that was lost to it is free and a while longer."""
        now = time.monotonic()
        self._slow = {key: until for key, until in self._slow.items() if until > now}
        self._slow[what, signature] = math.inf
        loop = asyncio.get_running_loop()

        def settle(future: Future[T]) -> None:
            if late and future.exception() is None:
                late(future.result())
                self._slow.pop((what, signature), None)
            else:
                self._slow[what, signature] = time.monotonic() + self._seconds

        def on_loop(future: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, future)

        ended.add_done_callback(on_loop)

    def _refuse_slow(self, what: str, signature: Hashable) -> None:
        until = self._slow.get((what, signature), 0.0)
        if time.monotonic() < until:
            raise self._too_slow(what)

    def _too_slow(self, what: str) -> Refusal:
        detail = (
            f"{what} this program was not done within {self._seconds:g} s, the server's limit, and it is "
            "refused for a while; write what repeats with fori, scan or vmap, take fewer derivatives inside "
            "one another, ask for it in parts, or have the operator raise compile_seconds"
        )
        return Refusal("too_slow", detail)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._ready)

    def stuck_for(self) -> float:
        """Seconds for which no program could be checked or compiled; 0 where all is well."""
        return max(self._checkers.stuck_for(), self._compilers.stuck_for())

    def _settle(self, signature: Signature, future: asyncio.Task[Executable | InBucket]) -> None:
        self._compiling.pop(signature, None)
        if not future.cancelled() and future.exception() is None:
            self._keep(signature, future.result())

    def _keep(self, signature: Signature, executable: Executable | InBucket) -> None:
        self._ready[signature] = executable
        while len(self._ready) > self._limit:
            self._ready.popitem(last=False)

    def close(self) -> None:
        """Drop what has not begun to compile."""
        for threads in (self._checkers, self._compilers):
            threads.close()
