"""JAX's cache of compiled programs on disk: switched on, and counted.

Both are JAX's own and process-wide.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from pathlib import Path

import jax
import jax.monitoring

log = logging.getLogger("nablad")

EVENTS = {
    "/jax/compilation_cache/cache_hits": "hit",
    "/jax/compilation_cache/cache_misses": "miss",
}


class _Seen:
    """What JAX has told since the process began to listen."""

    def __init__(self) -> None:
        # Appended to by whatever thread compiles, which is atomic; counted where the counts are asked for.
        self._told: deque[str] = deque()
        self._counts: Counter[str] = Counter()
        self._listening = False

    def listen(self) -> None:
        if not self._listening:
            jax.monitoring.register_event_listener(self._note)
            self._listening = True

    def _note(self, event: str, **details: str | int) -> None:
        if event in EVENTS:
            self._told.append(EVENTS[event])

    def counts(self) -> dict[str, int]:
        while self._told:
            self._counts[self._told.popleft()] += 1
        return {outcome: self._counts[outcome] for outcome in EVENTS.values()}


_seen = _Seen()


def keep_compiled(folder: Path) -> None:
    """Let JAX keep what it compiles in `folder`, small programs too; where it is told otherwise, that holds.

    `JAX_COMPILATION_CACHE_DIR` and `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` go before. A folder that
    cannot be made costs the cache, not the service.
    """
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined] # defined while JAX is imported
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            log.warning("compiled programs are not kept: %s", error)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # By default JAX keeps what took a second: few programs do, and together they take many.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def disk_counts() -> dict[str, int]:
    """How many compilations were read from disk (`hit`), and how many were written there (`miss`)."""
    return _seen.counts()


def count_disk() -> None:
    """Begin to count."""
    _seen.listen()
