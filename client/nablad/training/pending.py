"""Answers that are still to come, and whether somebody looked at them: no failure is to pass unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Outcome(Protocol):
    """What becomes of a call."""

    what: str
    """The call, in words."""

    @property
    def seen(self) -> bool:
        """Whether somebody looked at the result, or the failure."""


class Pending(Future[T]):
    """The answer to a call of a session: `.result()` waits for it; it cannot be cancelled."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.seen = False
        self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> T:
        """The answer; waits for it, at most `timeout` seconds.

        Raises:
            ServiceError: the call was refused.
            SessionRestored: it was not done: the session came from a save.
            ConnectionFailed: no answer came.
            TimeoutError: it takes longer.
        """
        try:
            return super().result(timeout)
        finally:
            self.seen = self.seen or self.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call failed with, or None; waits for it."""
        try:
            return super().exception(timeout)
        finally:
            self.seen = self.seen or self.done()

    def __repr__(self) -> str:
        if not self.done():
            return f"<Pending {self.what}, under way>"
        return f"<Pending {self.what}: {super().exception() or super().result()!r}>"


class AsyncPending(asyncio.Future[T]):
    """The answer to a call of a session: `await` it. Cancelling does not undo the call, which is sent."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.seen = False

    def __await__(self) -> Generator[Any, None, T]:
        try:
            return (yield from super().__await__())
        finally:
            self.seen = self.seen or self.done()

    def result(self) -> T:
        """The answer, once it is there."""
        self.seen = self.seen or self.done()
        return super().result()

    def exception(self) -> BaseException | None:
        """What the call failed with, or None."""
        self.seen = self.seen or self.done()
        return super().exception()

    def succeed(self, result: T) -> None:
        """Give the answer; a caller may have cancelled the wait for it."""
        if not self.done():
            self.set_result(result)

    def fail(self, error: Exception) -> None:
        """Give the failure. The session tells of it where nobody looks: asyncio need not."""
        if not self.done():
            self.set_exception(error)
            super().exception()
