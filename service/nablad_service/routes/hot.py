"""Paths that calls come to in crowds: FastAPI describes them, and is not in their way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fastapi import Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nablad.problems import Refusal
from nablad_service.sockets.polling import BusyPolling
from nablad_service.sockets.receiving import is_alone

Endpoint: TypeAlias = "Callable[..., Awaitable[Response]]"
"""Takes the request, and `name` where the path has one."""
Refuse: TypeAlias = "Callable[[Refusal], Response]"


NAME = "{name}"


@dataclass(frozen=True)
class _Hot:
    path: str
    """As it was declared."""
    endpoint: Endpoint


class HotPaths:
    """ASGI middleware that answers POST on some paths by itself, and leaves all else to the application.

    To find the route of a call, and to wrap it, takes the application as long as all that a small call needs.
    Paths may have `{name}` before their last part. `refuse` makes a response of a refusal. For
    `busy_poll` seconds after an answer the event loop looks for the next request without sleeping.
    """

    def __init__(
        self, app: ASGIApp, endpoints: Mapping[str, Endpoint], refuse: Refuse, busy_poll: float
    ) -> None:
        self._app = app
        self._hot = {path: _Hot(path, endpoint) for path, endpoint in endpoints.items()}
        self._refuse = refuse
        self._polling = BusyPolling(busy_poll)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hot, given = self._found(scope["path"]) if scope.get("method") == "POST" else (None, {})
        if hot is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = hot
        self._polling.asked()
        try:
            response = await hot.endpoint(Request(scope, receive), **given)
        except Refusal as refusal:
            response = self._refuse(refusal)
        await response(scope, receive, send)
        self._polling.answered(alone=is_alone(scope))

    def _found(self, path: str) -> tuple[_Hot | None, dict[str, str]]:
        hot = self._hot.get(path)
        if hot is not None:
            return hot, {}
        before, _, last = path.rpartition("/")
        before, _, name = before.rpartition("/")
        return self._hot.get(f"{before}/{NAME}/{last}"), {"name": name}
