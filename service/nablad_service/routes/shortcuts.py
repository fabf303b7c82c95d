"""`POST /v1/models/{name}/apply`, `jacobian`, `jvp`, `vjp`, `hvp`, `hutchinson`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nablad.messages import ShortcutRequest
from nablad_service.requests.shortcuts import SHORTCUTS
from nablad_service.routes.bodies import pipeline, read_body
from nablad_service.routes.leaving import answer
from nablad_service.routes.schema import takes

router = APIRouter(prefix="/v1/models", tags=["shortcuts"])


def _add(operator: str) -> None:
    async def shortcut(request: Request, name: str) -> Response:
        return await answer(request, pipeline(request).shortcut(name, operator, await read_body(request)))

    router.add_api_route(
        f"/{{name}}/{operator}",
        shortcut,
        methods=["POST"],
        name=operator,
        summary=SHORTCUTS[operator].doc,
        openapi_extra=takes(ShortcutRequest),
    )


for _operator in SHORTCUTS:
    _add(_operator)
