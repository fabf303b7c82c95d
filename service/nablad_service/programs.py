"""Compiled programs by signature: compiled once however many ask, off the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nablad_service.engine.diagnosis import Diagnosis
from nablad_service.engine.engine import Engine, Executable, Traced
from nablad_service.engine.planner import Variant
from nablad_service.learned_plans import LearnedPlan, LearnedPlans
from nablad_service.query import Query, Signature

DIAGNOSES = 16
"""Kept at once; a program needs one only where its result was not finite."""


class Programs:
    """A cache of executables, least recently used first out. Lives on one event loop."""

    def __init__(self, engine: Engine, learned: LearnedPlans, *, limit: int, threads: int) -> None:
        self._engine = engine
        self.learned = learned
        self._limit = limit
        # Checked apart from compiling: a mistake is answered at once, whatever else compiles.
        self._checkers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="check")
        self._compilers = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="compile")
        self._ready: OrderedDict[Signature, Executable] = OrderedDict()
        self._diagnoses: OrderedDict[Signature, Diagnosis] = OrderedDict()
        self._compiling: dict[Signature, asyncio.Task[Executable]] = {}

    async def executable(self, query: Query) -> tuple[Executable, bool]:
        """The compiled program for `query`, and whether it had to be compiled for this call.

        Raises:
            Refusal: whatever checking the program finds. Refusals are not remembered.
        """
        signature = query.signature
        ready = self._ready.get(signature)
        if ready is not None:
            self._ready.move_to_end(signature)
            return ready, False
        compiling = self._compiling.get(signature)
        if compiling is None:
            compiling = asyncio.create_task(self._compile(query))
            self._compiling[signature] = compiling
            compiling.add_done_callback(lambda future: self._settle(signature, future))
        # Shielded: a caller that gives up must not take the program from the others.
        return await asyncio.shield(compiling), True

    async def _compile(self, query: Query) -> Executable:
        traced = await self.traced(query, self.learned.get(query.signature))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._compilers, self._engine.compile, traced)

    def replace(self, signature: Signature, executable: Executable) -> None:
        """Let a program that is kept run as `executable` from now on."""
        if signature in self._ready:
            self._ready[signature] = executable

    async def variants(self, query: Query, default: Traced) -> list[Variant]:
        """The ways to compute a program, `default` first, with their costs; compiles nothing."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._checkers, self._engine.variants, query, default)

    async def traced(self, query: Query, learned: LearnedPlan | None) -> Traced:
        """The plan that a program runs by, and the computation that follows it; compiles nothing."""
        loop = asyncio.get_running_loop()
        choices = learned.choices if learned else {}
        return await loop.run_in_executor(self._checkers, self._engine.trace, query, choices)

    async def diagnosis(self, query: Query) -> Diagnosis:
        """The program of a query compiled so that it reports where it stops being finite."""
        signature = query.signature
        if signature not in self._diagnoses:
            loop = asyncio.get_running_loop()
            compiled = await loop.run_in_executor(self._compilers, self._engine.diagnose, query)
            self._diagnoses[signature] = compiled
            while len(self._diagnoses) > DIAGNOSES:
                self._diagnoses.popitem(last=False)
        return self._diagnoses[signature]

    async def check(self, query: Query) -> Callable[[], dict[str, Any]]:
        """The compiled comparison of a query's gradients with differences; not kept."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._compilers, self._engine.compile_check, query)

    def _settle(self, signature: Signature, future: asyncio.Task[Executable]) -> None:
        self._compiling.pop(signature, None)
        if future.cancelled() or future.exception() is not None:
            return
        self._ready[signature] = future.result()
        while len(self._ready) > self._limit:
            self._ready.popitem(last=False)

    def close(self) -> None:
        """Drop what has not begun to compile."""
        for threads in (self._checkers, self._compilers):
            threads.shutdown(wait=False, cancel_futures=True)
