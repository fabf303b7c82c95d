"""How large a program may be. Every limit is a setting of the server; these are its defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is traced or compiled."""

    text_bytes: int = 64 * 1024
    """Length of a program's text, in bytes of UTF-8."""
    depth: int = 100
    """Nesting of brackets, calls and operators; a chain such as `a + b + c + ...` counts once."""
    nodes: int = 10_000
    """Operations in a program, every call of a `def` counted anew."""
    derivative_order: int = 8
    """Derivatives inside one another, the outer gradient not counted; `hvp` and `hessian` count two."""
    evaluations: int = 1_000_000
    """Operations that tracing would evaluate: a derivative evaluates what it differentiates again."""
    call_depth: int = 32
    """`def`s that call one another."""
    iterations: int = 1_000_000
    """Times that loops run their bodies, loops inside one another multiplied."""
    memory_bytes: int | None = None
    """Estimated peak memory that a program may have, in bytes; None for any."""
    array_bytes: int = 4 * 1024**3
    """Largest array that a program may make on its way, in bytes."""
