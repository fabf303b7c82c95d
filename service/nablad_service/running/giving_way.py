"""Work in the background gives way: to other threads by the system, and to other threads of Python's."""

from __future__ import annotations

import os
import sys
import threading

BEHIND = 10
"""How nice threads are that nobody's running calls wait for, where the system has that by thread (Linux)."""
TURN = 0.5e-3
"""Seconds that such a thread keeps Python to itself while others wait. Tracing a program is all Python: at
Python's own 5 ms a turn, questions about health were answered after up to 60 ms. It is the rule while
nothing is traced, since threads that change turns often take longer together."""


class GivingWay:
    """A context for such work, for threads that do nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._usual = 0.0
        self._own = threading.local()

    def __enter__(self) -> None:
        self._step_behind()
        with self._lock:
            if not self._count:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(TURN, self._usual))
            self._count += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                sys.setswitchinterval(self._usual)

    def _step_behind(self) -> None:
        if sys.platform == "linux" and not getattr(self._own, "behind", False):
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + BEHIND)
            self._own.behind = True


GIVING_WAY = GivingWay()
"""Of this process."""
