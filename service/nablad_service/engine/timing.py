"""How long a program takes when it is called again and again, as in training."""

from __future__ import annotations

import time
from collections.abc import Callable

SHORT = 0.02
"""Seconds under which a run is repeated: caches that another program has filled cost it as much again."""


def steady(run: Callable[[], object]) -> float:
    """Seconds of one run that follows another of the same; of the first, where that takes long."""
    seconds = _once(run)
    return _once(run) if seconds < SHORT else seconds


def _once(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
