"""How much XLA optimizes: little where a program runs once or twice, all of it where that is tested."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

OPTION = "jax_disable_most_optimizations"
"""JAX's own, which its tests run with too."""


def quickly() -> None:
    """Let this process, before it imports JAX, and those that it starts leave XLA's optimizations out."""
    os.environ.setdefault(OPTION.upper(), "true")


@contextmanager
def as_served() -> Iterator[None]:
    """The engine, and servers that start inside, compile with all of XLA's optimizations."""
    import jax

    usual = jax.config.values[OPTION]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(OPTION.upper(), raising=False)
        jax.config.update(OPTION, False)
        try:
            yield
        finally:
            jax.config.update(OPTION, usual)
