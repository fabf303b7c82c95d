"""Where the byte strings of a msgpack value lie, and where a member of it begins."""

from __future__ import annotations

from collections.abc import Iterator

# Formats of the specification by first byte: the width of a length that follows, or of the value itself.
BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
LISTS = {0xDC: 2, 0xDD: 4}
MAPPINGS = {0xDE: 2, 0xDF: 4}
NUMBERS = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def byte_strings(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of each byte string in a value, in their order.

    `data` is known to be msgpack: something has read it, or written it.
    """
    return _Walk(data, 0).value()


def member_at(data: bytes, name: str, start: int = 0) -> int:
    """Where the value of a member of the mapping at `start` begins.

    Raises:
        KeyError: where there is none of that name.
    """
    walk = _Walk(data, start)
    for _ in range(walk.mapping() or 0):
        key = walk.string()
        if key == name:
            return walk.at
        for _ in walk.value():
            pass
    raise KeyError(name)


class _Walk:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def value(self) -> Iterator[tuple[int, int]]:
        """The byte strings of the value that begins here; steps over it."""
        first = self._data[self.at]
        if (members := self.mapping()) is not None:
            for _ in range(members):
                self.string()
                yield from self.value()
        elif (items := self._count(first, 0x90, 0x0F, LISTS)) is not None:
            for _ in range(items):
                yield from self.value()
        elif first in BINARIES:
            length = self._number(1, BINARIES[first])
            self.at += length
            yield self.at - length, self.at
        elif first in FIXED_EXTENSIONS:
            self.at += 2 + FIXED_EXTENSIONS[first]
        elif first in EXTENSIONS:
            length = self._number(1, EXTENSIONS[first])
            self.at += 1 + length
        elif 0xA0 <= first <= 0xBF or first in STRINGS:
            self.string()
        else:
            self.at += 1 + NUMBERS.get(first, 0)

    def mapping(self) -> int | None:
        """The number of members, if a mapping begins here."""
        return self._count(self._data[self.at], 0x80, 0x0F, MAPPINGS)

    def string(self) -> str:
        first = self._data[self.at]
        if 0xA0 <= first <= 0xBF:
            length = first & 0x1F
            self.at += 1
        else:
            length = self._number(1, STRINGS[first])
        self.at += length
        return self._data[self.at - length : self.at].decode()

    def _count(self, first: int, small: int, mask: int, wide: dict[int, int]) -> int | None:
        if first & ~mask == small:
            self.at += 1
            return first & mask
        return self._number(1, wide[first]) if first in wide else None

    def _number(self, skip: int, width: int) -> int:
        begin = self.at + skip
        self.at = begin + width
        return int.from_bytes(self._data[begin : self.at], "big")
