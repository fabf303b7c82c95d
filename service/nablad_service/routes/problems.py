"""Refusals as answers: problem documents, RFC 9457."""

from __future__ import annotations

from fastapi.responses import Response

from nablad import wire
from nablad.problems import Problem, Refusal


def problem(refusal: Refusal) -> Response:
    """A refusal as its problem document."""
    document = Problem.of(refusal)
    headers = {}
    retry_after = (refusal.extra or {}).get("retry_after")
    if document.status == 503:
        headers["Retry-After"] = str(retry_after or 1)
    return Response(document.json_bytes(), document.status, headers, media_type=wire.PROBLEM)
