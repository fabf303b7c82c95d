"""Refusals as they leave: RFC 9457 problem documents."""

from __future__ import annotations

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from nablad import wire
from nablad.problems import Problem, Refusal


class ProblemResponse(Response):
    """A problem document on its way, counted as it leaves."""

    def __init__(self, document: Problem, headers: dict[str, str]) -> None:
        super().__init__(document.json_bytes(), document.status, headers, media_type=wire.PROBLEM)
        self._code = document.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"].state.metrics.refusals.labels(self._code).inc()
        await super().__call__(scope, receive, send)


def problem(refusal: Refusal) -> Response:
    """A refusal as its problem document; it forgets how it came about."""
    # The frames of its traceback hold the request's body and, through the task they waited for, the refusal:
    # in a circle they would stay until the collector has its turn.
    refusal.__traceback__ = refusal.__context__ = None
    document = Problem.of(refusal)
    headers = {}
    retry_after = (refusal.extra or {}).get("retry_after")
    if document.status == 503:
        headers["Retry-After"] = str(retry_after or 1)
    return ProblemResponse(document, headers)
