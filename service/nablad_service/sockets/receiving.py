"""An extension of ASGI: a large body is received into a block of the application's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sized
from typing import Any, TypeAlias

RECEIVE_INTO = "nablad.receive_into"
"""The extension's name in `scope["extensions"]`: `await receive_into(block)` fills the block with the body,
and gives how many bytes came before the connection ended. For bodies of announced length, once, before
anything was received in the usual way."""
LYING = "nablad.lying_body"
"""What `scope["extensions"]` calls a body that lies in memory already: nothing of it is received."""
OPEN = "nablad.open_requests"
"""What it calls the requests that the server is at work on, this one among them: something with a length."""
WORTH = 256 * 1024
"""Bytes of a body from which on this is worth it; most of a smaller one came with its head."""

ReceiveInto: TypeAlias = "Callable[[memoryview], Awaitable[int]]"


def is_alone(scope: Mapping[str, Any]) -> bool:
    """Whether no other request is open; False where the server does not say."""
    requests: Sized | None = (scope.get("extensions") or {}).get(OPEN)
    return requests is not None and len(requests) < 2


def receiver(scope: Mapping[str, Any], size: int) -> ReceiveInto | None:
    """The extension, where the server has it and a body of `size` bytes is worth it."""
    found: ReceiveInto | None = (scope.get("extensions") or {}).get(RECEIVE_INTO)
    return found if size >= WORTH else None
