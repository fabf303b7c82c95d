"""Work that would keep the event loop from others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SMALL = 64 * 1024
"""Bytes that are decoded or encoded on the event loop: a thread would cost more than the work."""


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Run `work` here if it handles few bytes, else on a thread."""
    return work() if size <= SMALL else await asyncio.to_thread(work)
