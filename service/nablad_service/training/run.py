"""One run of a loop: from its first step, or from a save, to its end. Lives on one event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from nablad.messages import NonFinite
from nablad.problems import Problem, Refusal
from nablad.training.messages import Ended, Report, RunStanding, TrainRequest
from nablad_service.engine.placement import Placement
from nablad_service.planning.programs import Programs
from nablad_service.running.scheduler import Finished, Scheduler
from nablad_service.training.balance import balanced
from nablad_service.training.diagnosing import diagnosed_training, divergence
from nablad_service.training.events import Events
from nablad_service.training.loop import MOST_STEPS, CompiledLoop, Given, LoopState, Records
from nablad_service.training.progress import Progress, first_of
from nablad_service.training.resuming import Stand, about_of, resumed
from nablad_service.training.saves import Saves
from nablad_service.training.stages import CompiledLoops, Stage, entered, whole
from nablad_service.training.state import Saved, on_host
from nablad_service.training.supply import Supply

T = TypeVar("T")
Ending: TypeAlias = Literal["done", "stopped", "diverged", "failed"]

log = logging.getLogger("nablad")

TURN = 0.1
"""Seconds that one call keeps the device from others."""
AGAIN = 0.05
"""Seconds after which a run asks again where too many calls wait for the device."""


@dataclass(frozen=True)
class Parts:
    """What a server's runs share."""

    programs: Programs
    scheduler: Scheduler
    placement: Placement
    loops: CompiledLoops
    saves: Saves | None


@dataclass(frozen=True)
class Call:
    """A call of the device that was made: enough to make it again, to a step in its middle."""

    compiled: CompiledLoop
    stage: Stage
    state: LoopState
    given: Given
    first: int

    def to(self, step: int) -> LoopState:
        """The state when `step` steps of the run are done."""
        if step == self.first:
            return self.state
        return self.compiled.run(self.state, self.given, self.first, step - self.first)[0]


class Run:
    """A loop under way, or ended.

    Args:
        name: of the run.
        tenant: whose it is.
        request: what was asked for.
        stages: its phases.
        parts: of the server.
        deserted: is called when nobody listens any more.
        saved: leaves and document of the save to go on from.

    Raises:
        Refusal: `unfit_save` where the save does not fit the stages, with what differs.
    """

    def __init__(
        self,
        name: str,
        tenant: str,
        request: TrainRequest,
        stages: Sequence[Stage],
        parts: Parts,
        *,
        deserted: Callable[[Run], None],
        saved: tuple[Saved, Mapping[str, Any]] | None = None,
    ) -> None:
        self.name = name
        self.tenant = tenant
        self.request = request
        self.status: Literal["running"] | Ending = "running"
        self.ended: Ended | None = None
        self.step = 0
        self._stages = stages
        self._parts = parts
        self._weights = dict(stages[0].query.weights)
        self._progress = Progress(request, stages[-1].end)
        self._seconds, self._since = 0.0, time.monotonic()
        self._entered: int | None = None
        self._state: LoopState | None = None
        self._inputs: Any = None
        self._data: Any = None
        self._supply: Supply | None = None
        self._calls: list[Call] = []
        self._pace = 0.0
        self._saved_step: int | None = None
        self._bad_step: int | None = None
        self._non_finite: NonFinite | None = None
        self._stop = asyncio.Event()
        self._why = ""
        first = 1 if saved is None else self._resume(*saved)
        self.events = Events(first, lambda: deserted(self))
        self._task: asyncio.Task[None] | None = None

    def _resume(self, saved: Saved, about: Mapping[str, Any]) -> int:
        """Stand where a save stands; the number of the next event."""
        self.step, stand, self._state = resumed(self.name, self.request, self._stages, saved, about)
        self._entered, self._saved_step = stand.stage, self.step
        self._weights, self._seconds = dict(stand.weights), stand.seconds
        end = self._stages[-1].end
        self._progress = Progress(self.request, end, step=self.step, value=stand.value, best=stand.best)
        return stand.event + 1

    def start(self) -> None:
        """Begin, or go on."""
        self._task = asyncio.create_task(self._live(), name=f"run {self.name}")

    async def stop(self, why: str) -> Ended:
        """Save and stop; how it ended, also where that was before."""
        assert self._task is not None
        if not self._stop.is_set():
            self._why = why
            self._stop.set()
        await asyncio.shield(self._task)
        assert self.ended is not None
        return self.ended

    def standing(self) -> RunStanding:
        """Where it stands."""
        saves = self._parts.saves
        return RunStanding(
            name=self.name,
            status=self.status,
            step=self.step,
            steps=self._stages[-1].end,
            value=self._progress.value,
            saved=saves.steps(self.tenant, self.name) if saves is not None else [],
            reason=self.ended.reason if self.ended is not None else None,
        )

    async def trained(self) -> tuple[int, dict[str, Any]]:
        """The step, and the leaves of parameters and models' state by path, as saves name them."""
        step, now = self.step, self._state

        def work() -> dict[str, Any]:
            state = now or self._stages[0].start(self._parts.placement)[1]
            return on_host({"params": state.params, "models": state.models})

        return step, await self._on_device(work)

    # -- its life

    async def _live(self) -> None:
        try:
            self.events.tell("started", {"name": self.name, "step": self.step})
            kind, reason = await self._work()
            if kind != "diverged" or self.step:
                await self._save()
            self._end(kind, reason)
        except Refusal as refusal:
            self._fail(refusal)
        except Exception as error:
            log.exception("the run '%s' failed", self.name)
            detail = f"the run failed ({type(error).__name__}); the server's log says more"
            self._fail(Refusal("internal", detail))
        finally:
            self._calls.clear()
            self._supply = self._inputs = self._data = None

    async def _work(self) -> tuple[Ending, str]:
        """Do what is left; how that ends, and why."""
        for stage in self._stages:
            if self.step >= stage.end and self._entered != stage.number:
                continue
            compiled = await self._unless_stopped(self._parts.loops.get(stage, self._weights))
            if compiled is None:
                return "stopped", self._why
            await self._enter(stage, compiled)
            while self.step < stage.end:
                if self._stop.is_set():
                    return "stopped", self._why
                ending = await self._advance(stage, compiled)
                if ending is not None:
                    return ending
                every = self.request.checkpoint_every
                if every and self.step % every == 0 and self.step < self._stages[-1].end:
                    await self._save()
        return "done", f"all {self._stages[-1].end} steps are done"

    async def _enter(self, stage: Stage, compiled: CompiledLoop) -> None:
        """Have the state on the device as the stage takes it."""

        def work() -> tuple[Any, Any, LoopState]:
            inputs, fresh = stage.start(self._parts.placement)
            if self._entered == stage.number:
                assert self._state is not None
                return inputs, stage.data(), self._state
            return inputs, stage.data(), entered(self._state or fresh, stage, compiled)

        self._inputs, self._data, self._state = await self._on_device(work)
        self._entered = stage.number
        self._supply = Supply(stage.feeds, self._on_device)
        self._pace = 0.0

    async def _advance(self, stage: Stage, compiled: CompiledLoop) -> tuple[Ending, str] | None:
        """One call of the device; how the run ends, if it does."""
        given = await self._given(stage)
        balance = self.request.balance
        if balance is not None and self.step % balance.every == 0:
            assert self._state is not None
            state, step = self._state, self.step
            norms = await self._on_device(lambda: compiled.term_norms(state, given, step))
            self._weights = balanced(self._weights, norms, balance.decay)
            given = await self._given(stage)
        assert self._state is not None
        call = Call(compiled, stage, self._state, given, self.step)
        count = self._count(stage)
        started = time.perf_counter()
        finished = await self._finished(lambda: compiled.run(call.state, given, call.first, count))
        state, records = finished.result
        self._pace = finished.ran / count
        self._calls = [*self._calls[-1:], call]
        finite = int(np.argmin(records.finite)) if not records.finite.all() else count
        rate = count / (time.perf_counter() - started)
        reports, reason = self._progress.after(call.first, first_of(records, finite))
        rated = stage.loop.rule.has_learning_rate
        for index in reports:
            self.events.tell(
                "report", self._report(call.first, records, index, rate, rated=rated).model_dump()
            )
        done = self._progress.step - call.first
        if finite < count and reason is None:
            return await self._diverge(call.first + finite, records, finite)
        self.step = call.first + done
        self._state = state if done == count else await self._on_device(lambda: call.to(self.step))
        return None if reason is None else ("done", reason)

    def _report(self, first: int, records: Records, index: int, rate: float, *, rated: bool) -> Report:
        return Report(
            step=first + index + 1,
            value=float(records.value[index]),
            terms={name: float(entries[index]) for name, entries in records.terms.items()},
            weights=self._weights,
            norms={name: float(entries[index]) for name, entries in records.norms.items()},
            # As it was written: 0.01, where the nearest float32 is 0.009999999776.
            learning_rate=float(str(records.learning_rate[index])) if rated else None,
            steps_per_second=rate,
            seconds=self._elapsed(),
        )

    def _count(self, stage: Stage) -> int:
        """Steps of the next call: about a turn's worth, and no further than something else is to be done."""
        every = [self.request.checkpoint_every, self.request.balance and self.request.balance.every]
        every += [feed.steps for feed in stage.feeds.values()]
        ends = [stage.end - self.step, *(one - self.step % one for one in every if one)]
        worth = int(TURN / self._pace) if self._pace else 1
        return max(1, min(worth, MOST_STEPS, *ends))

    async def _given(self, stage: Stage) -> Given:
        """The arguments of the next call."""
        assert self._supply is not None
        blocks = await self._supply.blocks(self.step)
        return stage.given(self._inputs, self._data, blocks, self._weights)

    # -- its ends

    async def _diverge(self, step: int, records: Records, index: int) -> tuple[Ending, str]:
        """Go back to the last state whose loss is finite; the step that fails has number `step`, from 0."""
        found = await self._diagnosed(step, records, index)
        # No further back than where the run began, or went on.
        good = max(step - 1, self._calls[0].first)
        call = next(one for one in reversed(self._calls) if one.first <= good)
        self._state = await self._on_device(lambda: call.to(good))
        self.step, self._entered, self._bad_step = good, call.stage.number, step + 1
        self._non_finite = found
        return "diverged", divergence(step, good, records, index, found)

    async def _diagnosed(self, step: int, records: Records, index: int) -> NonFinite:
        """Where in the program it begins, in the first of the step's draws that shows it."""
        call, programs = self._calls[-1], self._parts.programs
        state = await self._on_device(lambda: call.to(step))
        value = float(records.value[index])
        norms = {name: float(entries[index]) for name, entries in records.norms.items()}
        for turn in range(self.request.accumulate):
            query = await self._on_device(partial(call.stage.asked_at, state, call.given, step, turn))
            found = await diagnosed_training(programs, self._finished, query, value, norms)
            if found.what:
                break
        return found

    def _end(self, kind: Ending, reason: str) -> None:
        self._close(kind, reason)
        assert self.ended is not None
        self.events.tell(kind, self.ended.model_dump(), last=True)

    def _fail(self, refusal: Refusal) -> None:
        self._close("failed", refusal.detail)
        self.events.tell("failed", Problem.of(refusal).model_dump(exclude_none=True), last=True)

    def _close(self, kind: Ending, reason: str) -> None:
        self.status = kind
        self.ended = Ended(
            name=self.name,
            step=self.step if self._bad_step is None else self._bad_step,
            value=self._progress.value,
            reason=reason,
            checkpoint=self._saved_step,
            seconds=self._elapsed(),
            non_finite=self._non_finite,
        )

    # -- its saves

    async def _save(self) -> None:
        """Save what there is; a disk that cannot take it is told, and the run goes on."""
        saves, state = self._parts.saves, self._state
        if saves is None or state is None or self._entered is None or self._saved_step == self.step:
            return
        stage, step = self._stages[self._entered], self.step
        arrays = await self._on_device(lambda: on_host(whole(state, stage, step)))
        about = about_of(self.request, self._stages, step, self._stand(stage))
        try:
            await asyncio.to_thread(saves.write, self.tenant, self.name, step, arrays, about)
        except Refusal as refusal:
            log.error("the run '%s' could not be saved: %s", self.name, refusal.detail)
            self.events.tell("unsaved", Problem.of(refusal).model_dump(exclude_none=True))
            return
        self._saved_step = step
        self.events.tell("checkpoint", {"step": step})

    def _stand(self, stage: Stage) -> Stand:
        progress = self._progress
        return Stand(
            stage.number,
            self._weights,
            progress.value,
            progress.best,
            self.events.next,
            self._elapsed(),
        )

    # -- the device

    async def _on_device(self, work: Callable[[], T]) -> T:
        return (await self._finished(work)).result

    async def _finished(self, work: Callable[[], T]) -> Finished[T]:
        """`work` when its turn comes, however many wait for theirs."""
        while True:
            try:
                return await self._parts.scheduler.run(work)
            except Refusal as refusal:
                if refusal.code != "overloaded":
                    raise
            await asyncio.sleep(AGAIN)

    async def _unless_stopped(self, work: Awaitable[T]) -> T | None:
        """What `work` gives, or None where the run is stopped before."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stopping.cancel()

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._since
