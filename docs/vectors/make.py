"""Writes `frames.json`: frames made with `struct` alone, to hold readers and writers against.

python docs/vectors/make.py
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

MAGIC = b"nablad\x00\x01"


def text(word: str) -> bytes:
    """A short string in msgpack."""
    return bytes([0xA0 + len(word)]) + word.encode()


def array(dtype: str, shape: list[int], data: bytes) -> bytes:
    """An array's mapping; `data` is msgpack already."""
    lengths = bytes([0x90 + len(shape), *shape])
    return b"\x83" + text("dtype") + text(dtype) + text("shape") + lengths + text("data") + data


def place(offset: int, length: int, kind: int = 1) -> bytes:
    """The extension value that stands for a buffer."""
    return b"\xd8" + bytes([kind]) + struct.pack("<QQ", offset, length)


def inline(data: bytes) -> bytes:
    """A short byte string in msgpack."""
    return b"\xc4" + bytes([len(data)]) + data


def frame(
    header: bytes,
    data: bytes = b"",
    *,
    magic: bytes = MAGIC,
    announced: int | None = None,
    size: int | None = None,
    zero: int = 0,
) -> bytes:
    """A frame, or one that says other things of itself than are true."""
    gap = bytes(-(32 + len(header)) % 64) if data else b""
    whole = 32 + len(header) + len(gap) + len(data)
    lengths = (len(header) if announced is None else announced, whole if size is None else size, zero)
    return struct.pack("<8sQQQ", magic, *lengths) + header + gap + data


numbers = struct.pack("<40d", *range(40))
halves = struct.pack("<200f", *[0.5] * 200)
behind = bytes(-len(numbers) % 64) + halves
one = b"\x81" + text("x") + array("float64", [40], place(0, 320))
two = (
    b"\x82"
    + text("x")
    + array("float64", [40], place(0, 320))
    + text("y")
    + array("float32", [2, 100], place(320, 800))
)
small = b"\x81" + text("x") + array("int32", [3], inline(struct.pack("<3i", 1, 2, 3)))
empty = b"\x81" + text("x") + array("float32", [0], place(0, 0))


def entries(dtype: str, shape: list[int], values: list[float]) -> dict[str, object]:
    """What a reader must find."""
    return {"dtype": dtype, "shape": shape, "values": values}


GOOD = [
    ("no arrays", frame(b"\x81" + text("seed") + b"\x07"), {"seed": 7}),
    ("forty zeros", frame(one, bytes(320)), {"x": entries("float64", [40], [0.0] * 40)}),
    ("one buffer", frame(one, numbers), {"x": entries("float64", [40], [float(i) for i in range(40)])}),
    (
        "two buffers",
        frame(two, numbers + behind),
        {
            "x": entries("float64", [40], [float(i) for i in range(40)]),
            "y": entries("float32", [2, 100], [0.5] * 200),
        },
    ),
    ("in the header", frame(small), {"x": entries("int32", [3], [1, 2, 3])}),
    ("no entries", frame(empty), {"x": entries("float32", [0], [])}),
]


def overlapping(first: tuple[int, int], second: tuple[int, int]) -> bytes:
    """Two arrays at these places (offset, length) of 192 bytes."""
    header = b"\x82" + text("x") + array("float64", [8], place(*first))
    header += text("y") + array("float64", [8], place(*second))
    return frame(header, bytes(192))


BAD = [
    ("nothing", b"", "it has 0 bytes, its prefix alone has 32; it seems cut short"),
    ("a prefix cut short", frame(small)[:31], "it has 31 bytes, its prefix alone has 32"),
    ("another magic", frame(small, magic=b"NABLAD\x00\x01"), "it begins with b'NABLAD"),
    ("another version", frame(small, magic=b"nablad\x00\x02"), "it has version 2, known is 1"),
    ("not zero at 24", frame(small, zero=1), "bytes 24 to 31 must be zero"),
    ("cut short", frame(one, numbers)[:-1], "it announces 448 bytes and has 447; it seems cut short"),
    ("more than announced", frame(one, numbers) + b"\x00", "it announces 448 bytes and has 449"),
    ("a header too long", frame(small, announced=1000), "its header is announced with 1000 bytes"),
    (
        "a header far too long",
        frame(small, announced=2**63),
        "its header is announced with 9223372036854775808",
    ),
    ("two values", frame(b"\x80\x80"), "the body holds 1 bytes after its msgpack value"),
    ("a header cut short", frame(small[:-4]), "it seems cut short"),
    ("another extension", frame(b"\x81" + text("x") + place(0, 0, kind=2)), "an extension of type 2"),
    (
        "half a place",
        frame(b"\x81" + text("x") + b"\xd7\x01" + bytes(8)),
        "a buffer's place has 8 bytes, it must have 16",
    ),
    ("misaligned", overlapping((8, 64), (128, 64)), "a buffer begins at 8, which is not a multiple of 64"),
    ("outside", overlapping((0, 64), (192, 64)), "a buffer of 64 bytes at 192 ends outside the 192 bytes"),
    ("far outside", overlapping((0, 64), (2**63, 2**63)), "ends outside the 192 bytes"),
    ("overlapping", overlapping((0, 128), (64, 64)), "the buffers at 0 and 64 overlap"),
    ("the same twice", overlapping((64, 64), (64, 64)), "the buffers at 64 and 64 overlap"),
]

if __name__ == "__main__":
    vectors = {
        "good": [{"name": name, "hex": body.hex(), "value": value} for name, body, value in GOOD],
        "refused": [{"name": name, "hex": body.hex(), "because": said} for name, body, said in BAD],
    }
    Path(__file__).with_name("frames.json").write_text(json.dumps(vectors, indent=1) + "\n")
