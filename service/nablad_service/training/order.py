"""The calls of a session: in the order of their numbers, each once, whatever order they come in.

Several may be under way at once. A call begins when the one before it lets it, at the latest when that is
done; answers come in order, too. One that comes again, since the connection broke say, gets the answer of the
first. A call that is refused has been done: what waits behind it goes on. Only one that the server could not
begin takes no number and may be sent again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nablad.problems import CODES, Refusal

AHEAD = 16
"""Calls that may wait for those before them, and answers that are kept."""
BEGUN = 2
"""Calls that may have begun and not be done: one is computed, the next waits at the device for its end. With
more of them, other sessions would wait longer for their turns on the device."""


@dataclass(eq=False)
class Turn:
    """A call's place among the others, for its work to use."""

    number: int
    order: Order
    _let: bool = False

    async def alone(self) -> None:
        """Wait until all calls before this one are done.

        Raises:
            Refusal: `stuck` where this one has let the next begin, and one before it gave its number back.
        """
        while self.order.done < self.number - 1:
            if self._let and self.order.begun < self.number:
                detail = "a call before this one could not be run; send both again"
                raise Refusal("stuck", detail, extra={"retry_after": 1})
            await self.order.moved(self.number)

    def let_next_begin(self) -> None:
        """Nothing that the next call does comes before what this one does from now on."""
        self._let = True
        if self.order.begun == self.number - 1:
            self.order.advance(begun=self.number)


Work = Callable[[Turn], Awaitable[Any]]


@dataclass(frozen=True)
class _Known:
    """A call that is under way, or was done lately."""

    contents: bytes
    task: asyncio.Task[Any]


class Order:
    """Lives on one event loop.

    Args:
        done: number of the last call that was done.
        patience: seconds that calls wait for one before them that has not come.
        about: members of a refusal that say where the session stands.
    """

    def __init__(self, done: int, *, patience: float, about: Callable[[], dict[str, Any]]) -> None:
        self.done = done
        self.begun = done
        """Number of the last call that lets the next begin; that one may not be done yet."""
        self._patience = patience
        self._about = about
        self._known: dict[int, _Known] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        """By number: a call waits for one thing at a time."""
        self._timer: asyncio.TimerHandle | None = None
        """Runs while calls wait for one that has not come."""
        self._stopping = False

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return any(number > self.done for number in self._known)

    async def call(self, number: int, contents: bytes, work: Work) -> Any:
        """The answer of call `number`: of `work` when its turn comes, or the one that it had already.

        Args:
            number: 1 for the first call.
            contents: a digest of the call: another one under the same number is refused.
            work: is done once, though its caller may leave.

        Raises:
            Refusal: `sequence` where the number is out of order; whatever the work refuses.
        """
        known = self._known.get(number)
        if known is None:
            self._check(number)
            known = _Known(contents, asyncio.create_task(self._in_turn(number, work)))
            # A caller that left does not ask how it ended.
            known.task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._known[number] = known
            self._look_for_missing()
        elif known.contents != contents:
            free = next(one for one in itertools.count(self.done + 1) if one not in self._known)
            detail = f"call {number} was another one; the last that is done is {self.done}"
            raise self._refusal(f"{detail}, send the next as {free}")
        try:
            return await asyncio.shield(known.task)
        except asyncio.CancelledError:
            if known.task.cancelled():  # it was not the caller who gave up
                raise Refusal(
                    "stopping", "the server stopped before the call was done; send it again"
                ) from None
            raise

    def stop_waiting(self) -> None:
        """No call comes any more: give up those that wait for one that has not, now and later."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._lose_patience()

    async def close(self) -> None:
        """Give up what waits, and what is under way: on return nothing changes any more."""
        tasks = [known.task for known in self._known.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def advance(self, *, begun: int, done: int | None = None) -> None:
        """Wake whom it concerns that calls have begun, or are done."""
        self.begun = begun
        self.done = self.done if done is None else done
        for number in (self.done + 1, self.begun + 1):
            self._wake(number)
        self._look_for_missing()

    async def moved(self, number: int) -> None:
        """Wait until something happens that concerns call `number`."""
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._look_for_missing()
        try:
            await waiting
        finally:
            self._waiting.pop(number, None)

    def _check(self, number: int) -> None:
        if number <= self.done:
            detail = f"call {number} was done long ago, and its answer is no longer kept"
            raise self._refusal(f"{detail}; the last that is done is {self.done}")
        if number > self.done + AHEAD:
            detail = f"call {number} is too far ahead: the last that is done is {self.done}"
            raise self._refusal(f"{detail}, and at most {AHEAD} may be under way")

    async def _in_turn(self, number: int, work: Work) -> Any:
        turn, taken = Turn(number, self), False
        try:
            while not (self.begun == number - 1 and number - self.done <= BEGUN):
                await self.moved(number)
            try:
                answer = await work(turn)
            except Exception as error:
                if not _may_come_again(error):
                    await turn.alone()
                    taken = True
                raise
            await turn.alone()
            taken = True
            return answer
        finally:
            if taken:
                self._known.pop(number - AHEAD, None)
                self.advance(begun=max(number, self.begun), done=number)
            else:
                self._give_back(number)

    def _give_back(self, number: int) -> None:
        """What began after it has to give its own number back, too."""
        self._known.pop(number, None)
        self.begun = min(number - 1, self.begun)
        self._wake(number + 1)
        self._look_for_missing()

    def _wake(self, number: int) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _look_for_missing(self) -> None:
        """Begin, or cease, to be impatient."""
        missing = self.begun + 1 not in self._known and any(one > self.begun + 1 for one in self._waiting)
        if missing and self._timer is None:
            patience = 0.0 if self._stopping else self._patience
            self._timer = asyncio.get_running_loop().call_later(patience, self._lose_patience)
        elif not missing and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose_patience(self) -> None:
        self._timer = None
        missing = self.begun + 1
        for number, waiting in self._waiting.items():
            if number <= missing or waiting.done():
                continue
            if self._stopping:
                detail = f"the server stops, and call {missing} before this one has not come; send both again"
                waiting.set_exception(Refusal("stopping", detail))
            else:
                detail = f"call {number} waited {self._patience:g} s for call {missing}, which did not come"
                waiting.set_exception(self._refusal(f"{detail}; send that first"))

    def _refusal(self, detail: str) -> Refusal:
        return Refusal("sequence", detail, extra=self._about())


def _may_come_again(error: Exception) -> bool:
    """Whether the same call may succeed: the server is busy, or its caller sends what it lacks."""
    if not isinstance(error, Refusal):
        return False
    return CODES[error.code].status == 503 or error.code in ("unknown_handle", "sequence")
