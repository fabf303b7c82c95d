"""Calls whose bodies and answers travel compressed."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from nablad import wire
from nablad.calls import Call
from nablad.compression import WORTH, ZSTD, available, compressed, decompressed
from nablad.errors import InvalidAnswer
from nablad.problems import Refusal
from nablad.transports.incoming import Answer

T = TypeVar("T")


def check_compression(compression: str | None, shared_memory: bool) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: an unknown compression, one without its package, or one of what does not travel.
    """
    if compression is None:
        return
    if compression != ZSTD:
        raise ValueError(f"compression is {ZSTD!r} or None, not {compression!r}")
    if shared_memory:
        raise ValueError("compression is for networks, and does not go with shared_memory")
    if not available():
        raise ValueError('compression="zstd" needs the package zstandard: pip install "nablad[zstd]"')


def squeezed(call: Call[T]) -> Call[T]:
    """A call with its body compressed, where that is worth it, that asks for an answer likewise."""
    headers = {**call.headers, "Accept-Encoding": ZSTD}
    if call.body is None or wire.body_size(call.body) < WORTH:
        return replace(call, headers=headers)
    return replace(call, headers={**headers, "Content-Encoding": ZSTD}, body=compressed(call.body))


def restored(answer: Answer) -> Answer:
    """An answer without its compression.

    Raises:
        InvalidAnswer: it is no zstd.
    """
    if answer.header(b"content-encoding") != ZSTD:
        return answer
    try:
        return Answer(answer.status, answer.headers, decompressed(answer.body))
    except Refusal as error:
        raise InvalidAnswer(f"the answer cannot be read: {error}") from error
