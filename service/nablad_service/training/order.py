"""The calls of a session: in the order of their numbers, each once, whatever order they come in.

Several may be under way at once: a call waits for those before it. One that comes again, since the connection
broke say, gets the answer of the first. A call that is refused has been done, too: what waits behind it goes
on. Only one that the server could not begin takes no number and may be sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from nablad.problems import CODES, Refusal

AHEAD = 16
"""Calls that may wait for those before them, and answers that are kept."""


@dataclass(frozen=True)
class _Known:
    """A call that is under way, or was done lately."""

    contents: bytes
    task: asyncio.Task[Any]


class Order:
    """Lives on one event loop.

    Args:
        done: number of the last call that was done.
        patience: seconds that a call waits for one before it that has not come.
        about: members of a refusal that say where the session stands.
    """

    def __init__(self, done: int, *, patience: float, about: Callable[[], dict[str, Any]]) -> None:
        self.done = done
        self._patience = patience
        self._about = about
        self._known: dict[int, _Known] = {}
        self._moved = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return any(number > self.done for number in self._known)

    async def call(self, number: int, contents: bytes, work: Callable[[], Awaitable[Any]]) -> Any:
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
            known = _Known(contents, asyncio.create_task(self._turn(number, work)))
            # A caller that left does not ask how it ended.
            known.task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._known[number] = known
        elif known.contents != contents:
            detail = f"call {number} was another one; the last that is done is {self.done}"
            raise self._refusal(f"{detail}, send the next as {max(self._known) + 1}")
        try:
            return await asyncio.shield(known.task)
        except asyncio.CancelledError:
            if known.task.cancelled():  # it was not the caller who gave up
                raise Refusal(
                    "stopping", "the server stopped before the call was done; send it again"
                ) from None
            raise

    def close(self) -> None:
        """Give up what waits."""
        for known in self._known.values():
            known.task.cancel()

    def _check(self, number: int) -> None:
        if number <= self.done:
            detail = f"call {number} was done long ago, and its answer is no longer kept"
            raise self._refusal(f"{detail}; the last that is done is {self.done}")
        if number > self.done + AHEAD:
            detail = f"call {number} is too far ahead: the last that is done is {self.done}"
            raise self._refusal(f"{detail}, and at most {AHEAD} may be under way")

    async def _turn(self, number: int, work: Callable[[], Awaitable[Any]]) -> Any:
        taken = False
        try:
            await self._wait_for_those_before(number)
            try:
                answer = await work()
            except Exception as error:
                taken = not (isinstance(error, Refusal) and _may_come_again(error))
                raise
            taken = True
            return answer
        finally:
            if taken:
                self.done = number
                self._known.pop(number - AHEAD, None)
            else:
                self._known.pop(number, None)
            self._moved.set()
            self._moved = asyncio.Event()

    async def _wait_for_those_before(self, number: int) -> None:
        while self.done < number - 1:
            moved, patience = self._moved, self._patience
            if self.done + 1 in self._known:
                await moved.wait()
                continue
            try:
                await asyncio.wait_for(moved.wait(), patience)
            except TimeoutError:
                missing = self.done + 1
                if missing not in self._known:
                    detail = f"call {number} waited {patience:g} s for call {missing}, which did not come"
                    raise self._refusal(f"{detail}; send that first") from None

    def _refusal(self, detail: str) -> Refusal:
        return Refusal("sequence", detail, extra=self._about())


def _may_come_again(refusal: Refusal) -> bool:
    """Whether the same call may succeed: the server is busy, or its caller puts a lost value again."""
    return CODES[refusal.code].status == 503 or refusal.code == "unknown_handle"
