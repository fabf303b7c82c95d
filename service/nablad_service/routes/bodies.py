"""Reading a request's body and formats, the same way for every route."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from nablad import wire
from nablad.arrays import Encoding
from nablad.messages import Timing
from nablad.problems import Refusal
from nablad_service.pipeline import Answer, Body, Pipeline

TENANT = "Nablad-Tenant"
LONGEST_TENANT = 200


def pipeline(request: Request) -> Pipeline:
    """The application's pipeline."""
    found: Pipeline = request.app.state.pipeline
    return found


async def read_body(request: Request) -> Body:
    """The body, bounded, with the formats it comes in and is answered in.

    Raises:
        Refusal: `body_too_large`, `unknown_media_type`, `not_acceptable`, or `malformed_body` where the
            connection ended early.
    """
    media = wire.media_type(request.headers.get("content-type"))
    if (coding := request.headers.get("content-encoding", "identity")) != "identity":
        raise Refusal("unknown_media_type", f"bodies come without Content-Encoding, not as '{coding}'")
    answer, encoding = wire.answer_type(request.headers.get("accept"), media)
    limit = request.app.state.settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        raise Refusal("malformed_body", "the connection ended before the body did") from None
    return Body(bytes(data), media, answer, encoding, tenant_of(request.headers.get(TENANT)))


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
    return wire.answer_type(request.headers.get("accept"), wire.JSON)


def respond(answer: Answer) -> Response:
    """An answer with its timing in `Server-Timing` too."""
    return Response(
        answer.data, media_type=answer.media, headers={"Server-Timing": server_timing(answer.timing)}
    )


def document(value: Any, media: str, status: int = 200) -> Response:
    """A plain structure in the format asked for."""
    return Response(wire.encode_body(value, media), status, media_type=media)


def server_timing(timing: Timing) -> str:
    """W3C Server-Timing: milliseconds by phase."""
    phases = ("decode", "queue", "compile", "device", "encode")
    return ", ".join(f"{phase};dur={getattr(timing, f'{phase}_ms'):.3f}" for phase in phases)
