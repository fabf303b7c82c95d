"""Counts requests that go through the application: by endpoint and status, and the bytes both ways."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nablad_service.metrics import Metrics
from nablad_service.running.giving_way import GIVING_WAY


class Counting:
    """ASGI middleware around all routes. Calls of hot paths do not come here, and are counted there."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        GIVING_WAY.called()
        status, sent = 500, 0

        async def sending(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        announced = announced_bytes(scope)
        try:
            await self._app(scope, receive if announced is not None else self._received(receive), sending)
        finally:
            self._metrics.answered(endpoint(scope), status, announced or 0, sent)

    def _received(self, receive: Receive) -> Receive:
        """Bodies whose length was not announced are counted as they come."""

        async def receiving() -> Message:
            message = await receive()
            self._metrics.received.add(len(message.get("body", b"")))
            return message

        return receiving


def announced_bytes(scope: Scope) -> int | None:
    """The length of the body as its head says; None where it comes in pieces."""
    coded = False
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
        coded = coded or name == b"transfer-encoding"
    return None if coded else 0


def endpoint(scope: Scope) -> str:
    """The path as it was declared, names of models left open; `other` for what is nowhere."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
