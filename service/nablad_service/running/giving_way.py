"""Work in the background gives way: to other threads by the system, and to other threads of Python's.

Tracing a program is all Python, for seconds, and of two threads that want Python each gets half of it. A
thread gives way by pausing often while calls come in. It must not starve either: somebody waits for the new
program.

Of several such threads one begins after the other meanwhile: a thread that pauses does so inside a
collection, and as long as that lasts there are no others to make the rest pause.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from nablad_service.running import collecting

BEHIND = 10
"""How nice threads are that nobody's running calls wait for, where the system has that by thread (Linux)."""
LATELY = 20e-3
"""Seconds after a request in which others are expected; more than a thread can keep Python to itself."""
STINT = 1e-3
"""Seconds of such work between two pauses while requests come in."""
PAUSE = 11e-3
"""Seconds of a pause, times the threads that want Python for such work: one alone has a twelfth of it."""
PATIENCE = 10.0
"""Seconds for which such work waits for other such work, while requests come in."""
EAGER = 0.5e-3
"""Seconds of the switch interval meanwhile: for so long a thread that wants Python may have to wait. To wait
for it slows the thread that has it, too; to pause does not."""


@dataclass(slots=True)
class _Work:
    """What a thread is at."""

    since: float = -math.inf
    """When it began, or when its last pause ended."""
    paused: float = 0.0
    """Seconds for which it has waited or paused so far."""


class GivingWay:
    """A context for such work, for threads that do nothing else."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._usual = 0.0
        self._at_work: dict[int, _Work] = {}
        """By thread."""
        self._own = threading.local()
        self._called = 0.0

    def called(self) -> None:
        """Note that a request has come."""
        self._called = time.monotonic()

    @property
    def needed(self) -> bool:
        """Whether there is such work now."""
        return bool(self._at_work)

    def paused(self, thread: int) -> float:
        """Seconds for which the work of a thread has waited or paused so far, by `threading.get_ident`."""
        work = self._at_work.get(thread)
        return 0.0 if work is None else work.paused

    def __enter__(self) -> None:
        self._step_behind()
        came = time.monotonic()
        with self._changed:
            if not self._at_work:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(EAGER)
                # Of all that Python tells of its doings, collections cost the least.
                gc.callbacks.append(self._tick)
                collecting.tick(True)
            work = self._at_work[threading.get_ident()] = _Work()
            while self._waits(came):
                self._changed.wait(PAUSE)
                work.paused = time.monotonic() - came
            work.since = time.monotonic()

    def __exit__(self, *error: object) -> None:
        with self._changed:
            del self._at_work[threading.get_ident()]
            self._changed.notify()
            if not self._at_work:
                collecting.tick(False)
                gc.callbacks.remove(self._tick)
                sys.setswitchinterval(self._usual)

    def _tick(self, phase: str, info: dict[str, Any]) -> None:
        """Called at every collection, on the thread that made the object too many."""
        if phase != "stop" or (work := self._at_work.get(threading.get_ident())) is None:
            return
        now = time.monotonic()
        if now - work.since > STINT:
            if now - self._called < LATELY:
                time.sleep(PAUSE * max(1, self._wanting(now)))
                work.paused += time.monotonic() - now
            work.since = time.monotonic()

    def _waits(self, came: float) -> bool:
        """Whether such work that came at a time waits for other work still."""
        now = time.monotonic()
        return now - self._called < LATELY and now - came < PATIENCE and self._wanting(now) > 0

    def _wanting(self, now: float) -> int:
        """How many threads want Python for such work: those in XLA, say, end no pause for long."""
        works = list(self._at_work.values())
        lately = now - 2 * (PAUSE + STINT) * len(works)
        return sum(one.since > lately for one in works)

    def _step_behind(self) -> None:
        if sys.platform == "linux" and not getattr(self._own, "behind", False):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + BEHIND)
            self._own.behind = True


GIVING_WAY = GivingWay()
"""Of this process."""
