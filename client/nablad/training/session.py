"""A session: what is trained stays on the server, the loop stays with the caller."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from nablad.training.pending import Pending
from nablad.training.results import SessionGradientResult, StepResult, TrainedParams

T = TypeVar("T")

UNDER_WAY = 4
"""Calls of a session that are sent before the first of them is answered: two steps of one gradient each."""


class Send(Protocol):
    """Sends a call and gives its result."""

    def __call__(self, call: Call[T], /) -> T: ...


class Session:
    """Parameters, optimiser state and gradients on the server: `with client.session(...) as session:`.

    What changes the session (`gradient`, `step`, `save`, `load`) is sent at once and done in the order of the
    calls; each gives a `Pending`, whose `.result()` waits for the answer, so that the next batch is on its
    way while this one is computed. Four calls are under way at most: the next one waits for room. What only
    reads (`params`, `gradients`, `standing`) waits for all calls before it and gives its answer.

    A call that is refused changes nothing; those that are under way behind it are done all the same. A
    failure whose `Pending` nobody has looked at is raised by the next call, or at the end of the `with`.

    Where the connection breaks, a call is sent again, and done once. Where the server was started again,
    the session goes on from its last save, and `SessionRestored` says from which step: send again what came
    after it.

    At the end of the `with` the session is deleted, unless it was given a name: then the server keeps it, and
    `client.session(name=..., resume=True)` goes on with it.
    """

    def __init__(self, send: Send, opening: Opening, patience: float) -> None:
        self._send = send
        self._patience = patience
        self._keep = opening.keep
        self._copied = opening.calls.copied
        self._subject = opening.subject
        standing = self._begin(opening)
        self.name = standing.name
        self._its = SessionCalls(opening.calls, standing.name)
        self._order = Order(standing)
        self._numbering = threading.Lock()
        self._room = threading.Semaphore(UNDER_WAY)
        self._threads = ThreadPoolExecutor(UNDER_WAY, f"nablad session {standing.name}")
        self._closed = threading.Event()

    def _begin(self, opening: Opening) -> Standing:
        kept, fresh = opening.kept(), opening.fresh()
        try:
            if kept is not None:
                return self._send(kept)
        except NotFound:
            if fresh is None:
                raise
        assert fresh is not None
        return self._send(fresh)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._settle()
        finally:
            self.close()

    def __repr__(self) -> str:
        return f"<Session '{self.name}' at step {self._order.step}>"

    def close(self) -> None:
        """Wait for what is under way; delete the session, unless it was given a name."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._threads.shutdown()
        if not self._keep:
            # A server that is gone has nothing to delete, and forgets idle sessions by itself.
            with suppress(ConnectionFailed, NotFound):
                self._send(self._its.delete())

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
    ) -> Pending[SessionGradientResult]:
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
            step: whether to update at once, as `step` does, and with which of its settings: one call in
                place of two. What came of it is `stepped` of the result.

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
    ) -> Pending[StepResult]:
        """Update with the mean of the gradients since the last step.

        What is given here holds for this step, in place of the optimiser's own settings; `frozen` names what
        does not change: `["model.params[layer_0.*]"]`.

        Raises:
            SessionRestored: the session came from a save, and nobody has been told.
            ServiceError: an earlier call was refused, and nobody has looked at its answer.
        """
        members = step_members(learning_rate, clip_norm, weight_decay, frozen)
        return self._submit("step", self._its.step, members)

    def save(self) -> Pending[Standing]:
        """Keep parameters, optimiser state and all else on the server's disk: durable once it is answered."""
        return self._submit("save", self._its.save, {})

    def load(self, step: int | None = None) -> Pending[Standing]:
        """Go back to the save of a step, by default the last one."""
        return self._submit("load", self._its.load, {"step": step})

    def params(self) -> TrainedParams:
        """What is trained, as the calls before have left it."""
        return self._read(self._its.params())

    def gradients(self) -> dict[str, Gradient]:
        """The mean of the gradients since the last step, by what is trained: `"model.params"`, inputs."""
        return self._read(self._its.gradients())

    def standing(self) -> Standing:
        """Where the session stands: step, saves, memory."""
        return self._read(self._its.standing())

    def _submit(self, what: str, build: Build[T], members: Mapping[str, Any]) -> Pending[T]:
        with self._numbering:
            self._check_open()
            self._room.acquire()
            try:
                while (number := self._order.number()) is None:
                    self._ask_where_it_stands()
                pending: Pending[T] = Pending(f"{what} {number['sequence']}")
                self._threads.submit(self._run, build(members, number), number, pending)
            except BaseException:
                self._room.release()
                raise
        return pending

    def _run(self, call: Call[T], number: Mapping[str, int], pending: Pending[T]) -> None:
        try:
            result = self._deliver(call)
        except BaseException as error:
            self._order.failed(pending, error)
            pending.set_exception(error)
        else:
            self._order.took(number, result)
            pending.set_result(result)
        finally:
            self._room.release()

    def _read(self, call: Call[T]) -> T:
        with self._numbering:
            self._check_open()
            self._settle()
            return self._deliver(call)

    def _ask_where_it_stands(self) -> None:
        """After a failure, once nothing is under way any more; holds one place itself."""
        self._take_room(UNDER_WAY - 1)
        try:
            self._order.follow(self._deliver(self._its.standing()))
        finally:
            self._room.release(UNDER_WAY - 1)

    def _settle(self) -> None:
        """Wait for what is under way, and raise what failed unseen."""
        self._take_room(UNDER_WAY)
        self._room.release(UNDER_WAY)
        self._order.raise_unseen()

    def _take_room(self, places: int) -> None:
        for _ in range(places):
            self._room.acquire()

    def _deliver(self, call: Call[T]) -> T:
        """The answer to a call; sent again while the server does not answer: its number is done once."""
        tries = pauses(self._patience)
        while True:
            try:
                return self._send(call)
            except NabladError as error:
                pause = next(tries, None) if passes(error) else None
                if pause is None or self._closed.wait(pause):
                    raise

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ValueError(f"session '{self.name}' is closed")
