"""One session: a training state, and the calls that change it, in their order.

The state is a value that each call replaces as a whole once it is computed: a call that fails leaves it as it
was, and whoever reads it sees it between two calls. The next call may be queued at the device while one is
computed, and begins there with what that one leaves: the device never waits for the event loop between two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nablad.messages import NonFinite
from nablad.problems import Refusal
from nablad.training.messages import Optimiser, SessionGradient, Standing, StepSettings
from nablad_service.engine.placement import Placement
from nablad_service.planning.programs import Programs
from nablad_service.query import Query, Signature, arguments
from nablad_service.running.scheduler import OCCUPIED, Finished, Scheduler
from nablad_service.training.changes import DRAWN, Adding, Batch, Call
from nablad_service.training.computing import Computed, Stepped
from nablad_service.training.diagnosing import diagnosed_training
from nablad_service.training.gradients import asked
from nablad_service.training.optimisers import Rule, StepValues, values_of
from nablad_service.training.order import Order, Turn
from nablad_service.training.packing import State
from nablad_service.training.pieces import Pieces
from nablad_service.training.session_questions import Questions, Trainee
from nablad_service.training.state import TrainingState, size_of

T = TypeVar("T")

MOST_KNOWN = 256
"""Programs of a session that are known by signature."""


@dataclass(frozen=True)
class Device:
    """What all sessions compute with."""

    pieces: Pieces
    scheduler: Scheduler
    placement: Placement
    programs: Programs


@dataclass(frozen=True)
class Pending:
    """A gradient since the last step, where the step computes its loss again."""

    request: SessionGradient
    """Without its inputs, which the batch has."""
    batch: Batch


@dataclass(frozen=True)
class Progress:
    """What calls change; replaced as a whole."""

    state: State | None
    """None where it is not in memory."""
    step: int = 0
    accumulated: int = 0
    pending: tuple[Pending, ...] = ()


@dataclass(eq=False)
class Ahead:
    """What a call makes of the progress: known on the device's thread before it is the session's."""

    adds: bool
    """Whether it leaves gradients to a later step, if it does not fail."""
    progress: Progress | None = None


@dataclass(frozen=True)
class Timed:
    """What a call gave, and where its time went."""

    result: Any
    finished: Finished[Any]
    compiled: bool
    compiling: float
    non_finite: asyncio.Task[NonFinite] | None = None
    """Finds where a gradient stopped being finite, for all who ask; the calls behind it do not wait."""


@dataclass(eq=False)
class Session:
    """A session that is kept. Lives on one event loop."""

    tenant: str
    name: str
    optimiser: Optimiser
    rule: Rule
    models: Mapping[str, Trainee]
    inputs: Mapping[str, NDArray[Any]]
    """Those that are trained, as stand-ins."""
    questions: Questions
    """Reads its calls."""
    specs: TrainingState
    """A state like the session's, without its arrays."""
    device: Device
    progress: Progress
    order: Order = field(init=False)
    done: InitVar[int] = 0
    patience: InitVar[float] = 0.0
    generation: int = 1
    choices: dict[str, dict[int, str]] = field(default_factory=dict)
    """Of the planner, by program: those of its first call here, for good."""
    _known: dict[Signature, Mapping[int, str]] = field(default_factory=dict)
    """The same by signature: a key of `choices` is a digest, too dear for every call."""
    saved_as: int | None = None
    """Number of the last call whose result is saved; None where that is not where it stands."""
    gone: bool = False
    """Whether it was deleted, or never begun, while calls waited."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by what brings its state into memory or takes it out, or saves it."""
    _ahead: Ahead | None = None
    """Of the last call that has begun, while that is under way."""
    used: float = field(default_factory=time.monotonic)
    last_used: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self, done: int, patience: float) -> None:
        self.order = Order(done, patience=patience, about=self.whereabouts)
        self._values = values_of(self.optimiser, self.rule, self.labels)

    @property
    def labels(self) -> list[str]:
        """Of what is trained."""
        return list(self.specs.params)

    @property
    def bytes(self) -> int:
        """Of its state, whether it is in memory or not."""
        return size_of(self.specs)

    def touch(self) -> None:
        """Count as used."""
        self.used, self.last_used = time.monotonic(), datetime.now(UTC)

    @property
    def loaded(self) -> bool:
        """Whether its state is in memory."""
        return self.progress.state is not None

    @property
    def saved(self) -> bool:
        """Whether its last save holds all that was done."""
        return self.saved_as == self.order.done

    def whereabouts(self) -> dict[str, int]:
        """Where it stands, for those whose call does not fit."""
        return {"step": self.progress.step, "sequence": self.order.done, "generation": self.generation}

    async def gradient(self, turn: Turn, request: SessionGradient, query: Query) -> Timed:
        """Compute, and add to the sums; then step, where that is asked for.

        The result is a `Computed`, how many have been added since the last step, and the result of `step`, or
        None.
        """
        if request.step is None:
            return await self._add(turn, request, query)
        if not self.rule.needs_loss:
            return await self._add_and_step(turn, request, query, self._values_of(request.step))
        await turn.alone()
        before = self.progress
        added = await self._add(turn, request, query, next_may_begin=False)
        try:
            stepped = await self.step(turn, request.step)
        except BaseException:
            self.progress = before  # a step that is not done adds no gradient either
            raise
        return replace(added, result=(added.result[0], 0, stepped.result))

    async def _add(
        self, turn: Turn, request: SessionGradient, query: Query, *, next_may_begin: bool = True
    ) -> Timed:
        making = self.device.pieces.accumulation(
            query,
            self.choices_of(query),
            self.specs,
            lambda: self._call(request, query, arguments(query)["inputs"]),
            tells_gradients=request.gradients,
        )
        accumulation, compiled, compiling = await _timed(making)

        def change(before: Progress) -> tuple[Progress, Any]:
            given = self.device.placement.arguments(query)
            call = self._call(request, query, given["inputs"])
            state, told, batch = accumulation.run(self._state(before).whole(), call)
            pending = before.pending
            if self.rule.needs_loss:
                kept = request.model_copy(update={"inputs": {}, "step": None})
                pending = (*pending, Pending(kept, batch.kept()))
            after = Progress(state, before.step, before.accumulated + 1, pending)
            computed = accumulation.computed(told)
            wrong = _wrong(computed, query, accumulation.adding, before, call)
            return after, (computed, after.accumulated, None, wrong)

        finished = await self._change(turn, change, adds=True, next_may_begin=next_may_begin)
        return self._told(finished, compiled, compiling)

    async def _add_and_step(
        self, turn: Turn, request: SessionGradient, query: Query, values: StepValues
    ) -> Timed:
        only = await self._is_first(turn)
        making = self.device.pieces.gradient_step(
            query,
            self.choices_of(query),
            self.specs,
            lambda: self._call(request, query, arguments(query)["inputs"]),
            self.rule,
            values,
            only=only,
            tells_gradients=request.gradients,
        )
        gradient_step, compiled, compiling = await _timed(making)

        def change(before: Progress) -> tuple[Progress, Any]:
            assert only is not bool(before.accumulated)
            given = self.device.placement.arguments(query)
            call = self._call(request, query, given["inputs"])
            state, told = gradient_step.run(self._state(before), call, values)
            computed, stepped = gradient_step.told(told)
            after = Progress(state, before.step + 1)
            wrong = _wrong(computed, query, gradient_step.adding, before, call)
            return after, (computed, 0, (stepped, after.step), wrong)

        finished = await self._change(turn, change)
        return self._told(finished, compiled, compiling)

    def _told(self, finished: Finished[Any], compiled: bool, compiling: float) -> Timed:
        *told, wrong = finished.result
        found = None if wrong is None else asyncio.create_task(self._diagnosed(wrong, told[0]))
        return Timed(tuple(told), finished, compiled, compiling, found)

    async def _diagnosed(self, wrong: Query, computed: Computed) -> NonFinite:
        programs, run = self.device.programs, self.device.scheduler.run
        return await diagnosed_training(programs, run, wrong, computed.value, computed.norms)

    async def step(self, turn: Turn, request: StepSettings) -> Timed:
        """Update with the mean of the gradients. The result is a `Stepped` and the number of the step."""
        values = self._values_of(request)
        batches: list[Batch] = []
        if self.rule.needs_loss:
            await turn.alone()
            _need_gradient(self.progress)
            batches = [one.batch for one in self.progress.pending]
        making = self.device.pieces.step(self.rule, self.specs, values, batches)
        stepping, compiled, compiling = await _timed(making)

        def change(before: Progress) -> tuple[Progress, tuple[Stepped, int]]:
            _need_gradient(before)
            state, figures = stepping.run(self._state(before).whole(), values, batches)
            after = Progress(state, before.step + 1)
            return after, (stepping.stepped(figures), after.step)

        # One that asks for the loss again has to be alone, and so has a gradient that comes with it.
        finished = await self._change(turn, change, next_may_begin=not self.rule.needs_loss)
        return Timed(finished.result, finished, compiled, compiling)

    async def _change(
        self,
        turn: Turn,
        change: Callable[[Progress], tuple[Progress, T]],
        *,
        adds: bool = False,
        next_may_begin: bool = True,
    ) -> Finished[T]:
        """Replace the progress by what `change` makes of it on the device's thread, and give what it tells.

        Raises:
            Refusal: whatever it refuses, the progress being as before; as `Scheduler.run` does.
        """
        before = self._ahead or Ahead(bool(self.progress.accumulated), self.progress)
        own = self._ahead = Ahead(adds)

        def work() -> T | Exception:
            if before.progress is None:
                raise self._lost()
            try:
                own.progress, told = change(before.progress)
            except Exception as error:
                own.progress = before.progress
                return error
            return told

        if next_may_begin:
            # It cannot run before this coroutine waits, and by then the work is in the device's queue.
            turn.let_next_begin()
        try:
            finished = await self.device.scheduler.run(work)
            await turn.alone()
        finally:
            if self._ahead is own:
                self._ahead = None
        if before.progress is not self.progress:  # the call before was given up after all
            raise self._lost()
        result = finished.result
        if isinstance(result, Exception):
            raise result
        assert own.progress is not None
        self.progress = own.progress
        return Finished(result, finished.waited, finished.ran)

    async def _is_first(self, turn: Turn) -> bool:
        """Whether no gradient has come since the last step.

        A call that is under way, one at most, may fail and change nothing: waited for where that matters.
        """
        if self._ahead is not None and self._ahead.adds is not bool(self.progress.accumulated):
            await turn.alone()
        return not self.progress.accumulated

    def _state(self, progress: Progress) -> State:
        if progress.state is None:  # calls begin with it in memory
            raise self.deleted()
        return progress.state

    def _lost(self) -> Refusal:
        """Of a call behind one that the device's thread left behind, or of a session that was deleted."""
        return self.deleted() if self.gone else Refusal("stuck", OCCUPIED, extra={"retry_after": 30})

    def deleted(self) -> Refusal:
        """Of a call that waited too long."""
        return Refusal("unknown_session", f"the session '{self.name}' was deleted")

    def _values_of(self, step: StepSettings) -> StepValues:
        """Of a step; those of the optimiser are read once."""
        named = step.model_fields_set & set(StepSettings.model_fields)
        return values_of(self.optimiser, self.rule, self.labels, step) if named else self._values

    def _call(self, request: SessionGradient, query: Query, inputs: Mapping[str, Any]) -> Call:
        weights = {name: np.asarray(weight, query.signature.dtype) for name, weight in query.weights.items()}
        seed = DRAWN if request.seed is None else request.seed % 2**32
        own = {name: one for name, one in inputs.items() if name not in self.inputs}
        return Call(own, weights, np.float64(request.weight), np.int64(seed))

    def choices_of(self, query: Query) -> Mapping[int, str]:
        """The planner's choices for a program: a run must not change its rounding on the way."""
        found = self._known.get(query.signature)
        if found is None:
            learned = self.device.programs.learned.get(query.signature)
            key = self.device.programs.learned.key(query.signature)
            found = self.choices.setdefault(key, learned.choices if learned else {})
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[query.signature] = found
        return found

    def take_choices(self, choices: Mapping[str, dict[int, str]]) -> None:
        """Follow the choices of a save from now on."""
        self.choices.update(choices)
        self._known.clear()

    def standing(self, steps: list[int]) -> Standing:
        """Where it stands; `steps` are those that were saved."""
        return Standing(
            name=self.name,
            sequence=self.order.done,
            generation=self.generation,
            step=self.progress.step,
            accumulated=self.progress.accumulated,
            saved=steps,
            loaded=self.loaded,
            optimiser=self.optimiser,
            models={name: one.hosted for name, one in self.models.items()},
            bytes=self.bytes,
            last_used=self.last_used,
        )


async def _timed(making: Awaitable[tuple[T, bool]]) -> tuple[T, bool, float]:
    """A compiled piece, whether it had to be compiled now, and the seconds that took."""
    started = time.perf_counter()
    piece, compiled = await making
    return piece, compiled, time.perf_counter() - started if compiled else 0.0


def _wrong(computed: Computed, query: Query, adding: Adding, before: Progress, call: Call) -> Query | None:
    """What was asked of a program whose result is not finite."""
    if computed.finite:
        return None
    assert before.state is not None  # it was computed with
    state = before.state.whole()
    return asked(query, state.params, adding.around(state, call))


def _need_gradient(progress: Progress) -> None:
    if not progress.accumulated:
        detail = "there is no gradient since the last step; call gradient before step"
        raise Refusal("no_gradient", detail)
