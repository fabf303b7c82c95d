"""A session, awaited: what is trained stays on the server, the loop stays with the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, TypeVar

from nablad.calls import Call
from nablad.errors import ConnectionFailed, NabladError, NotFound
from nablad.question import Inputs, Loss, Terms
from nablad.results import Gradient
from nablad.training.calls import Build, SessionCalls
from nablad.training.description import Computation, gradient_members, step_members
from nablad.training.messages import Standing
from nablad.training.opening import Opening
from nablad.training.order import Order
from nablad.training.patience import passes, pauses
from nablad.training.pending import AsyncPending
from nablad.training.results import SessionGradientResult, StepResult, TrainedParams
from nablad.training.session import UNDER_WAY

T = TypeVar("T")


class AsyncSend(Protocol):
    """Sends a call and gives its result."""

    async def __call__(self, call: Call[T], /) -> T: ...


class AsyncSession:
    """Parameters, optimiser state and gradients on the server: `async with client.session(...) as session:`.

    As `Session`, with `AsyncPending` for `Pending`: await it for the answer. `await client.session(...)`
    gives a session that is open without the `async with`; then call `aclose`.

    A call never blocks: what finds four under way is sent when there is room, so a loop should await the
    answers of a step or two before.
    """

    def __init__(self, send: AsyncSend, opening: Opening, patience: float) -> None:
        self._send = send
        self._opening = opening
        self._patience = patience
        self._copied = opening.calls.copied
        self._subject = opening.subject
        self._numbering = asyncio.Lock()
        self._room = asyncio.Semaphore(UNDER_WAY)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._order: Order | None = None

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self._opened().__await__()

    async def _opened(self) -> AsyncSession:
        standing = await self._begin()
        self.name = standing.name
        self._calls = SessionCalls(self._opening.calls, standing.name)
        self._order = Order(standing)
        return self

    async def _begin(self) -> Standing:
        kept, fresh = self._opening.kept(), self._opening.fresh()
        try:
            if kept is not None:
                return await self._send(kept)
        except NotFound:
            if fresh is None:
                raise
        assert fresh is not None
        return await self._send(fresh)

    async def __aenter__(self) -> AsyncSession:
        return await self._opened()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                async with self._numbering:
                    await self._settle()
        finally:
            await self.aclose()

    def __repr__(self) -> str:
        if self._order is None:
            return "<AsyncSession, not open yet>"
        return f"<AsyncSession '{self.name}' at step {self._order.step}>"

    async def aclose(self) -> None:
        """Wait for what is under way; delete the session, unless it was given a name."""
        if self._closed or self._order is None:
            return
        self._closed = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._opening.keep:
            # A server that is gone has nothing to delete, and forgets idle sessions by itself.
            with suppress(ConnectionFailed, NotFound):
                await self._send(self._calls.delete())

    def gradient(
        self,
        loss: Loss,
        *,
        inputs: Inputs | None = None,
        terms: Terms | None = None,
        term_gradients: str = "none",
        outputs: Sequence[str] = (),
        gradients: bool = False,
        weight: float = 1.0,
        nesting: str = "auto",
        strategies: Mapping[str, str] | None = None,
        examples_at_once: int | None = None,
        memory_limit: int | None = None,
        seed: int | None = None,
        step: bool | Mapping[str, Any] = False,
    ) -> AsyncPending[SessionGradientResult]:
        """Compute a loss and its gradients, and add them to what the next step takes the mean of.

        Args:
            loss: a program's text, or a Python function, as for `Client.gradient`.
            inputs: arrays, numbers, trees or handles beside what is trained. They are copied at once: the
                arrays may be filled with the next batch while this one travels. What stays the same from
                call to call is better `put`, and named by its handle.
            terms: named scalars to return, or their weights when the loss is the weighted sum.
            term_gradients: `"norms"` returns the norm of each term's gradients too.
            outputs: named values to return.
            gradients: whether to return the arrays of this call's gradients too.
            weight: of this call in the mean; the number of examples in the batch, say.
            nesting: how inner gradients are differentiated, as for `Client.gradient`.
            strategies: strategies pinned by operator.
            examples_at_once: compute so many examples at a time.
            memory_limit: bytes that the computation may take, by estimate.
            seed: seed of random operators; by default the session draws one.

        Raises:
            SessionRestored: the session came from a save, and nobody has been told.
            ServiceError: an earlier call was refused, and nobody has looked at its answer.
        """
        computation = Computation(
            loss, inputs or {}, terms, nesting, strategies, examples_at_once, memory_limit
        )
        members = gradient_members(
            computation,
            self._subject,
            self._copied,
            term_gradients=term_gradients,
            outputs=outputs,
            gradients=gradients,
            weight=weight,
            seed=seed,
            step=step,
        )
        return self._submit("gradient", self._its.gradient, members)

    def step(
        self,
        *,
        learning_rate: float | None = None,
        clip_norm: float | None = None,
        weight_decay: float | None = None,
        frozen: Sequence[str] | None = None,
    ) -> AsyncPending[StepResult]:
        """Update with the mean of the gradients since the last step.

        What is given here holds for this step, in place of the optimiser's own settings; `frozen` names what
        does not change: `["model.params[layer_0.*]"]`.

        Raises:
            SessionRestored: the session came from a save, and nobody has been told.
            ServiceError: an earlier call was refused, and nobody has looked at its answer.
        """
        members = step_members(learning_rate, clip_norm, weight_decay, frozen)
        return self._submit("step", self._its.step, members)

    def save(self) -> AsyncPending[Standing]:
        """Keep parameters, optimiser state and all else on the server's disk: durable once it is answered."""
        return self._submit("save", self._its.save, {})

    def load(self, step: int | None = None) -> AsyncPending[Standing]:
        """Go back to the save of a step, by default the last one."""
        return self._submit("load", self._its.load, {"step": step})

    async def params(self) -> TrainedParams:
        """What is trained, as the calls before have left it."""
        return await self._read(self._its.params())

    async def gradients(self) -> dict[str, Gradient]:
        """The mean of the gradients since the last step, by what is trained: `"model.params"`, inputs."""
        return await self._read(self._its.gradients())

    async def standing(self) -> Standing:
        """Where the session stands: step, saves, memory."""
        return await self._read(self._its.standing())

    def _submit(self, what: str, build: Build[T], members: Mapping[str, Any]) -> AsyncPending[T]:
        order = self._open()
        generation = order.admit()
        pending: AsyncPending[T] = AsyncPending(what)
        task = asyncio.create_task(self._run(pending, build, members, generation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return pending

    async def _run(
        self, pending: AsyncPending[T], build: Build[T], members: Mapping[str, Any], generation: int
    ) -> None:
        """One call, from its turn to its answer."""
        assert self._order is not None
        try:
            # Locks are given in the order they were asked for: so are the numbers.
            async with self._numbering:
                await self._room.acquire()
                try:
                    while (number := self._order.number(generation)) is None:
                        await self._ask_where_it_stands(self._order)
                except BaseException:
                    self._room.release()
                    raise
            try:
                pending.what += f" {number['sequence']}"
                result = await self._deliver(build(members, number))
            finally:
                self._room.release()
        except Exception as error:
            self._order.failed(pending, error)
            pending.fail(error)
        else:
            self._order.took(number, result)
            pending.succeed(result)

    async def _read(self, call: Call[T]) -> T:
        self._open()
        async with self._numbering:
            await self._settle()
            return await self._deliver(call)

    async def _ask_where_it_stands(self, order: Order) -> None:
        """After a failure, once nothing is under way any more; holds one place itself."""
        await self._take_room(UNDER_WAY - 1)
        try:
            order.follow(await self._deliver(self._its.standing()))
        finally:
            self._release(UNDER_WAY - 1)

    async def _settle(self) -> None:
        """Wait for what is under way, and raise what failed unseen."""
        await self._take_room(UNDER_WAY)
        self._release(UNDER_WAY)
        self._open().raise_unseen()

    async def _take_room(self, places: int) -> None:
        for _ in range(places):
            await self._room.acquire()

    def _release(self, places: int) -> None:
        for _ in range(places):
            self._room.release()

    async def _deliver(self, call: Call[T]) -> T:
        """The answer to a call; sent again while the server does not answer: its number is done once."""
        tries = pauses(self._patience)
        while True:
            try:
                return await self._send(call)
            except NabladError as error:
                pause = next(tries, None) if passes(error) else None
                if pause is None or self._closed:
                    raise
            await asyncio.sleep(pause)

    @property
    def _its(self) -> SessionCalls:
        self._open()
        return self._calls

    def _open(self) -> Order:
        if self._order is None:
            raise ValueError("open the session first: async with client.session(...) as session")
        if self._closed:
            raise ValueError(f"session '{self.name}' is closed")
        return self._order
