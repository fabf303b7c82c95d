"""Memory for large bodies, used again: the system takes longer to give fresh memory than a copy takes.

A block may be used again when no array views it any more, and nobody says so: a finalizer does.
"""

from __future__ import annotations

import collections
import mmap
import weakref

import numpy as np

from nablad.frame import aligned

SMALLEST = 1024 * 1024
"""Bytes from which on a block is kept; allocators do as well below."""
STEP = 2 * 1024 * 1024
"""Bytes by which blocks grow: the size of a large page."""


class Blocks:
    """Lends memory that begins at a multiple of 64 bytes. Safe to use from several threads.

    Args:
        kept: how many free blocks are kept. The system takes their memory back when it runs short of it.
    """

    def __init__(self, kept: int = 2) -> None:
        self._kept = kept
        # Blocks come back in any thread, in the midst of anything: a deque needs no lock for that.
        self._free: collections.deque[mmap.mmap] = collections.deque()

    def lend(self, size: int) -> memoryview:
        """`size` bytes of writable memory, with whatever was there before.

        Raises:
            MemoryError: where there are not as many.
        """
        if size < SMALLEST or not hasattr(mmap, "MAP_PRIVATE"):
            return aligned(size)
        block = self._fitting(size) or fresh(size + -size % STEP)
        lent = np.frombuffer(block, np.uint8, size)
        weakref.finalize(lent, self._take_back, block).atexit = False
        return lent.data

    def _fitting(self, size: int) -> mmap.mmap | None:
        for _ in range(len(self._free)):
            try:
                block = self._free.popleft()
            except IndexError:  # another thread was faster
                return None
            if size <= len(block) <= 2 * size + STEP:
                return block
            self._free.append(block)
        return None

    def _take_back(self, block: mmap.mmap) -> None:
        if hasattr(mmap, "MADV_FREE"):
            # Costs nothing, and the system may have the pages when it needs them.
            block.madvise(mmap.MADV_FREE)
        self._free.append(block)
        while len(self._free) > self._kept:
            try:
                self._free.popleft()
            except IndexError:
                return


def fresh(size: int) -> mmap.mmap:
    """Memory of the system's, in large pages where it has them.

    Raises:
        MemoryError: where there are not as many bytes.
    """
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(f"no memory for a block of {size} bytes") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            block.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            return block
    return block
