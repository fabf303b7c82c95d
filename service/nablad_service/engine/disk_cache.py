"""JAX's cache of compiled programs on disk: switched on, and counted.

Both are JAX's own and process-wide.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.monitoring

log = logging.getLogger("nablad")

EVENTS = {
    "/jax/compilation_cache/cache_hits": "hit",
    "/jax/compilation_cache/cache_misses": "miss",
}


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


def tell_of_disk(note: Callable[[str], None]) -> None:
    """Let `note` know of each compilation that is read from disk (`hit`) or written there (`miss`).

    JAX takes no listener back: it is told for as long as the process lives.
    """

    def listen(event: str, **details: str | int) -> None:
        if event in EVENTS:
            note(EVENTS[event])

    jax.monitoring.register_event_listener(listen)
