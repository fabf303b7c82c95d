"""Routes for calls that come in crowds: FastAPI describes them, and is not in their way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class HotRoute(APIRoute):
    """A route whose endpoint takes the request, and path parameters by name, and returns a response.

    FastAPI prepares each call for dependencies and validation, which these endpoints do not use: a third of
    the time of a small call goes there. In OpenAPI the route is one like all others.
    """

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive), **scope["path_params"])
            await response(scope, receive, send)

        self.app = app
