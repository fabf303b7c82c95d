"""An event loop that stays awake for a caller who asks again at once."""

from __future__ import annotations

import asyncio
import time

from nablad.polling import polled
from nablad_service.running.giving_way import GIVING_WAY


class BusyPolling:
    """Looks for the next request without sleeping, for `seconds` after an answer; 0 for never.

    To wake a thread that sleeps in the system takes longer than a small program runs. Done only for a caller
    who is alone and whose last request came that soon after the answer before it, and not while a program is
    traced, which wants Python too: a server that is seldom asked, or by many, polls nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = polled(seconds)
        self._answered = 0.0
        self._at_once = False
        self._until = 0.0
        self._polling = False

    def asked(self) -> None:
        """Note that a request has come."""
        self._at_once = time.perf_counter() - self._answered < self._seconds
        self._until = 0.0

    def answered(self, *, alone: bool) -> None:
        """Poll from now on, if the caller is likely to ask again at once. Called on the event loop."""
        self._answered = time.perf_counter()
        if alone and self._at_once and not GIVING_WAY.needed:
            self._until = self._answered + self._seconds
            if not self._polling:
                self._polling = True
                self._poll(asyncio.get_running_loop())

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        # A loop that has something to call looks at its sockets in between, and does not sleep there.
        self._polling = time.perf_counter() < self._until
        if self._polling:
            loop.call_soon(self._poll, loop)
