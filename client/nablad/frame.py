"""The frame, `application/vnd.nablad.frame`: a msgpack header, and the arrays' buffers behind it.

Every buffer begins at a multiple of 64 bytes, so that NumPy and JAX view it where it lies; nothing is joined
to send it, and nothing is taken apart to read it. `docs/wire.md` specifies it byte by byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, TypeAlias

import msgpack
import numpy as np

from nablad.arrays import Attached
from nablad.problems import Refusal

Buffer: TypeAlias = "bytes | memoryview"

MAGIC = b"nablad\x00\x01"
"""The format's name, a zero, and its version."""
PREFIX = struct.Struct("<8sQQQ")
"""Magic, length of the header, length of the whole frame, and eight bytes that are zero."""
PLACE = struct.Struct("<QQ")
"""Where a buffer begins, counted from the first byte behind the header's padding, and its length."""
BUFFER = 1
"""The msgpack extension type that stands for a buffer's bytes in the header."""
ALIGNMENT = 64
"""What XLA asks of memory that it views; also a cache line."""
LARGEST_HEADER = 64 * 1024 * 1024
ZEROS = bytes(ALIGNMENT)


def aligned(size: int) -> memoryview:
    """`size` bytes of writable memory that begin at a multiple of 64, with whatever was there before.

    Raises:
        MemoryError: where there are not as many.
    """
    block = np.empty(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block.data[start : start + size]


def fill(block: Any, pieces: Iterable[Buffer]) -> int:
    """Copy the pieces of a body into writable memory, one behind the other; gives how many bytes they are."""
    # NumPy copies without holding the interpreter.
    into = np.frombuffer(block, np.uint8)
    end = 0
    for piece in pieces:
        into[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
        end += len(piece)
    return end


def padding(size: int) -> int:
    """How many bytes lead from `size` to the next multiple of 64."""
    return -size % ALIGNMENT


class _Attachments:
    """The buffers behind a header, and what stands for each of them there.

    Apart from who packs: the packer refers to it, and in a circle its 256 KiB and all buffers would wait for
    the garbage collector.
    """

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.end = 0

    def take(self, value: Any) -> Any:
        """What stands for a value that msgpack does not know."""
        if not isinstance(value, Attached):
            raise TypeError(f"{type(value).__name__} does not travel")
        size = len(value.view)
        # Small ones too: requests that differ only in their numbers have the same header, and are read by it.
        gap = padding(self.end)
        if gap:
            self.buffers.append(ZEROS[:gap])
        offset = self.end + gap
        self.buffers.append(value.view)
        self.end = offset + size
        return msgpack.ExtType(BUFFER, PLACE.pack(offset, size))


class FrameWriter:
    """Packs a structure whose arrays are `Attached`; the buffers are taken as they are, not copied."""

    def __init__(self) -> None:
        self._attached = _Attachments()
        self._packer = msgpack.Packer(default=self._attached.take, autoreset=False)

    def pack(self, value: Any) -> None:
        """Add a value, or a member's name or value, to the header."""
        self._packer.pack(value)

    def begin_map(self, members: int) -> None:
        """Begin a mapping; its names and values follow one by one."""
        self._packer.pack_map_header(members)

    def pieces(self) -> list[Buffer]:
        """The frame, in pieces that follow one another."""
        header, attached = self._packer.getbuffer(), self._attached
        gap = padding(PREFIX.size + len(header)) if attached.buffers else 0
        size = PREFIX.size + len(header) + gap + attached.end
        first = b"".join((PREFIX.pack(MAGIC, len(header), size, 0), header, ZEROS[:gap]))
        return [first, *attached.buffers]


def unpack_frame(body: Buffer, unpack: Callable[..., Any]) -> Any:
    """The structure in a frame; the data of its arrays are views of `body`.

    `unpack` reads the msgpack header, given an `ext_hook`.

    Raises:
        Refusal: `malformed_body`, saying what of the frame does not fit.
    """
    body = memoryview(body)
    if len(body) < PREFIX.size:
        raise _malformed(f"it has {len(body)} bytes, its prefix alone has {PREFIX.size}; it seems cut short")
    magic, header, size, reserved = PREFIX.unpack_from(body)
    if magic[:-1] != MAGIC[:-1]:
        raise _malformed(f"it begins with {bytes(magic)!r}, not with {MAGIC!r}")
    if magic != MAGIC:
        raise _malformed(f"it has version {magic[-1]}, known is {MAGIC[-1]}")
    if reserved:
        raise _malformed("bytes 24 to 31 must be zero")
    if size != len(body):
        hint = "; it seems cut short" if size > len(body) else ""
        raise _malformed(f"it announces {size} bytes and has {len(body)}{hint}")
    if header > min(LARGEST_HEADER, size - PREFIX.size):
        most = min(LARGEST_HEADER, size - PREFIX.size)
        raise _malformed(f"its header is announced with {header} bytes, at most {most} are possible")
    behind = PREFIX.size + header
    start = min(behind + padding(behind), size)
    reader = _Reader(body[start:])
    value = unpack(body[PREFIX.size : behind], ext_hook=reader.view)
    reader.check()
    return value


def header_of(body: Buffer, most: int) -> bytes | None:
    """A frame from its first byte to the end of its header; None for what is none, or a header over `most`.

    Two frames of equal length in which these are equal hold the same structure, with buffers in the same
    places: what was checked for one holds for the other.
    """
    if len(body) < PREFIX.size:
        return None
    magic, header, size, _ = PREFIX.unpack_from(body)
    if magic != MAGIC or size != len(body) or header > most:
        return None
    return bytes(body[: PREFIX.size + header])


def buffers_of(body: Buffer) -> list[tuple[int, int]]:
    """Where the buffers of a frame that has been read are: offset from its first byte, and length."""
    _, header, _, _ = PREFIX.unpack_from(body)
    behind = PREFIX.size + header
    start = behind + padding(behind)
    found: list[tuple[int, int]] = []

    def note(kind: int, place: bytes) -> None:
        offset, length = PLACE.unpack(place)
        if length:
            found.append((start + offset, length))

    msgpack.unpackb(memoryview(body)[PREFIX.size : behind], ext_hook=note)
    return found


class _Reader:
    """The buffers of a frame, as the header's extension values ask for them."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._taken: list[tuple[int, int]] = []

    def view(self, kind: int, place: bytes) -> memoryview:
        if kind != BUFFER:
            raise _malformed(f"its header has an extension of type {kind}; known is {BUFFER}, a buffer")
        if len(place) != PLACE.size:
            raise _malformed(f"a buffer's place has {len(place)} bytes, it must have {PLACE.size}")
        offset, length = PLACE.unpack(place)
        if offset % ALIGNMENT:
            raise _malformed(f"a buffer begins at {offset}, which is not a multiple of {ALIGNMENT}")
        if offset + length > len(self._data):
            behind = f"the {len(self._data)} bytes behind the header"
            raise _malformed(f"a buffer of {length} bytes at {offset} ends outside {behind}")
        if length:
            self._taken.append((offset, length))
        return self._data[offset : offset + length]

    def check(self) -> None:
        """Refuse buffers that overlap: writing to one array would change another."""
        taken = sorted(self._taken)
        for (before, length), (after, _) in pairwise(taken):
            if before + length > after:
                raise _malformed(f"the buffers at {before} and {after} overlap")


def _malformed(detail: str) -> Refusal:
    return Refusal("malformed_body", f"the body is not a frame: {detail}")
