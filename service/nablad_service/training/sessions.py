"""What callers ask of sessions: to begin one, its calls in their order, and to read what it holds."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from nablad import wire
from nablad.messages import NonFinite
from nablad.problems import Refusal
from nablad.training.messages import (
    Numbered,
    SessionGradient,
    SessionLoad,
    SessionRequest,
    SessionSave,
    SessionStep,
    Standing,
)
from nablad_service.requests.reading import Body, decode, validated
from nablad_service.requests.recalling import Lookups
from nablad_service.running.off_loop import off_loop
from nablad_service.training.labels import parameter_label
from nablad_service.training.memory import Memory
from nablad_service.training.optimisers import rule_of, values_of
from nablad_service.training.order import Turn
from nablad_service.training.restoring import (
    About,
    progress_of,
    specs_of,
    standing_of,
)
from nablad_service.training.session import Progress, Session, Timed
from nablad_service.training.session_questions import Questions, start_of

T = TypeVar("T")
NumberedT = TypeVar("NumberedT", bound=Numbered)
Arrays: TypeAlias = "Mapping[str, NDArray[Any]]"


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
    """The paths below `/v1/sessions`. Lives on one event loop."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._device = memory.device
        self._saves = memory.saves

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
            questions=Questions(start.models, start.inputs, self._memory.programs),
            specs=specs,
            device=self._device,
            progress=Progress(None),
            patience=self._memory.limits.wait_seconds,
        )
        async with session.lock:
            self._check_free(body.tenant, name)
            self._memory.sessions[body.tenant, name] = session
            try:
                async with self._memory.room(session):
                    beginning = await self._device.pieces.beginning(start, rule, values)
                    finished = await self._device.scheduler.run(
                        lambda: beginning.run(start, values, request.seed)
                    )
                    session.progress = Progress(finished.result)
            except BaseException:
                session.gone = True
                del self._memory.sessions[body.tenant, name]
                raise
        return self._standing(session)

    def all(self, tenant: str) -> list[Standing]:
        """Where the sessions of a tenant stand, those of which only saves are there among them."""
        here = {name for owner, name in self._memory.sessions if owner == tenant}
        kept = set(self._saves.names(tenant)) if self._saves is not None else set()
        runs = {one.name for one in self._memory.runs.all(tenant)}
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
        session = self._memory.sessions.get((tenant, name))
        if session is not None:
            return self._standing(session)
        saves = self._saves
        if saves is None or name not in saves.names(tenant):
            raise self._memory.unknown(tenant, name)
        about = About.read(saves.about(tenant, name), name)
        generation = max(about.generation, saves.generation(tenant, name)) + 1
        return standing_of(name, about, generation, saves.steps(tenant, name), saves.written(tenant, name))

    async def delete(self, tenant: str, name: str) -> None:
        """Forget a session and its saves.

        Raises:
            Refusal: `unknown_session`; `storage` where the saves cannot be removed; `session_exists` where
                a run of that name is under way.
        """
        session = await self._memory.here(tenant, name)
        saves = self._saves
        if session is None:
            if saves is None or name not in saves.names(tenant):
                raise self._memory.unknown(tenant, name)
            self._memory.runs.check_ended(tenant, name)
            self._memory.runs.forget(tenant, name)
            await asyncio.to_thread(saves.remove, tenant, name)
            return
        session.gone = True
        async with session.lock:
            if saves is not None:
                try:
                    await asyncio.to_thread(saves.remove, tenant, name)
                except Refusal:
                    session.gone = False
                    raise
            self._memory.sessions.pop((tenant, name), None)
            session.progress = replace(session.progress, state=None)

    def stop_waiting(self) -> None:
        """Give up calls that wait for others that have not come: the server stops, and hears of no more."""
        self._memory.stop_waiting()

    # -- what sessions do

    async def gradient(
        self, name: str, body: Body, lookups: Lookups
    ) -> tuple[SessionGradient, Timed, NonFinite | None]:
        """`POST /v1/sessions/{name}/gradient`; the last is a diagnosis, where one is needed."""
        request = await self._asked(name, "gradient", body, SessionGradient)
        session = await self._memory.find(body.tenant, name)
        read = off_loop(len(body.data), lambda: session.questions.query(request, lookups.take))
        query = await _outcome(read)

        async def work(turn: Turn) -> Timed:
            await self._bring(session)
            asked = query()
            await self._memory.choose(session, asked)
            return await session.gradient(turn, request, asked)

        timed = await self._call(session, "gradient", request, body, work)
        # Shielded: a caller that gives up must not take the diagnosis from one that asks again.
        non_finite = None if timed.non_finite is None else await asyncio.shield(timed.non_finite)
        return request, timed, non_finite

    async def step(self, name: str, body: Body) -> tuple[SessionStep, Timed]:
        """`POST /v1/sessions/{name}/step`."""
        request = await self._asked(name, "step", body, SessionStep)
        session = await self._memory.find(body.tenant, name)

        async def work(turn: Turn) -> Timed:
            await self._bring(session)
            return await session.step(turn, request)

        return request, await self._call(session, "step", request, body, work)

    async def save(self, name: str, body: Body) -> Standing:
        """`POST /v1/sessions/{name}/save`: durable on return."""
        request = await self._asked(name, "save", body, SessionSave)
        session = await self._memory.find(body.tenant, name)

        async def work(turn: Turn) -> Standing:
            await turn.alone()
            async with session.lock:
                await self._memory.load(session)
                await self._memory.write(self._memory.needed_saves(), session, request.sequence)
            return self._standing_after(session, request)

        return await self._call(session, "save", request, body, work)

    async def load(self, name: str, body: Body) -> Standing:
        """`POST /v1/sessions/{name}/load`."""
        request = await self._asked(name, "load", body, SessionLoad)
        session = await self._memory.find(body.tenant, name)

        async def work(turn: Turn) -> Standing:
            await turn.alone()
            async with session.lock:
                await self._memory.load(session)
                saves = self._memory.needed_saves()
                saved, about = await asyncio.to_thread(saves.read, session.tenant, session.name, request.step)
                session.progress = await progress_of(session, saved, About.read(about, session.name))
            return self._standing_after(session, request)

        return await self._call(session, "load", request, body, work)

    async def params(self, tenant: str, name: str) -> TrainedNow:
        """What a session has trained, after the last call that is done."""
        session = await self._memory.find(tenant, name)
        progress = await self._present(session)

        def work() -> TrainedNow:
            assert progress.state is not None
            state = progress.state.whole()
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
        session = await self._memory.find(tenant, name)
        progress = await self._present(session)
        if not progress.accumulated:
            return 0, {}

        def work() -> dict[str, NDArray[Any]]:
            assert progress.state is not None
            state = progress.state.whole()
            weight = np.asarray(state.weight)
            return {label: np.asarray(one) / weight for label, one in state.gradients.items()}

        finished = await self._device.scheduler.run(work)
        return progress.accumulated, finished.result

    async def _asked(self, name: str, kind: str, body: Body, message: type[NumberedT]) -> NumberedT:
        """The call in a body; one that is refused takes its number, or those behind it would wait for it."""
        try:
            return await off_loop(len(body.data), lambda: decode(body, message))
        except Refusal as error:
            refusal = error
        number = _number(body)
        if number is not None:

            async def refused(turn: Turn) -> NoReturn:
                raise refusal

            await self._call(await self._memory.find(body.tenant, name), kind, number, body, refused)
        raise refusal

    async def _call(
        self, session: Session, kind: str, request: Numbered, body: Body, work: Callable[[Turn], Awaitable[T]]
    ) -> T:
        """A call in its turn, once."""
        if request.generation != session.generation:
            where = session.whereabouts()
            detail = (
                f"the session '{session.name}' came from a save and stands at step {where['step']}: "
                f"go on with call {where['sequence'] + 1} of generation {session.generation}"
            )
            raise Refusal("session_restored", detail, extra=where)

        async def in_turn(turn: Turn) -> T:
            try:
                return await work(turn)
            finally:
                session.touch()

        contents = await off_loop(len(body.data), lambda: _digest(kind, body))
        answer: T = await session.order.call(request.sequence, contents, in_turn)
        return answer

    async def _bring(self, session: Session) -> None:
        """Have its state in memory, from its last save where it is not."""
        if session.gone or not session.loaded:
            async with session.lock:
                await self._memory.load(session)

    async def _present(self, session: Session) -> Progress:
        """What a session has done."""
        session.touch()
        await self._bring(session)
        return session.progress

    def _standing(self, session: Session) -> Standing:
        steps = [] if self._saves is None else self._saves.steps(session.tenant, session.name)
        return session.standing(steps)

    def _standing_after(self, session: Session, request: Numbered) -> Standing:
        """Where a session stands once a call is done, which is just about to be."""
        return self._standing(session).model_copy(update={"sequence": request.sequence})

    def _check_free(self, tenant: str, name: str) -> None:
        if self._memory.runs.has(tenant, name):
            detail = f"'{name}' is a run; stop it and delete it first, or choose another name"
            raise Refusal("session_exists", detail)
        kept = self._saves.names(tenant) if self._saves is not None else []
        if (tenant, name) in self._memory.sessions or name in kept:
            detail = f"there is a session '{name}', or a save; go on with it, or delete it first"
            raise Refusal("session_exists", detail)


def _digest(kind: str, body: Body) -> bytes:
    return hashlib.blake2b(body.data, digest_size=16, person=kind.encode()).digest()


def _number(body: Body) -> Numbered | None:
    """The number of a call, whatever else is wrong with it; None where that cannot be read."""
    with suppress(Refusal):
        structure = wire.decode_body(body.data, body.media)
        if isinstance(structure, Mapping):
            members = {name: structure[name] for name in Numbered.model_fields if name in structure}
            return validated(members, Numbered)
    return None


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
