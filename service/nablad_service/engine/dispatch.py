"""Which thread of a CPU's runs a program."""

from __future__ import annotations

import jax


def run_where_called() -> None:
    """Have programs run on the thread that calls them. Before anything uses JAX: later it changes nothing.

    Left to itself XLA hands them to a thread of its own, for callers who do something else meanwhile. Here
    each waits for its result, and the way there and back takes as long as a small program.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
