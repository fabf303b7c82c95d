"""Looking for what is about to come without sleeping, on either end of a connection."""

from __future__ import annotations

import os

BUSY_POLL = 0.001
"""Seconds for which it is looked for, unless told otherwise: to wake a thread that sleeps in the system takes
a tenth of that, as long as a small program runs."""


def polled(seconds: float) -> float:
    """For how long to look: `seconds`, or 0 where there is one processor, which the other end needs.

    Raises:
        ValueError: it is less than 0.
    """
    if not seconds >= 0:
        raise ValueError(f"busy_poll is a number of seconds, 0 for never, not {seconds!r}")
    return seconds if _processors() > 1 else 0.0


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
