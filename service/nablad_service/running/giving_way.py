"""Work in the background gives way: to other threads by the system, and to other threads of Python's.

Tracing a program is all Python, for seconds, and of two threads that want Python each gets half of it. A
thread gives way by pausing often while calls come in. It must not starve either: somebody waits for the new
program.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from typing import Any

from nablad_service.running import collecting

BEHIND = 10
"""How nice threads are that nobody's running calls wait for, where the system has that by thread (Linux)."""
LATELY = 20e-3
"""Seconds after a request in which others are expected; more than a thread can keep Python to itself."""
STINT = 1e-3
"""Seconds of such work between two pauses while requests come in."""
PAUSE = 11e-3
"""Seconds of a pause, times the threads at such work: all of them together have a twelfth of Python."""
EAGER = 0.5e-3
"""Seconds of the switch interval meanwhile: who waits for Python must not wait for its own 5 ms. To wait for
it at all costs the others much, since Python wakes who waits whenever it is let go of; to pause does not."""


class GivingWay:
    """A context for such work, for threads that do nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._usual = 0.0
        self._own = threading.local()
        self._called = 0.0

    def called(self) -> None:
        """Note that a request has come."""
        self._called = time.monotonic()

    @property
    def needed(self) -> bool:
        """Whether there is such work now."""
        return bool(self._count)

    def __enter__(self) -> None:
        self._step_behind()
        self._own.inside, self._own.since = True, time.monotonic()
        with self._lock:
            if not self._count:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(EAGER)
                # Of all that Python tells of its doings, collections cost the least.
                gc.callbacks.append(self._tick)
                collecting.tick(True)
            self._count += 1

    def __exit__(self, *error: object) -> None:
        self._own.inside = False
        with self._lock:
            self._count -= 1
            if not self._count:
                collecting.tick(False)
                gc.callbacks.remove(self._tick)
                sys.setswitchinterval(self._usual)

    def _tick(self, phase: str, info: dict[str, Any]) -> None:
        """Called at every collection, on the thread that made the object too many."""
        if phase != "stop" or not getattr(self._own, "inside", False):
            return
        now = time.monotonic()
        if now - self._own.since > STINT:
            if now - self._called < LATELY:
                time.sleep(PAUSE * self._count)
            self._own.since = time.monotonic()

    def _step_behind(self) -> None:
        if sys.platform == "linux" and not getattr(self._own, "behind", False):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + BEHIND)
            self._own.behind = True


GIVING_WAY = GivingWay()
"""Of this process."""
