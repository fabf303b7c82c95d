"""`/v1/values`: arrays and trees that requests name by their handle."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nablad.arrays import decode_array, is_array_form
from nablad.messages import PinRequest, ValueInfo, ValueRequest, decode_arrays
from nablad.problems import Refusal
from nablad_service.requests.reading import decode
from nablad_service.routes.bodies import TENANT, answer_format, document, pipeline, read_body, tenant_of
from nablad_service.routes.schema import takes
from nablad_service.running.off_loop import off_loop

router = APIRouter(prefix="/v1/values", tags=["values"])


@router.put("", openapi_extra=takes(ValueRequest), summary="Put a value")
async def put_value(request: Request) -> Response:
    """Keep an array or a tree under the digest of its content; the answer has its handle.

    Requests name it as `{"handle": "..."}` wherever an array or a tree may stand. It stays until room is
    needed for others, or for good where it is pinned. Putting it once more only counts as use.
    """
    body = await read_body(request)
    values = pipeline(request).values

    def work() -> ValueInfo:
        wanted = decode(body, ValueRequest)
        if is_array_form(wanted.value):
            return values.put(body.tenant, decode_array(wanted.value, "value"), wanted.pinned)
        if not wanted.value:
            raise Refusal("invalid_request", "'value' is an empty tree; send at least one array")
        return values.put(body.tenant, decode_arrays(wanted.value, "value."), wanted.pinned)

    info = await off_loop(len(body.data), work)
    return document(info.model_dump(mode="json"), body.answer)


@router.get("", summary="All values of a tenant")
async def all_values(request: Request) -> Response:
    """What the tenant has put and is there still, most recently used first; and how much room there is."""
    values = await asyncio.to_thread(pipeline(request).values.all, _tenant(request))
    shelf = request.app.state.shelf.statistics()
    listed = {
        "values": [info.model_dump(mode="json") for info in values],
        "limit": shelf.limit,
        "free": shelf.free_bytes,
    }
    return document(listed, answer_format(request)[0])


@router.get("/{handle}", summary="One value")
async def one_value(request: Request, handle: str) -> Response:
    """Shapes, dtypes, bytes, pin and last use of a value; its numbers stay here."""
    info = pipeline(request).values.info(_tenant(request), handle)
    return document(info.model_dump(mode="json"), answer_format(request)[0])


@router.patch("/{handle}", openapi_extra=takes(PinRequest), summary="Pin or unpin a value")
async def pin_value(request: Request, handle: str) -> Response:
    """Let a value stay whatever else comes, or let it go again when room is needed."""
    body = await read_body(request)
    pinned = decode(body, PinRequest).pinned
    info = pipeline(request).values.pin(body.tenant, handle, pinned)
    return document(info.model_dump(mode="json"), body.answer)


@router.delete("/{handle}", status_code=204, summary="Let go of a value")
async def delete_value(request: Request, handle: str) -> Response:
    """Forget a value, pinned or not; calls that compute with it finish."""
    pipeline(request).values.delete(_tenant(request), handle)
    return Response(status_code=204)


def _tenant(request: Request) -> str:
    return tenant_of(request.headers.get(TENANT))
