"""A session in a storm: many calls at once, in any order, some twice, on a device that fails now and then.

`Storm` stands between the sessions of a server in this process and its device. What it does follows from a
seed, but for the threads, which are as they are.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from nablad import wire
from nablad.problems import Refusal
from nablad_service.app import create_app
from nablad_service.requests.reading import Body
from nablad_service.settings import Settings
from nablad_service.training.restoring import arrays_of
from nablad_service.training.sessions import Sessions

LOSS = "sum((a - c + 0.1 * normal(a, 1, 0)[0])**2)"
START = {"trained": {"a": {"dtype": "float32", "shape": [3], "data": [0.5, -1.0, 2.0]}}, "seed": 3}
ADAMW = {"name": "adamw", "learning_rate": 0.05}
LBFGS = {"name": "lbfgs", "memory_size": 3}
BREAKS = 1.75
"""A weight: a gradient that has it fails on the device, whenever it is computed."""
HOLDS = 1.625
"""Likewise: it keeps the device until it is let `go`."""
TRANSIENT = ("overloaded", "stuck", "stopping", "unknown_handle", "sequence")
"""What a caller sends the same call again for."""
AT_ONCE = 6
"""Calls under way."""


@dataclass(frozen=True)
class Planned:
    """What the call of a number asks for."""

    kind: str
    members: dict[str, Any]


GRADIENT = Planned("gradient", {"loss": LOSS, "inputs": {"c": 0.25}})
BOTH = Planned("gradient", {**GRADIENT.members, "step": {}})
STEP = Planned("step", {})
SAVE = Planned("save", {})
FAILING = Planned("gradient", {**GRADIENT.members, "weight": BREAKS})
HOLDING = Planned("gradient", {**GRADIENT.members, "weight": HOLDS})


def planned(chance: random.Random, length: int, loads: bool) -> list[Planned]:
    """Calls of all kinds, some of which are refused."""
    made: list[Planned] = []
    while len(made) < length:
        gradient = {"loss": LOSS, "inputs": {"c": chance.choice([0.0, 0.25])}}
        kind = chance.choices(range(9), [6, 4, 4, 1, 1, 1, 1, 1, 1])[0]
        step = {} if chance.random() < 0.5 else {"learning_rate": 0.02}
        if kind == 0:
            made.append(Planned("gradient", {**gradient, "weight": chance.choice([1.0, 2.0])}))
        elif kind == 1:
            made.append(Planned("step", step))
        elif kind == 2:
            made.append(Planned("gradient", {**gradient, "step": step}))
        elif kind == 3:
            made.append(Planned("gradient", {**gradient, "weight": BREAKS, "step": step}))
        elif kind == 4:
            made.append(FAILING)
        elif kind == 5:
            made.append(Planned("gradient", {"loss": "sum(a * z)", "inputs": {}}))
        elif kind == 6:
            made.append(Planned("step", {"weight_decay": 0.1}))
        elif kind == 7:
            made.append(SAVE)
        elif loads:
            # Of a save that is sure to be the last: one that goes idle is saved, too.
            made += [SAVE, Planned("load", {})]
    return made


class Storm:
    """Between all sessions of a server and its device; calm but for `blowing`."""

    def __init__(self, app: FastAPI, chance: random.Random) -> None:
        self.sessions: Sessions = app.state.sessions
        self.memory = self.sessions._memory
        self.scheduler, self.pieces = self.memory.device.scheduler, self.memory.device.pieces
        self.lookups = app.state.pipeline.reader.lookups
        device: Any = replace(self.memory.device, scheduler=Scheduling(self), pieces=Compiling(self))  # type: ignore[arg-type]
        self.memory.device = self.sessions._device = device
        self.chance = chance
        self.blows = False
        self.happened: Counter[str] = Counter()
        self.held, self.go = threading.Event(), threading.Event()

    @contextmanager
    def blowing(self) -> Iterator[None]:
        """The device fails now and then."""
        self.blows = True
        try:
            yield
        finally:
            self.blows = False

    def strikes(self, what: str, probability: float) -> bool:
        """Whether it fails so now."""
        struck = self.blows and self.chance.random() < probability
        self.happened[what] += struck
        return struck

    async def begin(self, name: str, optimiser: dict[str, Any]) -> None:
        """Begin a session."""
        body = Body(
            json.dumps({"name": name, "optimiser": optimiser, **START}).encode(), wire.JSON, wire.JSON, "list"
        )
        await self.sessions.create(body, self.lookups(body))

    async def call(self, name: str, number: int, planned: Planned) -> Any:
        """What a call tells, or the code of what refuses it."""
        data = json.dumps({"sequence": number, **planned.members}).encode()
        body = Body(data, wire.JSON, wire.JSON, "list")
        try:
            if planned.kind == "gradient":
                _, timed, _ = await self.sessions.gradient(name, body, self.lookups(body))
                computed, accumulated, stepped = timed.result
                return computed.value, computed.norms, accumulated, stepped
            if planned.kind == "step":
                return (await self.sessions.step(name, body))[1].result
            await getattr(self.sessions, planned.kind)(name, body)
        except Refusal as refusal:
            return refusal.code
        return "done"

    async def insisting(self, name: str, number: int, planned: Planned) -> Any:
        """The same of a caller who goes on trying, leaves, comes again, or sends a call twice."""
        chance = self.chance
        while True:
            times = chance.choice([1, 1, 2])
            calls = [asyncio.ensure_future(self.call(name, number, planned)) for _ in range(times)]
            if chance.random() < 0.15:
                await asyncio.sleep(chance.choice([0, 0.001, 0.003]))
                calls.pop().cancel()
            told = await asyncio.gather(*calls)
            assert all(one == told[0] for one in told)
            if told and told[0] not in TRANSIENT:
                return told[0]
            await asyncio.sleep(chance.choice([0, 0.001, 0.004]))

    async def through(self, name: str, plan: Sequence[Planned]) -> list[Any]:
        """What all calls tell, several under way at once and not in their order."""
        room = asyncio.Semaphore(AT_ONCE)
        order = sorted(range(len(plan)), key=lambda index: index + self.chance.random() * (AT_ONCE - 2))
        told: list[Any] = [None] * len(plan)

        async def one(index: int) -> None:
            async with room:
                told[index] = await self.insisting(name, index + 1, plan[index])

        await asyncio.gather(*[one(index) for index in order])
        return told

    async def read(self, name: str) -> tuple[int, bytes]:
        """Step and parameters, as readers see them."""
        now = await self.sessions.params("", name)
        return now.step, now.trained["a"].tobytes()

    async def whole(self, name: str) -> dict[str, bytes]:
        """All arrays of a session's state."""
        session = self.memory.sessions["", name]
        await self.sessions._bring(session)
        return {path: leaf.tobytes() for path, leaf in arrays_of(session.progress).items()}


@asynccontextmanager
async def inside(folder: Path, **settings: Any) -> AsyncIterator[Storm]:
    """A server in this process, without sockets."""
    app = create_app(Settings(checkpoints=str(folder), tune_after_calls=0, **settings))
    async with app.router.lifespan_context(app):
        yield Storm(app, random.Random(0))


class Scheduling:
    """A queue of the device that is full, occupied or slow now and then."""

    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._inner = storm.scheduler

    async def run(self, work: Callable[[], Any]) -> Any:
        """As `Scheduler.run`."""
        storm = self._storm
        if storm.strikes("overloaded", 0.1):
            raise Refusal("overloaded", "the storm")
        if storm.strikes("stuck", 0.04):
            await asyncio.sleep(0.002)
            raise Refusal("stuck", "the storm")
        pause = 0.003 * storm.strikes("slow", 0.3)

        def slowly() -> Any:
            time.sleep(pause)
            return work()

        if storm.strikes("overrun", 0.04):
            # Its caller is told, and the device's thread goes on with it all the same.
            left = asyncio.ensure_future(self._inner.run(slowly))
            left.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.sleep(storm.chance.choice([0, 0.001, 0.005]))
            raise Refusal("too_slow", "the storm")
        return await self._inner.run(slowly)


class Compiling:
    """Compiled pieces, some of which take a while to come."""

    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._inner = storm.pieces

    async def accumulation(self, *given: Any, **named: Any) -> tuple[Any, bool]:
        """As `Pieces.accumulation`."""
        if self._storm.strikes("compiled", 0.3):
            await asyncio.sleep(0.002)
        made, compiled = await self._inner.accumulation(*given, **named)
        return Failing(made, self._storm), compiled

    async def gradient_step(self, *given: Any, **named: Any) -> tuple[Any, bool]:
        """As `Pieces.gradient_step`."""
        made, compiled = await self._inner.gradient_step(*given, **named)
        return Failing(made, self._storm), compiled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Failing:
    """A program that fails at the weight `BREAKS`, and whose values are gone now and then."""

    def __init__(self, made: Any, storm: Storm) -> None:
        self._made, self._storm = made, storm

    def run(self, state: Any, call: Any, *values: Any) -> Any:
        """As `Accumulation.run`, or `GradientStep.run`."""
        if float(call.weight) == BREAKS:
            raise Refusal("function_failed", "it breaks")
        if float(call.weight) == HOLDS:
            self._storm.held.set()
            assert self._storm.go.wait(30)
        if self._storm.strikes("handle gone", 0.1):
            raise Refusal("unknown_handle", "the storm")
        return self._made.run(state, call, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)
