"""Threads whose work may never end. Knows neither HTTP, nor JAX, nor asyncio.

Neither a compilation nor a computation of XLA can be interrupted from Python. What takes too long is left
behind: its caller is told, and another thread takes the place of the one that is lost, as long as there are
spare ones. `concurrent.futures` cannot replace a thread, and waits for all of them when Python exits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nablad_service.running.giving_way import GIVING_WAY

T = TypeVar("T")

LONGEST_LOOK = 1.0
"""Seconds between two looks at what runs: a thread of their own wakes so often, a call wakes none."""


class Overrun(Exception):
    """Work took longer than its limit and was left behind; `ended` has its result if it ever ends."""

    def __init__(self, seconds: float, ended: Future[Any]) -> None:
        super().__init__(f"not done within {seconds:g} s")
        self.seconds = seconds
        self.ended = ended


class Stuck(Exception):
    """All threads are lost to work that does not end: nothing can be begun."""


@dataclass(eq=False)
class _Job:
    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)
    """What the caller waits for."""
    started: float = 0.0
    thread: int = 0
    ended: Future[Any] | None = None
    """What becomes of it, once it has overrun: the caller waits no longer."""


class WatchedThreads:
    """Runs work in order of arrival on `count` threads.

    Args:
        name: prefix of the threads' names.
        count: how many pieces of work run at the same time.
        seconds: how long one may run before it is left behind, its pauses aside; 0 for no limit.
        spare: how many threads may be lost and replaced. The device's thread has none: what occupies the
            device occupies it for everybody.
        behind: whether they give way to other threads. Compiling takes all cores it is given, and calls of
            programs that are compiled already wait for one.
    """

    def __init__(
        self, name: str, count: int, seconds: float, *, spare: int = 0, behind: bool = False
    ) -> None:
        self._name = name
        self._behind = behind
        self._count = count
        self._seconds = seconds
        self._spare = spare
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._serving = 0
        self._lost = 0
        self._stuck_since: float | None = None
        self._closed = threading.Event()
        for _ in range(count):
            self._start()
        if seconds:
            threading.Thread(target=self._watch, name=f"{name}-watch", daemon=True).start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Let `work` run when its turn comes; cancelling the future drops it if it has not begun.

        The future fails with `Overrun` where the work is left behind, with `Stuck` where it cannot begin.
        """
        job = _Job(work)
        with self._changed:
            if self._closed.is_set():
                job.answer.cancel()
                return job.answer
            if self._stuck_since is None:
                self._waiting.append(job)
                self._changed.notify()
                return job.answer
        job.answer.set_exception(Stuck())
        return job.answer

    def stuck_for(self) -> float:
        """Seconds for which nothing could be begun; 0 where all is well."""
        since = self._stuck_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Drop what has not begun; what runs cannot be interrupted, and is not waited for."""
        with self._changed:
            self._closed.set()
            dropped = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for job in dropped:
            job.answer.cancel()

    def _start(self) -> None:
        self._serving += 1
        threading.Thread(target=self._serve, name=self._name, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed.is_set():
                    self._changed.wait()
                if self._closed.is_set():
                    return
                job = self._waiting.popleft()
                if not job.answer.set_running_or_notify_cancel():
                    continue
                job.started, job.thread = time.monotonic(), threading.get_ident()
                self._running.add(job)
            outcome: Any = None
            error: BaseException | None = None
            try:
                with GIVING_WAY if self._behind else nullcontext():
                    outcome = job.work()
            except BaseException as raised:
                error = raised
            stays = True
            with self._changed:
                self._running.discard(job)
                if job.ended is not None:
                    stays = self._return()
            future = job.answer if job.ended is None else job.ended
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(outcome)
            if not stays:
                return
            # While the thread waits it must not hold on to the last answer's arrays.
            del job, outcome, error, future

    def _return(self) -> bool:
        """Whether a thread that was given up is needed still, now that its work has ended after all."""
        self._lost -= 1
        if self._serving >= self._count:
            return False  # another has its place
        self._serving += 1
        self._stuck_since = None
        return True

    def _paused(self, job: _Job) -> float:
        return GIVING_WAY.paused(job.thread) if self._behind else 0.0

    def _watch(self) -> None:
        while not self._closed.wait(min(LONGEST_LOOK, self._seconds / 4)):
            now = time.monotonic()
            told: list[tuple[_Job, Exception]] = []
            with self._changed:
                for job in [
                    one for one in self._running if now - one.started - self._paused(one) > self._seconds
                ]:
                    job.ended = Future()
                    self._running.discard(job)
                    self._serving -= 1
                    self._lost += 1
                    told.append((job, Overrun(self._seconds, job.ended)))
                    if self._lost <= self._spare:
                        self._start()
                if told and not self._serving:
                    self._stuck_since = now
                    told += [
                        (job, Stuck()) for job in self._waiting if job.answer.set_running_or_notify_cancel()
                    ]
                    self._waiting.clear()
            for job, error in told:
                job.answer.set_exception(error)
