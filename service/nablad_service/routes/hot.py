"""Paths that calls come to in crowds: FastAPI describes them, and is not in their way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from nablad.compression import ZSTD
from nablad.problems import Refusal
from nablad.shared_memory import BODY, ROOM
from nablad_service.metrics import Metrics
from nablad_service.routes.bodies import size_of
from nablad_service.routes.failures import failure
from nablad_service.routes.problems import problem
from nablad_service.running.giving_way import GIVING_WAY
from nablad_service.sockets.polling import BusyPolling
from nablad_service.sockets.receiving import is_alone

Endpoint: TypeAlias = "Callable[..., Awaitable[Response]]"
"""Takes the request, and `name` where the path has one."""

NAME = "{name}"
LAYERED = frozenset((BODY, ROOM))
"""Headers of requests that need a layer of the application's."""


class HotPaths:
    """Answers POST on some paths by itself, before the application and its layers.

    To lead a small call through those takes half as long as all else that it needs. A call that needs one of
    them is left to the application, which has routes for these paths too: its body or its answer lies in
    shared memory, it wants a compressed answer, or does not say how long it is.

    Paths may have `{name}` before their last part. For `busy_poll` seconds after an answer the event loop
    looks for the next request without sleeping.
    """

    def __init__(self, endpoints: Mapping[str, Endpoint], metrics: Metrics, busy_poll: float) -> None:
        self._plain = {path: endpoint for path, endpoint in endpoints.items() if NAME not in path}
        self._named = {path: endpoint for path, endpoint in endpoints.items() if NAME in path}
        self._metrics = metrics
        self._polling = BusyPolling(busy_poll)

    async def answered(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether this was a call of a hot path, and has its answer now."""
        if scope.get("method") != "POST":
            return False
        if (found := self._found(scope["path"])) is None:
            return False
        path, endpoint, given = found
        headers: dict[bytes, bytes] = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        if not announced.isdigit() or not LAYERED.isdisjoint(headers):
            return False
        if headers.get(b"accept-encoding") == ZSTD.encode():
            return False
        GIVING_WAY.called()
        self._polling.asked()
        status, sent = 500, 0
        try:
            response = await _response(endpoint, Request(scope, receive), given)
            status = response.status_code
            await response(scope, receive, send)
            sent = size_of(response)
        finally:
            self._metrics.answered(path, status, int(announced), sent)
        self._polling.answered(alone=is_alone(scope))
        return True

    def _found(self, path: str) -> tuple[str, Endpoint, dict[str, str]] | None:
        """A path as it is declared, its endpoint, and the name in it; None where it is none of these."""
        if path in self._plain:
            return path, self._plain[path], {}
        first, _, last = path.rpartition("/")
        before, _, name = first.rpartition("/")
        declared = f"{before}/{NAME}/{last}"
        return (declared, self._named[declared], {"name": name}) if name and declared in self._named else None


async def _response(endpoint: Endpoint, request: Request, given: Mapping[str, str]) -> Response:
    try:
        return await endpoint(request, **given)
    except Refusal as refusal:
        return problem(refusal)
    except Exception as error:
        return failure(request.scope, error)
