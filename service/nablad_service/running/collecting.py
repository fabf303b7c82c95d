"""Python's garbage collector, kept away from what stays.

A full collection visits all objects that are alive: with JAX loaded that takes 85 ms, in which nothing else
runs, and under load there were two a second. What has come to stay is frozen: not visited any more.
"""

from __future__ import annotations

import gc
import threading

YOUNG = 20_000
"""Objects that are made, and stay, before the young ones are looked at; Python has 700, a few calls."""
THAWED = 64
"""Times after which all is visited once more: some of what was frozen has been let go of."""

_lock = threading.Lock()
_times = 0


def settle() -> None:
    """Free what is garbage by now, and freeze the rest; what was frozen before costs nothing."""
    global _times
    with _lock:
        _times += 1
        if _times % THAWED == 0:
            gc.unfreeze()
        gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
        gc.collect()
        gc.freeze()
