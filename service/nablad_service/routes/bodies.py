"""Reading a request's body and formats, the same way for every route."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from nablad import wire
from nablad.arrays import Encoding
from nablad.compression import ZSTD, available, decompressed
from nablad.frame import Buffer, aligned
from nablad.halves import Floats
from nablad.problems import Refusal
from nablad_service.pipeline import Answer, Pipeline
from nablad_service.requests.reading import Body
from nablad_service.routes.whole_answers import send_pieces
from nablad_service.running.off_loop import off_loop
from nablad_service.sockets.receiving import LYING, is_alone, receiver

TENANT = "Nablad-Tenant"
LONGEST_TENANT = 200

Lend: TypeAlias = "Callable[[int], memoryview]"
"""Gives memory of so many bytes."""


def pipeline(request: Request) -> Pipeline:
    """The application's pipeline."""
    found: Pipeline = request.app.state.pipeline
    return found


async def read_body(request: Request, *, streams: bool = False) -> Body:
    """The body, bounded, with the formats it comes in and is answered in.

    Where the answer `streams` it has a format of its own, and nobody is asked for another.

    Raises:
        Refusal: `body_too_large`, `unknown_media_type`, `not_acceptable`, or `malformed_body` where the
            connection ended early.
    """
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    media, answer, encoding, floats = formats(
        headers.get(b"content-type"), None if streams else headers.get(b"accept")
    )
    coding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if coding != "identity" and not (coding == ZSTD and available()):
        spoken = f"with {ZSTD} or without" if available() else "without"
        raise Refusal("unknown_media_type", f"bodies come {spoken} Content-Encoding, not as '{coding}'")
    limit = request.app.state.settings.max_body_bytes
    named = headers.get(b"nablad-tenant")
    tenant = tenant_of(named.decode("latin-1")) if named else ""
    lying: memoryview | None = (request.scope.get("extensions") or {}).get(LYING)
    announced = headers.get(b"content-length", b"")
    size = len(lying) if lying is not None else int(announced) if announced.isdigit() else None
    if size is not None and size > limit:
        raise _too_large(limit)
    try:
        if lying is not None:
            data: Buffer = lying
        elif size is None:
            data = await _received(request, limit)
        else:
            # A frame is viewed where it lies, in memory that is kept; what else comes is copied, and gone.
            lend = request.app.state.blocks.lend if media == wire.FRAME else aligned
            data = await _received_in_place(request, size, lend)
    except ClientDisconnect:
        raise Refusal("malformed_body", "the connection ended before the body did") from None
    if coding == ZSTD:
        came = data
        data = await off_loop(limit, lambda: decompressed(came, limit))
    return Body(data, media, answer, encoding, tenant, floats, is_alone(request.scope))


@lru_cache(maxsize=256)
def formats(content_type: bytes | None, accept: bytes | None) -> tuple[str, str, Encoding, Floats | None]:
    """The format of a body, and of its answer with the encoding of arrays and floats there.

    Raises:
        Refusal: `unknown_media_type` or `not_acceptable`.
    """
    media = wire.media_type(None if content_type is None else content_type.decode("latin-1"))
    return media, *wire.answer_type(None if accept is None else accept.decode("latin-1"), media)


async def _received_in_place(request: Request, size: int, lend: Lend) -> Buffer:
    """A body of announced size, in one aligned block: what it holds is viewed there from then on."""
    if receive_into := receiver(request.scope, size):
        # JAX holds on to the inputs of one call until the next, or until cycles are collected: with them gone
        # their block is used again.
        gc.collect(0)
        block = room(size, lend)
        if await receive_into(block) < size:
            raise ClientDisconnect
        return block
    end = 0
    data: memoryview | None = None
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if len(chunk) == size:
            return chunk  # a small body comes whole; the alignment of small arrays is worth no copy
        # Made when the first bytes are here: an announcement alone costs no memory.
        data = room(size, aligned) if data is None else data
        data[end : end + len(chunk)] = chunk
        end += len(chunk)
    return b"" if data is None else data[:end]


def room(size: int, lend: Lend) -> memoryview:
    """Memory for a body.

    Raises:
        Refusal: `out_of_memory`.
    """
    try:
        return lend(size)
    except MemoryError:
        detail = f"the server has no memory for a body of {size} bytes; send less at once"
        raise Refusal("out_of_memory", detail) from None


async def _received(request: Request, limit: int) -> Buffer:
    """A body that comes in chunks without saying how many."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise _too_large(limit)
    return memoryview(data)


def tenant_of(header: str | None) -> str:
    """Whose values a request's handles name, from its header `Nablad-Tenant`; "" is the common tenant.

    Raises:
        Refusal: `invalid_request` where the name is longer than a name.
    """
    tenant = (header or "").strip()
    if len(tenant) > LONGEST_TENANT:
        detail = f"the header {TENANT} has {len(tenant)} letters, at most {LONGEST_TENANT} name a tenant"
        raise Refusal("invalid_request", detail)
    return tenant


def _too_large(limit: int) -> Refusal:
    return Refusal("body_too_large", f"the body is larger than {limit} bytes; send less at once")


def answer_format(request: Request) -> tuple[str, Encoding]:
    """The format of the answer to a request without a body; JSON unless asked otherwise."""
    return wire.answer_type(request.headers.get("accept"), wire.JSON)[:2]


def respond(answer: Answer) -> Response:
    """An answer with its timing in `Server-Timing` too."""
    return PiecesResponse(answer.pieces, answer.media, timing=answer.timing.header())


def document(value: Any, media: str, status: int = 200) -> Response:
    """A plain structure in the format asked for."""
    return PiecesResponse(wire.encode_body(value, media), media, status)


JOINED = 64 * 1024
"""Bytes up to which an answer's pieces are joined."""


class PiecesResponse(Response):
    """A body in pieces under one `Content-Length`: large ones sent as they lie, small ones joined."""

    def __init__(self, pieces: Sequence[Buffer], media: str, status: int = 200, timing: str = "") -> None:
        self.size = size = wire.body_size(pieces)
        # Each piece is a message to the protocol and a write to the socket: dearer than a copy of few bytes.
        self._pieces = pieces if size > JOINED else [b"".join(pieces)]
        self.status_code = status
        self.media_type = media
        self.background = None
        self.body = b""
        # As Starlette would write them, which takes a small call a twentieth of its time.
        self.raw_headers = [(b"content-length", b"%d" % size), (b"content-type", media.encode("latin-1"))]
        if timing:
            self.raw_headers.append((b"server-timing", timing.encode("latin-1")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send_pieces(self._pieces, send)


def size_of(response: Response) -> int:
    """Bytes of an answer's body."""
    return response.size if isinstance(response, PiecesResponse) else len(response.body)
