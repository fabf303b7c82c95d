"""One device, one thread: work waits its turn in a bounded queue. Knows neither HTTP nor JAX.

Calls that can be computed together wait in a group of their own and are taken together when the device is
free. Nobody waits for company that is not there: the first to come queues for a turn, and whoever has joined
the group when that turn comes is taken with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from nablad.problems import Refusal
from nablad_service.running.watched_threads import Overrun, Stuck, WatchedThreads

T = TypeVar("T")
ItemT = TypeVar("ItemT")
Item_contra = TypeVar("Item_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)

OCCUPIED = "the device is occupied by a run that does not end, and nothing else can run; ask again later"
"""For callers and for `/health/ready` alike."""


class Finished(NamedTuple, Generic[T]):
    """A result, how long it waited and how long it ran, in seconds, and how many calls ran together."""

    result: T
    waited: float
    ran: float
    together: int = 1


@dataclass(frozen=True)
class Statistics:
    """A snapshot of the queue."""

    waiting_or_running: int
    limit: int
    finished: int


class Company(Protocol[Item_contra, T_co]):
    """How the calls of a group are run. Both methods are called on the device's thread."""

    def count(self, waiting: Sequence[Item_contra]) -> int:
        """How many of those that wait to take at once, the first ones, at least one."""

    def run(self, items: Sequence[Item_contra]) -> Sequence[T_co | Exception]:
        """The outcome of each."""


@dataclass(eq=False, slots=True)
class _Member:
    item: Any
    future: asyncio.Future[Finished[Any]]
    queued: float
    until: float
    """When its caller will have given up."""

    def gone(self, now: float) -> bool:
        return self.future.cancelled() or now > self.until


@dataclass(eq=False, slots=True)
class _Group:
    key: Hashable
    company: Company[Any, Any]
    loop: asyncio.AbstractEventLoop
    waiting: deque[_Member] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class _Turn:
    """One turn of a group on the device."""

    group: _Group
    taken: list[_Member] = field(default_factory=list)
    late: list[_Member] = field(default_factory=list)
    """Those whose callers have given up."""


class Scheduler:
    """Runs work one at a time on a thread of its own; `seconds` bound one piece of it, 0 for no limit.

    `ran` is told of each run: how many seconds, and how many calls together.
    """

    def __init__(
        self,
        limit: int,
        *,
        seconds: float = 0.0,
        ran: Callable[[float, int], None] = lambda seconds, together: None,
    ) -> None:
        self._ran = ran
        # Without a spare thread: nothing else can run on a device that is occupied.
        self._thread = WatchedThreads("device", 1, seconds)
        self._lock = threading.Lock()
        self._groups: dict[Hashable, _Group] = {}
        self._limit = limit
        self._pending = 0
        self._finished = 0

    async def run(self, work: Callable[[], T]) -> Finished[T]:
        """Run `work` when its turn comes; work whose caller gave up before that is skipped.

        Raises:
            Refusal: `overloaded` at once, where too many calls wait already; `too_slow` where the work runs
                longer than it may, `stuck` where work before it does.
        """
        self._refuse_too_many()
        queued = time.perf_counter()

        def timed() -> Finished[T]:
            started = time.perf_counter()
            result = work()
            ran = time.perf_counter() - started
            self._ran(ran, 1)
            return Finished(result, started - queued, ran)

        with self._lock:
            self._pending += 1
        future = self._thread.submit(timed)
        future.add_done_callback(lambda future: self._settled(1))
        # Cancelling the wait cancels the work if it has not begun.
        try:
            return await asyncio.wrap_future(future)
        except (Overrun, Stuck) as trouble:
            refused = _refused(trouble)
            assert refused is not None
            raise refused from None

    def run_here(self, work: Callable[[], T]) -> Finished[T] | None:
        """Run `work` on the caller's thread, where the device is free; None where it is not.

        For work that is short beside the way to the device's thread and back: nothing watches it.
        """
        if self._pending or self._thread.stuck_for():
            return None
        started = time.perf_counter()
        result = work()
        ran = time.perf_counter() - started
        self._ran(ran, 1)
        with self._lock:
            self._finished += 1
        return Finished(result, 0.0, ran)

    async def run_in_company(
        self,
        key: Hashable,
        item: ItemT,
        company: Company[ItemT, T],
        *,
        until: float = float("inf"),
    ) -> Finished[T]:
        """Run `item` when its turn comes, alone or with others of the same `key`.

        One whose caller gave up, or whose time `until` (of `time.perf_counter`) has passed, is not run; one
        that fails does not concern the others.

        Raises:
            Refusal: as `run` does.
        """
        self._refuse_too_many()
        loop = asyncio.get_running_loop()
        member = _Member(item, loop.create_future(), time.perf_counter(), until)
        with self._lock:
            self._pending += 1
            group = self._groups.get(key)
            if group is not None:
                group.waiting.append(member)
            else:
                new = self._groups[key] = _Group(key, company, loop)
                new.waiting.append(member)
        if group is None:
            # When the event loop has done what it has before it: calls that came together are all there then,
            # and the device's thread does not want Python while they are read.
            loop.call_soon(self._queue, new)
        try:
            return await member.future
        except asyncio.CancelledError:
            self._leave(key, member)
            raise

    def _leave(self, key: Hashable, member: _Member) -> None:
        """Give a place back at once; one that runs already keeps it until it is done."""
        with self._lock:
            group = self._groups.get(key)
            if group is not None and member in group.waiting:
                group.waiting.remove(member)
                self._pending -= 1

    def _queue(self, group: _Group) -> None:
        """Let a group have a turn, behind what waits already."""
        turn = _Turn(group)
        self._thread.submit(lambda: self._take(turn)).add_done_callback(lambda done: self._end(turn, done))

    def _take(self, turn: _Turn) -> list[Any]:
        """The outcomes of those that this turn takes. Called on the device's thread."""
        group = turn.group
        with self._lock:
            now = time.perf_counter()
            turn.late = [member for member in group.waiting if member.gone(now)]
            for member in turn.late:
                group.waiting.remove(member)
            if group.waiting:
                for _ in range(group.company.count([member.item for member in group.waiting])):
                    turn.taken.append(group.waiting.popleft())
            more = bool(group.waiting)
            if not more:
                self._forget(group)
        if more:
            self._queue(group)
        if not turn.taken:
            return []
        started = time.perf_counter()
        outcomes = group.company.run([member.item for member in turn.taken])
        ran, together = time.perf_counter() - started, len(turn.taken)
        self._ran(ran, together)
        return [
            outcome
            if isinstance(outcome, Exception)
            else Finished(outcome, started - member.queued, ran, together)
            for member, outcome in zip(turn.taken, outcomes, strict=True)
        ]

    def _end(self, turn: _Turn, done: Future[list[Any]]) -> None:
        """Hand out what became of a turn, in one go."""
        error = None if done.cancelled() else done.exception()
        members = [*turn.taken]
        if done.cancelled() or isinstance(error, Stuck):  # the group will have no other turn
            with self._lock:
                members += turn.group.waiting
                turn.group.waiting.clear()
                self._forget(turn.group)
        if error is None and not done.cancelled():
            outcomes = done.result()
        else:
            outcomes = [_refused(error) for _ in members]
        members += turn.late
        outcomes += [TimeoutError() for _ in turn.late]
        self._settled(len(members))
        if members and not turn.group.loop.is_closed():
            turn.group.loop.call_soon_threadsafe(_deliver, members, outcomes)

    def _forget(self, group: _Group) -> None:
        """Let the next call of this kind begin a group of its own."""
        if self._groups.get(group.key) is group:
            del self._groups[group.key]

    def _settled(self, count: int) -> None:
        # Called on the device's thread, or on the caller's where the work is cancelled before it began.
        with self._lock:
            self._pending -= count
            self._finished += count

    def _refuse_too_many(self) -> None:
        if self._pending >= self._limit:
            detail = f"{self._pending} calls wait for the device already; try again shortly"
            raise Refusal("overloaded", detail, extra={"retry_after": 1})

    def statistics(self) -> Statistics:
        """What the queue looks like now."""
        return Statistics(self._pending, self._limit, self._finished)

    def stuck_for(self) -> float:
        """Seconds for which the device has been occupied by work past its limit; 0 where all is well."""
        return self._thread.stuck_for()

    def close(self) -> None:
        """Drop what has not begun; what runs cannot be interrupted, and is not waited for."""
        self._thread.close()


def _deliver(members: Sequence[_Member], outcomes: Sequence[Any]) -> None:
    """Called on the event loop."""
    for member, outcome in zip(members, outcomes, strict=True):
        if member.future.done():
            continue
        if outcome is None:
            member.future.cancel()
        elif isinstance(outcome, BaseException):
            member.future.set_exception(outcome)
        else:
            member.future.set_result(outcome)


def _refused(trouble: BaseException | None) -> BaseException | None:
    """What the caller of work that was not done is told; None where the server stops."""
    if isinstance(trouble, Overrun):
        detail = (
            f"the computation was not done within {trouble.seconds:g} s, the server's limit for a run; "
            "send fewer examples at once, or have the operator raise run_seconds"
        )
        return Refusal("too_slow", detail)
    if isinstance(trouble, Stuck):
        return Refusal("stuck", OCCUPIED, extra={"retry_after": 30})
    return trouble
