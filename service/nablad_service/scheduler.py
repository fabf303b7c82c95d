"""One device, one thread: work waits its turn in a bounded queue. Knows neither HTTP nor JAX."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from nablad.problems import Refusal
from nablad_service.watched_threads import Overrun, Stuck, WatchedThreads

T = TypeVar("T")

OCCUPIED = "the device is occupied by a run that does not end, and nothing else can run; ask again later"
"""For callers and for `/health/ready` alike."""


@dataclass(frozen=True)
class Finished(Generic[T]):
    """A result, how long it waited and how long it ran, in seconds."""

    result: T
    waited: float
    ran: float


@dataclass(frozen=True)
class Statistics:
    """A snapshot of the queue."""

    waiting_or_running: int
    limit: int
    finished: int


class Scheduler:
    """Runs work one at a time on a thread of its own; `seconds` bound one piece of it, 0 for no limit."""

    def __init__(self, limit: int, *, seconds: float = 0.0) -> None:
        # Without a spare thread: nothing else can run on a device that is occupied.
        self._thread = WatchedThreads("device", 1, seconds)
        self._lock = threading.Lock()
        self._limit = limit
        self._pending = 0
        self._finished = 0

    async def run(self, work: Callable[[], T]) -> Finished[T]:
        """Run `work` when its turn comes; work whose caller gave up before that is skipped.

        Raises:
            Refusal: `overloaded` at once, where too many calls wait already; `too_slow` where the work runs
                longer than it may, `stuck` where work before it does.
        """
        if self._pending >= self._limit:
            detail = f"{self._pending} calls wait for the device already; try again shortly"
            raise Refusal("overloaded", detail, extra={"retry_after": 1})
        queued = time.perf_counter()

        def timed() -> Finished[T]:
            started = time.perf_counter()
            result = work()
            return Finished(result, started - queued, time.perf_counter() - started)

        with self._lock:
            self._pending += 1
        future = self._thread.submit(timed)
        future.add_done_callback(self._done)
        # Cancelling the wait cancels the work if it has not begun.
        try:
            return await asyncio.wrap_future(future)
        except Overrun as overrun:
            detail = (
                f"the computation was not done within {overrun.seconds:g} s, the server's limit for a run; "
                "send fewer examples at once, or have the operator raise run_seconds"
            )
            raise Refusal("too_slow", detail) from None
        except Stuck:
            raise Refusal("stuck", OCCUPIED, extra={"retry_after": 30}) from None

    def _done(self, future: Future[Finished[T]]) -> None:
        # Called on the device's thread, or on the caller's where the work is cancelled before it began.
        with self._lock:
            self._pending -= 1
            self._finished += 1

    def statistics(self) -> Statistics:
        """What the queue looks like now."""
        return Statistics(self._pending, self._limit, self._finished)

    def stuck_for(self) -> float:
        """Seconds for which the device has been occupied by work past its limit; 0 where all is well."""
        return self._thread.stuck_for()

    def close(self) -> None:
        """Drop what has not begun; what runs cannot be interrupted, and is not waited for."""
        self._thread.close()
