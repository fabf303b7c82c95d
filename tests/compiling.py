"""How much XLA optimizes: little where a program runs once or twice, all of it where that is tested."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# What a flag is in tests, and what it is unless set. Without them, compiling takes seven times as long.
FLAGS: dict[str, tuple[Any, Any]] = {
    "xla_backend_optimization_level": (0, 3),
    "xla_llvm_disable_expensive_passes": (True, False),
    "xla_cpu_use_fusion_emitters": (False, True),
    "xla_cpu_parallel_codegen_split_count": (1, 32),
}


def quickly() -> None:
    """Let this process, before it compiles anything, and those that it starts leave XLA's optimizations out.

    Not where `XLA_FLAGS` is set already. XLA ends a process at a flag that it does not know, with the flag's
    name: one that a new version dropped is taken out of the table above.
    """
    flags = " ".join(f"--{name}={str(value).lower()}" for name, (value, _) in FLAGS.items())
    os.environ.setdefault("XLA_FLAGS", flags)


@contextmanager
def as_served() -> Iterator[None]:
    """The engine, and servers that start inside, compile with all of XLA's optimizations."""
    import jax

    plainly = jax.stages.Lowered.compile
    served = {name: value for name, (_, value) in FLAGS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        patch.setattr(jax.stages.Lowered, "compile", lambda lowered: plainly(lowered, served))
        yield
