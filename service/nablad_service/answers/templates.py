"""Answers of one program differ in the bytes of their arrays and in their timing alone: the rest is kept.

An answer is packed once as any other; what lies between its arrays is remembered, and the next one is put
together from that and its own arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from nablad import wire
from nablad.frame import MAGIC, PREFIX, ZEROS, Buffer, padding
from nablad_service.requests.msgpack_layout import byte_strings, member_at

LARGEST = 64 * 1024
"""Bytes of an answer: what takes time with a larger one is not its packing."""
ARRAYS = (np.ndarray, np.generic)
DICTS, SEQUENCES = dict, (tuple, list)


@dataclass(frozen=True, eq=False)
class AnswerTemplate:
    """What all answers of one program have in common."""

    media: str
    between: tuple[bytes, ...]
    """Before each array that msgpack holds, and before the timing."""
    behind: tuple[bytes | None, ...]
    """What follows a frame's header: bytes that stay, and arrays (None)."""
    behind_size: int
    kinds: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    """Shape and dtype of each array, in the order of the answer."""

    def body(self, result: Mapping[str, Any], last: Callable[[], Any]) -> bytes | None:
        """The body of an answer, in one piece; None where the answer is of another make."""
        leaves = arrays_of(result)
        if len(leaves) != len(self.kinds):
            return None
        for leaf, (shape, dtype) in zip(leaves, self.kinds, strict=True):
            if not isinstance(leaf, ARRAYS) or leaf.shape != shape or leaf.dtype != dtype:
                return None
        if self.media == wire.MSGPACK:
            parts = [self.between[0]]
            for leaf, after in zip(leaves, self.between[1:], strict=True):
                parts += (leaf.tobytes(), after)
            return b"".join((*parts, msgpack.packb(last())))
        (before,) = self.between
        timing = msgpack.packb(last())
        header = len(before) + len(timing)
        gap = padding(PREFIX.size + header)
        prefix = PREFIX.pack(MAGIC, header, PREFIX.size + header + gap + self.behind_size, 0)
        given = iter(leaves)
        behind = [next(given).tobytes() if piece is None else piece for piece in self.behind]
        return b"".join((prefix, before, timing, ZEROS[:gap], *behind))


def arrays_of(result: Mapping[str, Any]) -> list[Any]:
    """The arrays of an answer, in the order in which they are packed."""
    found: list[Any] = []
    _collect(result, found)
    return found


def _collect(section: Any, found: list[Any]) -> None:
    if isinstance(section, ARRAYS):
        found.append(section)
    elif isinstance(section, DICTS):
        for item in section.values():
            _collect(item, found)
    elif isinstance(section, SEQUENCES):
        for item in section:
            _collect(item, found)
    elif section is not None:
        found.append(section)


def template_of(pieces: Sequence[Buffer], result: Mapping[str, Any], media: str) -> AnswerTemplate | None:
    """What is to be remembered of an answer, whose last member is `timing`; None where that is not known."""
    if media not in (wire.MSGPACK, wire.FRAME) or sum(map(len, pieces)) > LARGEST:
        return None
    leaves = arrays_of(result)
    if not leaves or not all(map(_plain, leaves)):
        return None
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    sizes = [leaf.nbytes for leaf in leaves]
    first = bytes(pieces[0])
    if media == wire.MSGPACK:
        between, at = [], 0
        strings = list(byte_strings(first))
        if [end - start for start, end in strings] != sizes:
            return None
        for start, end in strings:
            between.append(first[at:start])
            at = end
        between.append(first[at : member_at(first, "timing")])
        return AnswerTemplate(media, tuple(between), (), 0, kinds)
    behind: list[bytes | None] = []
    lengths, end = [], 0
    for size in sizes:
        if gap := padding(end):
            behind.append(ZEROS[:gap])
            lengths.append(gap)
        behind.append(None)
        lengths.append(size)
        end += gap + size
    if lengths != [len(piece) for piece in pieces[1:]]:
        return None
    header = first[PREFIX.size : member_at(first, "timing", PREFIX.size)]
    return AnswerTemplate(media, (header,), tuple(behind), end, kinds)


def _plain(leaf: Any) -> bool:
    return isinstance(leaf, ARRAYS) and leaf.dtype.isnative and leaf.size > 0
