"""One session: a training state, and the calls that change it, in their order.

The state is a value that each call replaces as a whole once it is computed: a call that fails leaves it as it
was, and whoever reads it sees it between two calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad.training.messages import Optimiser, SessionGradient, Standing, StepSettings
from nablad_service.engine.placement import Placement
from nablad_service.planning.learned_plans import LearnedPlans
from nablad_service.query import Query, Signature, arguments
from nablad_service.running.scheduler import Finished, Scheduler
from nablad_service.training.computing import DRAWN, Batch, Call, Computed, Stepped
from nablad_service.training.optimisers import Rule, StepValues, values_of
from nablad_service.training.order import Order
from nablad_service.training.pieces import Pieces
from nablad_service.training.session_questions import Questions, Trainee
from nablad_service.training.state import TrainingState, size_of

MOST_KNOWN = 256
"""Programs of a session that are known by signature."""


@dataclass(frozen=True)
class Device:
    """What all sessions compute with."""

    pieces: Pieces
    scheduler: Scheduler
    placement: Placement
    learned: LearnedPlans


@dataclass(frozen=True)
class Pending:
    """A gradient since the last step, where the step computes its loss again."""

    request: SessionGradient
    """Without its inputs, which the batch has."""
    batch: Batch


@dataclass(frozen=True)
class Progress:
    """What calls change; replaced as a whole."""

    state: TrainingState | None
    """None where it is not in memory."""
    step: int = 0
    accumulated: int = 0
    pending: tuple[Pending, ...] = ()


@dataclass(frozen=True)
class Timed:
    """What a call gave, and where its time went."""

    result: Any
    finished: Finished[Any]
    compiled: bool
    compiling: float


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
    """Whether it was deleted while calls waited."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by what reads and replaces its progress."""
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

    async def gradient(self, request: SessionGradient, query: Query) -> Timed:
        """Compute, and add to the sums; then step, where that is asked for. The turn of a call.

        The result is a `Computed`, how many have been added since the last step, and the result of `step`, or
        None.
        """
        progress, before = self.progress, self._state()
        values = None if request.step is None else self._values_of(request.step)
        started = time.perf_counter()
        accumulation, compiled = await self.device.pieces.accumulation(
            query,
            self.choices_of(query),
            before,
            self._call(request, query, arguments(query)["inputs"]),
            with_gradients=request.gradients,
        )
        stepping = None
        if values is not None and not self.rule.needs_loss:
            stepping, also = await self.device.pieces.step(self.rule, before, values, [])
            compiled = compiled or also
        compiling = time.perf_counter() - started if compiled else 0.0

        def work() -> tuple[TrainingState, Computed, Batch | None, Stepped | None]:
            given = self.device.placement.arguments(query)
            call = self._call(request, query, given["inputs"])
            state, told, batch = accumulation.run(before, call)
            if stepping is None or values is None:
                kept = batch.kept() if self.rule.needs_loss else None
                return state, accumulation.computed(told), kept, None
            state, figures = stepping.run(state, values, [])
            return state, accumulation.computed(told), None, stepping.stepped(figures)

        finished = await self.device.scheduler.run(work)
        state, computed, batch, stepped = finished.result
        if stepped is not None:
            self.progress = Progress(state, progress.step + 1)
            return Timed((computed, 0, (stepped, self.progress.step)), finished, compiled, compiling)
        pending = progress.pending
        if batch is not None:
            kept = request.model_copy(update={"inputs": {}, "step": None})
            pending = (*pending, Pending(kept, batch))
        self.progress = Progress(state, progress.step, progress.accumulated + 1, pending)
        taken = None if request.step is None else (await self.step(request.step)).result
        return Timed((computed, self.progress.accumulated, taken), finished, compiled, compiling)

    async def step(self, request: StepSettings) -> Timed:
        """Update with the mean of the gradients. The turn of a call."""
        progress, before = self.progress, self._state()
        if not progress.accumulated:
            detail = "there is no gradient since the last step; call gradient before step"
            raise Refusal("no_gradient", detail)
        values = self._values_of(request)
        batches = [one.batch for one in progress.pending]
        started = time.perf_counter()
        stepping, compiled = await self.device.pieces.step(self.rule, before, values, batches)
        compiling = time.perf_counter() - started if compiled else 0.0

        def work() -> tuple[TrainingState, Stepped]:
            state, figures = stepping.run(before, values, batches)
            return state, stepping.stepped(figures)

        finished = await self.device.scheduler.run(work)
        state, stepped = finished.result
        self.progress = Progress(state, progress.step + 1)
        return Timed((stepped, self.progress.step), finished, compiled, compiling)

    def _values_of(self, step: StepSettings) -> StepValues:
        """Of a step; those of the optimiser are read once."""
        named = step.model_fields_set & set(StepSettings.model_fields)
        return values_of(self.optimiser, self.rule, self.labels, step) if named else self._values

    def _state(self) -> TrainingState:
        assert self.progress.state is not None
        return self.progress.state

    def _call(self, request: SessionGradient, query: Query, inputs: Mapping[str, Any]) -> Call:
        weights = {name: np.asarray(weight, query.signature.dtype) for name, weight in query.weights.items()}
        seed = DRAWN if request.seed is None else request.seed % 2**32
        own = {name: one for name, one in inputs.items() if name not in self.inputs}
        return Call(own, weights, np.float64(request.weight), np.int64(seed))

    def choices_of(self, query: Query) -> Mapping[int, str]:
        """The planner's choices for a program: a run must not change its rounding on the way."""
        found = self._known.get(query.signature)
        if found is None:
            learned = self.device.learned.get(query.signature)
            key = self.device.learned.key(query.signature)
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
