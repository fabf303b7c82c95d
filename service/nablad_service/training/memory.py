"""Which sessions are in memory: found by name, brought back from saves, saved and let go of when idle."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from nablad.problems import Refusal
from nablad.quantities import scaled
from nablad_service.hosting import ModelStore
from nablad_service.language import Limits
from nablad_service.language.places import nearest
from nablad_service.query import Query
from nablad_service.training.restoring import About, about_of, arrays_of, progress_of, restored
from nablad_service.training.runs import Runs
from nablad_service.training.saves import Saves
from nablad_service.training.session import Device, Session

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


class Memory:
    """All sessions of a server that were called since it began. Lives on one event loop.

    Without `saves` a session ends with the server, and when it is idle. `sessions` are found by tenant and
    name; runs have others.
    """

    def __init__(
        self,
        device: Device,
        hosted: ModelStore,
        saves: Saves | None,
        limits: SessionLimits,
        programs: Limits,
        sessions: dict[tuple[str, str], Session],
        runs: Runs,
    ) -> None:
        self.device = device
        self._hosted = hosted
        self.saves = saves
        self.limits = limits
        self.programs = programs
        self.runs = runs
        self.sessions = sessions
        self._coming: dict[tuple[str, str], asyncio.Task[Session]] = {}
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for idle sessions."""
        if self.limits.idle_seconds:
            self._watch = asyncio.create_task(self._look_for_idle())

    async def close(self) -> None:
        """Save what is in memory, so that a restarted server goes on with it."""
        if self._watch is not None:
            self._watch.cancel()
        for session in list(self.sessions.values()):
            session.order.close()
            if self.saves is not None and session.loaded and not session.saved:
                try:
                    await self.write(self.saves, session, session.order.done)
                except Refusal as refusal:
                    log.error("the session '%s' ends unsaved: %s", session.name, refusal.detail)

    def loaded(self) -> list[Session]:
        """Those that are in memory."""
        return [one for one in self.sessions.values() if one.loaded]

    async def find(self, tenant: str, name: str) -> Session:
        """The session of that name; one that only a save holds comes back with the next generation.

        Raises:
            Refusal: `unknown_session`, `unfit_save`, `resident_limit`, or `session_exists` where a run of
                that name is under way.
        """
        session = self.sessions.get((tenant, name))
        if session is not None:
            return session
        if self.saves is None or name not in self.saves.names(tenant):
            raise self.unknown(tenant, name)
        self.runs.check_ended(tenant, name)
        coming = self._coming.get((tenant, name))
        if coming is None:
            coming = self._coming[tenant, name] = asyncio.create_task(self._restore(self.saves, tenant, name))
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
            device=self.device,
            limits=self.programs,
            patience=self.limits.wait_seconds,
        )
        await self.make_room(session)
        # Before anybody is told of it: the next restart must give another one.
        least = about.generation + 1
        session.generation = await asyncio.to_thread(saves.begin_generation, tenant, name, least)
        session.take_choices(await asyncio.to_thread(saves.choices, tenant, name))
        self.runs.check_ended(tenant, name)  # it may have been resumed meanwhile
        self.runs.forget(tenant, name)
        self.sessions[tenant, name] = session
        return session

    async def load(self, session: Session) -> None:
        """Have the state in memory; called with the session's lock.

        Raises:
            Refusal: `unknown_session` where it was deleted meanwhile, `unfit_save`, `resident_limit`.
        """
        if session.gone:
            raise Refusal("unknown_session", f"the session '{session.name}' was deleted")
        if session.loaded:
            return
        saves = self.needed_saves()
        saved, about = await asyncio.to_thread(saves.read, session.tenant, session.name)
        await self.make_room(session)
        session.progress = await progress_of(session, saved, About.read(about, session.name))

    async def _unload(self, session: Session) -> None:
        """Take an idle session out of memory: saved, or for good."""
        async with session.lock:
            if session.order.busy or not session.loaded:
                return
            if self.saves is None:
                session.gone = True
                del self.sessions[session.tenant, session.name]
                return
            if not session.saved:
                await self.write(self.saves, session, session.order.done)
            session.progress = replace(session.progress, state=None, pending=())

    async def write(self, saves: Saves, session: Session, sequence: int) -> None:
        """Save a session as it stands after the call of that number; durable on return.

        Raises:
            Refusal: `storage`.
        """
        progress = session.progress
        finished = await self.device.scheduler.run(lambda: arrays_of(progress))
        about = about_of(session, sequence)
        await asyncio.to_thread(
            saves.write, session.tenant, session.name, progress.step, finished.result, about
        )
        session.saved_as = sequence

    async def choose(self, session: Session, query: Query) -> None:
        """Choose how a program is computed at its first call in a session, for good.

        What was done since a save is done again after a restart, and has to come out the same: by then the
        server may have learned otherwise, so that a choice is durable before the first answer that rests on
        it. Where there is no save, nothing is done again.
        """
        known = len(session.choices)
        session.choices_of(query)
        if len(session.choices) == known or self.saves is None:
            return
        async with session.lock:
            if session.gone or not self.saves.steps(session.tenant, session.name):
                return
            write = self.saves.write_choices
            try:
                await asyncio.to_thread(write, session.tenant, session.name, session.choices)
            except Refusal as refusal:
                # As with a run that cannot be saved: it goes on, and the next save is refused to its caller.
                log.error("how '%s' computes a program is not kept: %s", session.name, refusal.detail)

    async def make_room(self, coming: Session) -> None:
        """Take idle sessions out of memory until there is room for one more.

        Raises:
            Refusal: `resident_limit` where they cannot be saved, or are all at work.
        """
        while True:
            others = [one for one in self.loaded() if one is not coming]
            taken = sum(one.bytes for one in others) + coming.bytes
            if len(others) < self.limits.number and taken <= self.limits.bytes:
                return
            idle = [one for one in others if not one.order.busy and not one.lock.locked()]
            if self.saves is None or not idle:
                wanted, limit = scaled(coming.bytes, "B"), scaled(self.limits.bytes, "B")
                detail = f"there is no room for a session of {wanted} beside {len(others)} others"
                limits = f"{self.limits.number} sessions and {limit} are kept in memory"
                raise Refusal("resident_limit", f"{detail}: {limits}; delete one that is done")
            await self._unload(min(idle, key=lambda one: one.used))

    async def _look_for_idle(self) -> None:
        while True:
            await asyncio.sleep(min(LONGEST_LOOK, self.limits.idle_seconds / 4))
            before = time.monotonic() - self.limits.idle_seconds
            for session in self.loaded():
                if session.used < before and not session.order.busy:
                    try:
                        await self._unload(session)
                    except Refusal as refusal:
                        log.error("the idle session '%s' stays: %s", session.name, refusal.detail)
                    except Exception:
                        log.exception("the idle session '%s' stays", session.name)

    def needed_saves(self) -> Saves:
        """The saves of the server.

        Raises:
            Refusal: `no_checkpoints` where it keeps none.
        """
        if self.saves is None:
            detail = "this server keeps no saves: its operator names a folder for them, --checkpoints DIR"
            raise Refusal("no_checkpoints", detail)
        return self.saves

    def unknown(self, tenant: str, name: str) -> Refusal:
        """The refusal of a name that no session has."""
        known = [mine for owner, mine in self.sessions if owner == tenant]
        hint = nearest(name, [*known, *(self.saves.names(tenant) if self.saves is not None else [])])
        if self.saves is None:
            hint += "; this server keeps no saves, so that a session ends with it, and when it is idle"
        return Refusal("unknown_session", f"there is no session '{name}'{hint}")
