"""Python's garbage collector, kept away from what stays.

A full collection visits all objects that are alive: with JAX loaded that takes 85 ms, in which nothing else
runs, and under load there were two a second. What has come to stay is frozen: not visited any more.
"""

from __future__ import annotations

import gc
import threading

YOUNG = 20_000
"""Objects that are made, and stay, before the young ones are looked at; Python has 700, a few calls."""
FEW = 20
"""The same while the collector serves as a clock."""
THAWED = 64
"""Times after which all is visited once more: some of what was frozen has been let go of."""

_lock = threading.Lock()
_times = 0
_clocks = 0
_usual = gc.get_threshold()
"""Thresholds while the collector is no clock."""


def settle() -> None:
    """Free what is garbage by now, and freeze the rest; what was frozen before costs nothing."""
    global _times, _usual
    with _lock:
        _times += 1
        if _times % THAWED == 0:
            gc.unfreeze()
        _usual = (YOUNG, *_usual[1:])
        _set()
        gc.collect()
        gc.freeze()


def tick(ticking: bool) -> None:
    """Have the collector look at every few new objects, or no longer; at older ones as seldom as before."""
    global _clocks, _usual
    with _lock:
        if not _clocks:
            _usual = gc.get_threshold()
        _clocks += 1 if ticking else -1
        _set()


def _set() -> None:
    young, older, oldest = _usual
    gc.set_threshold(*((FEW, older * young // FEW, oldest) if _clocks else _usual))
