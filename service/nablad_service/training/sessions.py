"""The sessions of a server, by tenant and name: begun, found again, saved when idle, back when called."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad.quantities import scaled
from nablad.training.messages import (
    Numbered,
    SessionGradient,
    SessionLoad,
    SessionRequest,
    SessionSave,
    SessionStep,
    Standing,
)
from nablad_service.hosting import ModelStore
from nablad_service.language import Limits
from nablad_service.language.places import nearest
from nablad_service.off_loop import off_loop
from nablad_service.reading import Body, decode
from nablad_service.recalling import Lookups
from nablad_service.training.labels import parameter_label
from nablad_service.training.optimisers import rule_of, values_of
from nablad_service.training.restoring import (
    About,
    about_of,
    arrays_of,
    progress_of,
    restored,
    specs_of,
    standing_of,
)
from nablad_service.training.runs import Runs
from nablad_service.training.saves import Saves
from nablad_service.training.session import Device, Progress, Session, Timed
from nablad_service.training.session_questions import Questions, start_of

T = TypeVar("T")
Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"

log = logging.getLogger("nablad")

LONGEST_LOOK = 30.0
"""Seconds between two looks for idle sessions, at most."""


@dataclass(frozen=True)
class SessionLimits:
    """What sessions may take."""

    number: int
    """In memory at once."""
    bytes: int
    """Of all that are in memory."""
    idle_seconds: float
    """After which a session is saved and taken out of memory; 0 for never."""
    wait_seconds: float
    """That a call waits for one before it that has not come."""


@dataclass(frozen=True)
class TrainedNow:
    """What a session has trained, on the host."""

    step: int
    params: Mapping[str, Arrays]
    """By the programs' names of the models."""
    state: Mapping[str, Arrays]
    """Likewise."""
    trained: Arrays
    """Inputs, by name."""


class Sessions:
    """Lives on one event loop. Without `saves` a session ends with the server, and when it is idle."""

    def __init__(
        self,
        device: Device,
        hosted: ModelStore,
        saves: Saves | None,
        limits: SessionLimits,
        programs: Limits,
        runs: Runs,
    ) -> None:
        self._device = device
        self._hosted = hosted
        self._saves = saves
        self._limits = limits
        self._programs = programs
        self._runs = runs
        self._sessions: dict[tuple[str, str], Session] = {}
        self._coming: dict[tuple[str, str], asyncio.Task[Session]] = {}
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for idle sessions."""
        if self._limits.idle_seconds:
            self._watch = asyncio.create_task(self._look_for_idle())

    async def close(self) -> None:
        """Save what is in memory, so that a restarted server goes on with it."""
        if self._watch is not None:
            self._watch.cancel()
        for session in list(self._sessions.values()):
            session.order.close()
            if self._saves is not None and session.loaded and not session.saved:
                try:
                    await self._write(self._saves, session, session.order.done)
                except Refusal as refusal:
                    log.error("the session '%s' ends unsaved: %s", session.name, refusal.detail)

    def loaded(self) -> list[Session]:
        """Those that are in memory."""
        return [one for one in self._sessions.values() if one.loaded]

    # -- what there is

    async def create(self, body: Body, lookups: Lookups) -> Standing:
        """`POST /v1/sessions`.

        Raises:
            Refusal: for whatever cannot be trained, or not so; `session_exists`; `resident_limit` where there
                is no room.
        """

        def read() -> Any:
            request = decode(body, SessionRequest)
            start = start_of(request, lookups)
            rule = rule_of(request.optimiser, start.params)
            values = values_of(request.optimiser, rule, list(start.params))
            return request, start, rule, values, specs_of(start, rule, values)

        # Always on a thread: a step of the optimiser is traced.
        request, start, rule, values, specs = await asyncio.to_thread(read)
        name = request.name or f"session-{secrets.token_hex(6)}"
        session = Session(
            tenant=body.tenant,
            name=name,
            optimiser=request.optimiser,
            rule=rule,
            models=start.models,
            inputs=start.inputs,
            questions=Questions(start.models, start.inputs, self._programs),
            specs=specs,
            device=self._device,
            progress=Progress(None),
            patience=self._limits.wait_seconds,
        )
        async with session.lock:
            self._check_free(body.tenant, name)
            self._sessions[body.tenant, name] = session
            try:
                await self._make_room(session)
                beginning = await self._device.pieces.beginning(start, rule, values)
                finished = await self._device.scheduler.run(
                    lambda: beginning.run(start, values, request.seed)
                )
            except BaseException:
                del self._sessions[body.tenant, name]
                raise
            session.progress = Progress(finished.result)
        return self._standing(session)

    def all(self, tenant: str) -> list[Standing]:
        """Where the sessions of a tenant stand, those of which only saves are there among them."""
        here = {name for owner, name in self._sessions if owner == tenant}
        kept = set(self._saves.names(tenant)) if self._saves is not None else set()
        runs = {one.name for one in self._runs.all(tenant)}
        found = []
        for name in sorted(here | (kept - runs)):
            with suppress(Refusal):  # a damaged save, or one that goes just now
                found.append(self.standing(tenant, name))
        return found

    def standing(self, tenant: str, name: str) -> Standing:
        """Where a session stands; reads no arrays.

        Raises:
            Refusal: `unknown_session`, with the nearest name.
        """
        session = self._sessions.get((tenant, name))
        if session is not None:
            return self._standing(session)
        saves = self._saves
        if saves is None or name not in saves.names(tenant):
            raise self._unknown(tenant, name)
        about = About.read(saves.about(tenant, name), name)
        generation = max(about.generation, saves.generation(tenant, name)) + 1
        return standing_of(name, about, generation, saves.steps(tenant, name), saves.written(tenant, name))

    async def delete(self, tenant: str, name: str) -> None:
        """Forget a session and its saves.

        Raises:
            Refusal: `unknown_session`; `storage` where the saves cannot be removed.
        """
        session = self._sessions.get((tenant, name))
        saves = self._saves
        if session is None:
            if saves is None or name not in saves.names(tenant):
                raise self._unknown(tenant, name)
            await asyncio.to_thread(saves.remove, tenant, name)
            return
        session.gone = True
        async with session.lock:
            if saves is not None:
                await asyncio.to_thread(saves.remove, tenant, name)
            self._sessions.pop((tenant, name), None)
            session.progress = replace(session.progress, state=None)

    # -- what sessions do

    async def gradient(self, name: str, body: Body, lookups: Lookups) -> tuple[SessionGradient, Timed]:
        """`POST /v1/sessions/{name}/gradient`."""
        request = await off_loop(len(body.data), lambda: decode(body, SessionGradient))
        session = await self._find(body.tenant, name)
        read = off_loop(len(body.data), lambda: session.questions.query(request, lookups.take))
        query = await _outcome(read)

        async def work() -> Timed:
            return await session.gradient(request, query())

        return request, await self._call(session, "gradient", request, body, work)

    async def step(self, name: str, body: Body) -> tuple[SessionStep, Timed]:
        """`POST /v1/sessions/{name}/step`."""
        request = decode(body, SessionStep)
        session = await self._find(body.tenant, name)
        return request, await self._call(session, "step", request, body, lambda: session.step(request))

    async def save(self, name: str, body: Body) -> Standing:
        """`POST /v1/sessions/{name}/save`: durable on return."""
        request = decode(body, SessionSave)
        session = await self._find(body.tenant, name)

        async def work() -> None:
            await self._write(self._needed_saves(), session, request.sequence)

        await self._call(session, "save", request, body, work)
        return self._standing(session)

    async def load(self, name: str, body: Body) -> Standing:
        """`POST /v1/sessions/{name}/load`."""
        request = decode(body, SessionLoad)
        session = await self._find(body.tenant, name)

        async def work() -> None:
            saves = self._needed_saves()
            saved, about = await asyncio.to_thread(saves.read, session.tenant, session.name, request.step)
            session.progress = await progress_of(session, saved, About.read(about, session.name))

        await self._call(session, "load", request, body, work)
        return self._standing(session)

    async def params(self, tenant: str, name: str) -> TrainedNow:
        """What a session has trained, after the last call that is done."""
        session = await self._find(tenant, name)
        progress = await self._present(session)

        def work() -> TrainedNow:
            state = progress.state
            assert state is not None
            # In the models' own order, which JAX does not keep.
            params = {
                model: {
                    leaf: np.array(state.params[parameter_label(model, leaf)])
                    for leaf in trainee.resident_params
                }
                for model, trainee in session.models.items()
            }
            models = {
                model: {leaf: np.array(state.models[model][leaf]) for leaf in trainee.resident_state}
                for model, trainee in session.models.items()
            }
            trained = {label: np.array(state.params[label]) for label in session.inputs}
            return TrainedNow(progress.step, params, models, trained)

        return (await self._device.scheduler.run(work)).result

    async def gradients(self, tenant: str, name: str) -> tuple[int, dict[str, NDArray[Any]]]:
        """How many gradients there are since the last step, and their mean by label."""
        session = await self._find(tenant, name)
        progress = await self._present(session)
        if not progress.accumulated:
            return 0, {}

        def work() -> dict[str, NDArray[Any]]:
            assert progress.state is not None
            weight = np.asarray(progress.state.weight)
            return {label: np.asarray(one) / weight for label, one in progress.state.gradients.items()}

        finished = await self._device.scheduler.run(work)
        return progress.accumulated, finished.result

    async def _call(
        self, session: Session, kind: str, request: Numbered, body: Body, work: Callable[[], Awaitable[T]]
    ) -> T:
        """A call in its turn, once."""
        if request.generation != session.generation:
            where = session.whereabouts()
            detail = (
                f"the session '{session.name}' came from a save and stands at step {where['step']}: "
                f"go on with call {where['sequence'] + 1} of generation {session.generation}"
            )
            raise Refusal("session_restored", detail, extra=where)

        async def turn() -> T:
            async with session.lock:
                await self._load(session)
                try:
                    return await work()
                finally:
                    session.touch()

        contents = await off_loop(len(body.data), lambda: _digest(kind, body))
        answer: T = await session.order.call(request.sequence, contents, turn)
        return answer

    async def _present(self, session: Session) -> Progress:
        """What a session has done; from its last save where it is not in memory."""
        session.touch()
        if not session.loaded:
            async with session.lock:
                await self._load(session)
        return session.progress

    # -- in memory and out of it

    async def _find(self, tenant: str, name: str) -> Session:
        """The session of that name; one that only a save holds comes back with the next generation."""
        session = self._sessions.get((tenant, name))
        if session is not None:
            return session
        if self._saves is None or name not in self._saves.names(tenant):
            raise self._unknown(tenant, name)
        if self._runs.under_way(tenant, name):
            detail = f"'{name}' is a run that is under way; stop it, and a session can go on from its save"
            raise Refusal("session_exists", detail)
        coming = self._coming.get((tenant, name))
        if coming is None:
            coming = self._coming[tenant, name] = asyncio.create_task(
                self._restore(self._saves, tenant, name)
            )
            coming.add_done_callback(lambda task: self._coming.pop((tenant, name), None))
        return await asyncio.shield(coming)

    async def _restore(self, saves: Saves, tenant: str, name: str) -> Session:
        saved, document = await asyncio.to_thread(saves.read, tenant, name)
        about = About.read(document, name)
        session = await restored(
            saved,
            about,
            tenant=tenant,
            name=name,
            hosted=self._hosted,
            device=self._device,
            limits=self._programs,
            patience=self._limits.wait_seconds,
        )
        await self._make_room(session)
        # Before anybody is told of it: the next restart must give another one.
        least = about.generation + 1
        session.generation = await asyncio.to_thread(saves.begin_generation, tenant, name, least)
        self._sessions[tenant, name] = session
        return session

    async def _load(self, session: Session) -> None:
        """Have the state in memory; called with the session's lock."""
        if session.gone:
            raise Refusal("unknown_session", f"the session '{session.name}' was deleted")
        if session.loaded:
            return
        saves = self._needed_saves()
        saved, about = await asyncio.to_thread(saves.read, session.tenant, session.name)
        await self._make_room(session)
        session.progress = await progress_of(session, saved, About.read(about, session.name))

    async def _unload(self, session: Session) -> None:
        """Take an idle session out of memory: saved, or for good."""
        async with session.lock:
            if session.order.busy or not session.loaded:
                return
            if self._saves is None:
                session.gone = True
                del self._sessions[session.tenant, session.name]
                return
            if not session.saved:
                await self._write(self._saves, session, session.order.done)
            session.progress = replace(session.progress, state=None, pending=())

    async def _write(self, saves: Saves, session: Session, sequence: int) -> None:
        progress = session.progress
        finished = await self._device.scheduler.run(lambda: arrays_of(progress))
        about = about_of(session, sequence)
        await asyncio.to_thread(
            saves.write, session.tenant, session.name, progress.step, finished.result, about
        )
        session.saved_as = sequence

    async def _make_room(self, coming: Session) -> None:
        """Take idle sessions out of memory until there is room for one more.

        Raises:
            Refusal: `resident_limit` where they cannot be saved, or are all at work.
        """
        while True:
            others = [one for one in self.loaded() if one is not coming]
            taken = sum(one.bytes for one in others) + coming.bytes
            if len(others) < self._limits.number and taken <= self._limits.bytes:
                return
            idle = [one for one in others if not one.order.busy and not one.lock.locked()]
            if self._saves is None or not idle:
                wanted, limit = scaled(coming.bytes, "B"), scaled(self._limits.bytes, "B")
                detail = f"there is no room for a session of {wanted} beside {len(others)} others"
                limits = f"{self._limits.number} sessions and {limit} are kept in memory"
                raise Refusal("resident_limit", f"{detail}: {limits}; delete one that is done")
            await self._unload(min(idle, key=lambda one: one.used))

    async def _look_for_idle(self) -> None:
        while True:
            await asyncio.sleep(min(LONGEST_LOOK, self._limits.idle_seconds / 4))
            before = time.monotonic() - self._limits.idle_seconds
            for session in self.loaded():
                if session.used < before and not session.order.busy:
                    try:
                        await self._unload(session)
                    except Refusal as refusal:
                        log.error("the idle session '%s' stays: %s", session.name, refusal.detail)

    # -- words

    def _standing(self, session: Session) -> Standing:
        steps = [] if self._saves is None else self._saves.steps(session.tenant, session.name)
        return session.standing(steps)

    def _check_free(self, tenant: str, name: str) -> None:
        kept = self._saves.names(tenant) if self._saves is not None else []
        if (tenant, name) in self._sessions or name in kept:
            detail = f"there is a session '{name}', or a save; go on with it, or delete it first"
            raise Refusal("session_exists", detail)

    def _needed_saves(self) -> Saves:
        if self._saves is None:
            detail = "this server keeps no saves: its operator names a folder for them, --checkpoints DIR"
            raise Refusal("no_checkpoints", detail)
        return self._saves

    def _unknown(self, tenant: str, name: str) -> Refusal:
        known = [mine for owner, mine in self._sessions if owner == tenant]
        hint = nearest(name, [*known, *(self._saves.names(tenant) if self._saves is not None else [])])
        if self._saves is None:
            hint += "; this server keeps no saves, so that a session ends with it, and when it is idle"
        return Refusal("unknown_session", f"there is no session '{name}'{hint}")


def _digest(kind: str, body: Body) -> bytes:
    return hashlib.blake2b(body.data, digest_size=16, person=kind.encode()).digest()


async def _outcome(work: Awaitable[T]) -> Callable[[], T]:
    """What work gives, for later: a refusal takes a call's number when it is its turn."""
    try:
        result = await work
    except Refusal as error:
        refusal = error

        def refused() -> T:
            raise refusal

        return refused
    return lambda: result
