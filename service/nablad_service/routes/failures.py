"""What nobody foresaw, answered as a problem too."""

from __future__ import annotations

import logging

from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nablad.problems import Refusal
from nablad_service.routes.problems import problem

log = logging.getLogger("nablad")


class Failures:
    """ASGI middleware: an error raised past the application would cost the connection too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await failure(scope, error)(scope, receive, send)


def failure(scope: Scope, error: Exception) -> Response:
    """The answer to a request whose work raised `error`; the log has the rest."""
    log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
    return problem(Refusal("internal", f"the server failed ({type(error).__name__}); its log says more"))
