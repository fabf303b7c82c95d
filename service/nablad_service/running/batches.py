"""Calls of one program computed together: which may be, in batches of which sizes, and whether it pays.

A batch is compiled in the background when company is first seen, for the power of two above the number that
waits; until then calls run one by one. What was compiled is used where it takes less time a call than what
else there is, by the times that were measured: a batch is not always faster, and padding has its price.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from nablad.problems import Refusal
from nablad_service.engine.engine import Engine
from nablad_service.engine.executable import Executable
from nablad_service.engine.together import Together, Unfit
from nablad_service.metrics import Metrics
from nablad_service.query import Query
from nablad_service.running.watched_threads import Overrun, Stuck, WatchedThreads

log = logging.getLogger("nablad")

LARGEST_OWN = 256 * 1024
"""Bytes of a call's own arrays up to which it is batched: to stack more costs more than is gained."""
REMEMBERED = 16
"""Runs of each size whose times are kept; the least of them counts, since others only add to a time."""
TRIES = 4
"""Runs of a size before its times count."""
AGAIN = 64
"""Turns after which a size that did not pay is tried once more: the machine may have been busy."""
TURN = 50e-6
"""Seconds that a turn costs beside its run: two threads wake each other up."""
SPARE = 4
"""Threads that may be lost to batches that do not compile; after that no more are made."""


@dataclass(frozen=True)
class BatchLimits:
    """How far batches may go."""

    calls: int
    """Most calls in one; below 2 there are none."""
    bytes: int
    """Memory that one may take, by estimate."""


class Batches:
    """The batches of all programs, compiled in the background. Lives on one event loop.

    `seconds` bound one compilation, 0 for no limit.
    """

    def __init__(
        self, engine: Engine, limits: BatchLimits, metrics: Metrics | None = None, *, seconds: float = 0.0
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._metrics = metrics or Metrics()
        # Apart from the other compilations: those have callers that wait for them.
        self._threads = WatchedThreads("batch", 1, seconds, spare=SPARE, behind=True)

    def key(self, query: Query, executable: Executable) -> Hashable | None:
        """What calls that may be computed together have in common; None where this one goes alone."""
        if self._limits.calls < 2 or not query.batch:
            return None
        if self.company(query, executable).own_bytes > LARGEST_OWN:
            return None
        return (executable, query.resident, *map(id, query.shared()))

    def company(self, query: Query, executable: Executable) -> Batched:
        """How calls like `query` are run together, `executable` being how they are run alone."""
        found: Batched | None = executable.companies.get(query.resident)
        if found is None:
            found = Batched(executable, self._limits.calls, self._compile, own_bytes(query))
            executable.companies[query.resident] = found
        return found

    def _compile(self, executable: Executable, query: Query, size: int) -> Future[Together]:
        limit = self._limits.bytes
        work = partial(self._engine.together, executable, query, size, limit)
        return self._threads.submit(self._metrics.compiling("batch", work))

    def close(self) -> None:
        """Drop what has not begun to compile."""
        self._threads.close()


class Batched:
    """One program and its batches: a `Company` of the scheduler.

    `begin` begins to compile a batch of some size for requests like one; each brings `own_bytes`.
    """

    def __init__(
        self,
        executable: Executable,
        most: int,
        begin: Callable[[Executable, Query, int], Future[Together]],
        own_bytes: int = 0,
    ) -> None:
        self.executable = executable
        self.own_bytes = own_bytes
        self._begin = begin
        self._most = power_of_two(most + 1) // 2
        self._asked: dict[int, Future[Any]] = {}
        """By size: why there is no such batch, or None, when it is settled."""
        self._ready: dict[int, Together] = {}
        self._times: dict[int, deque[float]] = {}
        self._turns = 0

    def count(self, waiting: Sequence[Query]) -> int:
        """How many to take: as many as make a call cheapest."""
        if len(waiting) < 2 or self._most < 2:
            return 1
        self.prepare(waiting[0], len(waiting))
        self._turns += 1
        sizes = (1, *self._ready)
        if self._turns % AGAIN == 0:
            best = max(size for size in sizes if size < 2 * len(waiting))
        else:
            best = min(sizes, key=lambda size: (self._price(size, len(waiting)), -size))
        return min(best, len(waiting))

    def _price(self, size: int, waiting: int) -> float:
        """Seconds a call in a batch of `size`; nothing where one that fits has hardly been tried."""
        times = self._times.get(size, ())
        if len(times) < TRIES and size > 1:
            return 0.0 if size < 2 * waiting else math.inf
        if not times:
            return math.inf  # alone: it will be known after the first call
        return (min(times) + TURN) / min(size, waiting)

    def run(self, items: Sequence[Query]) -> Sequence[dict[str, Any] | Exception]:
        """The outcome of each, computed in one go; where that fails, one by one."""
        size = min((size for size in tuple(self._ready) if size >= len(items)), default=1)
        if len(items) == 1 or size == 1:
            return [self._alone(query) for query in items]
        started = time.perf_counter()
        try:
            outcomes = self._ready[size].run(items)
        except Exception as error:
            log.warning("a batch of %d calls failed, they are computed one by one: %s", size, error)
            self._give_up(size)
            return [self._alone(query) for query in items]
        self._took(size, time.perf_counter() - started)
        return outcomes

    def _alone(self, query: Query) -> dict[str, Any] | Exception:
        started = time.perf_counter()
        try:
            outcome = self.executable.run(query)
        except Exception as error:
            return error
        self._took(1, time.perf_counter() - started)
        return outcome

    def _took(self, size: int, seconds: float) -> None:
        self._times.setdefault(size, deque(maxlen=REMEMBERED)).append(seconds)

    def prepare(self, query: Query, size: int) -> tuple[int, bool, Future[Any]]:
        """Begin to compile a batch for calls like `query`, if that has not been tried.

        Gives its size, a power of two within what is allowed, whether this call began it, and what tells why
        there is no such batch, or None, when that is settled.
        """
        size = power_of_two(min(size, max(self._most, 1)))
        settled = self._asked.get(size)
        if settled is not None:
            return size, False, settled
        settled = self._asked[size] = Future()
        if size == 1:
            settled.set_result("the server computes these calls one by one")
        else:
            self._begin(self.executable, query, size).add_done_callback(partial(self._settle, size))
        return size, True, settled

    def _settle(self, size: int, compiled: Future[Together]) -> None:
        # Called on the thread that compiles.
        error = Stuck() if compiled.cancelled() else compiled.exception()
        if error is None:
            self._ready[size] = compiled.result()
            self._asked[size].set_result(None)
            return
        self._give_up(
            size, at_any=isinstance(error, Stuck) or (isinstance(error, Unfit) and error.at_any_size)
        )
        if not isinstance(error, Unfit | Overrun | Stuck | Refusal):
            log.warning("a batch of %d calls could not be compiled", size, exc_info=error)
        self._asked[size].set_result(str(error) or "it could not be compiled")

    def _give_up(self, size: int, *, at_any: bool = False) -> None:
        """Make no batches of this size or larger ones any more."""
        self._most = 1 if at_any else min(self._most, size // 2)
        for each in [one for one in self._ready if one > self._most]:
            del self._ready[each]


def own_bytes(query: Query) -> int:
    """Bytes of what is not resident: as many for all calls of a program that share the same."""
    own = [leaves for section, name, leaves in query.values() if (section, name) not in query.resident]
    return sum(leaf.nbytes for leaves in own for leaf in leaves)


def power_of_two(number: int) -> int:
    """The least power of two that is not less than `number`."""
    return 1 << (number - 1).bit_length()
