"""Blocks of memory shared with a server on this host: lent for a request or an answer, and used again."""

from __future__ import annotations

import collections
import fcntl
import mmap
import os
import select
import socket
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from nablad.frame import Buffer, fill
from nablad.shared_memory import FORGET, LONGEST, SHARE, SUFFIX, Place

STEP = 2 * 1024 * 1024
"""Bytes by which blocks grow: one serves bodies of about the same size."""
KEPT = 4
"""Blocks kept for the next call: a request, its answer, and an answer before it that is looked at still."""


@dataclass(eq=False, slots=True)
class Block:
    """Shared memory and the token under which the server knows it."""

    memory: mmap.mmap
    token: str
    channel: socket.socket
    """What it was handed over on: with that it is forgotten."""

    def fill(self, pieces: Sequence[Buffer]) -> Place:
        """Write a body into the block."""
        return Place(self.token, 0, fill(self.memory, pieces))


class Blocks:
    """Blocks shared with the server behind one Unix socket. Safe to use from several threads."""

    def __init__(self, path: str) -> None:
        if sys.platform != "linux":
            raise ValueError("shared memory needs Linux; leave out shared_memory=True")
        self._path = path + SUFFIX
        self._lock = threading.Lock()
        self._free: list[Block] = []
        # Blocks come back when the last array on them is gone: in any thread, at any moment.
        self._returned: collections.deque[Block] = collections.deque()
        self._dropped: collections.deque[Block] = collections.deque()
        self._channel: socket.socket | None = None
        self._process = os.getpid()

    def lend(self, size: int) -> Block | None:
        """A block of at least `size` bytes; None where the server takes no more of them.

        Raises:
            httpx.ConnectError: the server does not share memory, or is not there.
        """
        with self._lock:
            if self._process != os.getpid():
                # After a fork blocks and channel are the parent's.
                self._free, self._channel, self._process = [], None, os.getpid()
            channel = self._connected()
            self._tidy(channel)
            fitting = [block for block in self._free if size <= len(block.memory) <= 4 * size + STEP]
            if fitting:
                block = min(fitting, key=lambda block: len(block.memory))
                self._free.remove(block)
                return block
            return _shared(channel, size + -size % STEP)

    def give_back(self, block: Block) -> None:
        """Keep a block for the next call."""
        self._returned.append(block)

    def drop(self, block: Block) -> None:
        """Use a block no more: the server may be at work on it still."""
        self._dropped.append(block)

    def view(self, block: Block, place: Place) -> memoryview:
        """The bytes at a place of a block, which is given back when nothing views them any more."""
        array = np.frombuffer(block.memory, np.uint8)[place.offset : place.offset + place.length]
        weakref.finalize(array, self._returned.append, block).atexit = False
        return array.data

    def close(self) -> None:
        """Let the server forget all blocks; arrays on them stay."""
        with self._lock:
            self._free.clear()
            self._returned.clear()
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def reset(self) -> None:
        """Begin anew: the server knows nothing of these blocks."""
        self.close()

    def _connected(self) -> socket.socket:
        if self._channel is not None and _silent(self._channel):
            return self._channel
        if self._channel is not None:
            self._channel.close()
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.settimeout(5)
        try:
            channel.connect(self._path)
        except OSError as error:
            channel.close()
            hint = "does the server share memory (--shared-memory)?"
            raise httpx.ConnectError(f"{self._path}: {error.strerror or error}; {hint}") from error
        self._channel = channel
        return channel

    def _tidy(self, channel: socket.socket) -> None:
        """Take back what was returned; let go of what is too much, or belongs to a server of yesterday."""
        while self._returned:
            self._free.append(self._returned.popleft())
        while len(self._free) > KEPT:
            self._dropped.append(self._free.pop(0))
        while self._dropped:
            block = self._dropped.popleft()
            if block.channel is channel:
                _ask(channel, FORGET + block.token.encode())
        self._free = [block for block in self._free if block.channel is channel]


def _silent(channel: socket.socket) -> bool:
    """Whether a channel still stands: the server says nothing unasked."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    return not poller.poll(0)


def _shared(channel: socket.socket, size: int) -> Block | None:
    """A new block, shared with the server, if that takes it."""
    descriptor = os.memfd_create("nablad", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        # Page by page on first touch would take longer.
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        token = _ask(channel, SHARE, descriptor)
    finally:
        os.close(descriptor)
    return None if token is None else Block(memory, token, channel)


def _ask(channel: socket.socket, message: bytes, *descriptors: int) -> str | None:
    """What the server answers; None where it refuses."""
    try:
        socket.send_fds(channel, [message], descriptors)
        answer = channel.recv(LONGEST).decode()
    except OSError as error:
        raise httpx.ConnectError(f"memory could not be shared: {error}") from error
    if not answer:
        raise httpx.ConnectError("memory could not be shared: the server closed the connection")
    return None if answer.startswith("refused: ") else answer
