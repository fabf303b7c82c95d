"""Bodies compressed with zstd, by `Content-Encoding`.

Dense floats shrink by a few percent, at more time than a network of 1 Gbit/s takes for them; sparse gradients
(of an embedding, say) shrink twentyfold. So it is done only where asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nablad.frame import Buffer, aligned
from nablad.problems import Refusal

ZSTD = "zstd"
WORTH = 4 * 1024
"""Bytes from which on a body is compressed."""
LEVEL = 1
"""The fastest: higher ones find little more in numbers."""
AT_ONCE = 1024 * 1024


def available() -> bool:
    """Whether the package is installed."""
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def compressed(pieces: Sequence[Buffer]) -> list[Buffer]:
    """A body in pieces as one frame of zstd, which says how many bytes it holds."""
    import zstandard

    size = sum(map(len, pieces))
    compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=size)
    found: list[Buffer] = []
    for piece in pieces:
        view = memoryview(piece)
        starts = range(0, len(view), AT_ONCE)
        found.extend(compressor.compress(view[start : start + AT_ONCE]) for start in starts)
    found.append(compressor.flush())
    return [piece for piece in found if len(piece)]


def decompressed(body: Buffer, limit: int | None = None) -> memoryview:
    """The body in a frame of zstd, in aligned memory; never more than `limit` bytes are made of it.

    Raises:
        Refusal: `body_too_large`, or `malformed_body` where it is no frame of zstd that says its size.
    """
    import zstandard

    try:
        size = zstandard.frame_content_size(bytes(body[:64]))
    except zstandard.ZstdError as error:
        raise _malformed(error) from None
    if size < 0:
        raise _malformed("its frame does not say how many bytes it holds")
    if limit is not None and size > limit:
        raise Refusal(
            "body_too_large", f"the body holds {size} bytes, at most {limit} are allowed; send less at once"
        )
    block = aligned(size)
    end = 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(body) as reader:
            while end < size and (count := reader.readinto(block[end:])):
                end += count
            more = reader.read(1)
    except zstandard.ZstdError as error:
        raise _malformed(error) from None
    if end < size or more:
        said = "more than that" if more else f"{end}; it seems cut short"
        raise _malformed(f"its frame says that it holds {size} bytes, it holds {said}")
    return block


def _malformed(why: Any) -> Refusal:
    return Refusal("malformed_body", f"the body is not valid zstd: {why}")
