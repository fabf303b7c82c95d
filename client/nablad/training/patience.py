"""How long to go on where a server does not answer, as while it starts again."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nablad.errors import ConnectionFailed, NabladError, Unavailable

PATIENCE = 120.0
"""Seconds by default: enough for a server to start again."""
LONGEST_PAUSE = 2.0
PASSING = frozenset({"stopping", "overloaded"})


def passes(error: NabladError) -> bool:
    """Whether the same call may well succeed a little later."""
    return isinstance(error, ConnectionFailed) or (isinstance(error, Unavailable) and error.code in PASSING)


def pauses(seconds: float) -> Iterator[float]:
    """Pauses between tries, longer and longer, until so many `seconds` have gone by."""
    end = time.monotonic() + seconds
    pause = 0.05
    while (left := end - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, LONGEST_PAUSE)
