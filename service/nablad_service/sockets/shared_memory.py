"""Memory shared with callers on this host: taken over a Unix socket, read and written by place.

A block is the caller's `memfd`, sealed so that it cannot shrink: pages that are gone under a reader would end
this process (SIGBUS). It is known by a token that only its caller has, and forgotten with the caller's
connection; the memory itself goes when nothing views it any more.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import mmap
import os
import secrets
import socket

from nablad.problems import Refusal
from nablad.shared_memory import FORGET, LONGEST, SHARE, Place

log = logging.getLogger("nablad")

BLOCKS = 64
"""Blocks that one caller may share at a time."""


class SharedMemory:
    """The blocks that callers share, by token. Lives on one event loop."""

    def __init__(self, listener: socket.socket, largest: int) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._largest = largest
        self._blocks: dict[str, mmap.mmap] = {}
        self._callers: dict[socket.socket, set[str]] = {}

    def start(self) -> None:
        """Take callers from now on."""
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Forget all blocks and callers."""
        asyncio.get_running_loop().remove_reader(self._listener)
        for caller in list(self._callers):
            self._forget(caller)

    def view(self, place: Place) -> memoryview:
        """The bytes at a place.

        Raises:
            Refusal: `shared_memory`, where there is no such block, or it ends before the place does.
        """
        block = self._blocks.get(place.token)
        if block is None:
            detail = "no caller shares a block of that token; share it anew, or send the body over the socket"
            raise Refusal("shared_memory", detail)
        if place.offset + place.length > len(block):
            where = f"{place.length} bytes at {place.offset}"
            raise Refusal("shared_memory", f"{where} end outside the block, which has {len(block)} bytes")
        return memoryview(block)[place.offset : place.offset + place.length]

    def _accept(self) -> None:
        try:
            caller, _ = self._listener.accept()
        except OSError:  # gone before it was its turn, or no descriptors are left
            return
        caller.setblocking(False)
        self._callers[caller] = set()
        asyncio.get_running_loop().add_reader(caller, self._hear, caller)

    def _hear(self, caller: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            message, descriptors, _, _ = socket.recv_fds(caller, LONGEST, 2)
            if not message:
                self._forget(caller)
                return
            caller.send(self._answer(caller, message, descriptors))
        except BlockingIOError:
            return
        except OSError:
            self._forget(caller)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answer(self, caller: socket.socket, message: bytes, descriptors: list[int]) -> bytes:
        tokens = self._callers[caller]
        try:
            if message == SHARE:
                token = self._take(len(tokens), descriptors)
                tokens.add(token)
                return token.encode()
            token = message.removeprefix(FORGET).decode("ascii", "replace")
            if message.startswith(FORGET) and token in tokens:
                tokens.remove(token)
                del self._blocks[token]
                return b"forgotten"
            raise _Unfit("it is neither a block to share nor one of this caller's to forget")
        except _Unfit as unfit:
            return f"refused: {unfit}".encode()

    def _take(self, shared: int, descriptors: list[int]) -> str:
        if shared >= BLOCKS:
            raise _Unfit(f"a caller shares at most {BLOCKS} blocks")
        if len(descriptors) != 1:
            raise _Unfit(f"one file descriptor is shared at a time, not {len(descriptors)}")
        try:
            seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
        except OSError:
            raise _Unfit("the file is no memfd") from None
        if not seals & fcntl.F_SEAL_SHRINK:
            raise _Unfit("the memory is not sealed against shrinking (F_SEAL_SHRINK)")
        size = os.fstat(descriptors[0]).st_size
        if not 0 < size <= self._largest:
            raise _Unfit(f"a block has 1 to {self._largest} bytes, not {size}")
        try:
            block = mmap.mmap(descriptors[0], size)
        except OSError as error:
            raise _Unfit(f"the memory cannot be mapped: {error.strerror}") from None
        token = secrets.token_hex(16)
        self._blocks[token] = block
        return token

    def _forget(self, caller: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(caller)
        # What views a block keeps it mapped: a caller that leaves takes nothing from under a computation.
        for token in self._callers.pop(caller):
            del self._blocks[token]
        caller.close()


class _Unfit(Exception):
    """A block that is not taken; the message says why."""
