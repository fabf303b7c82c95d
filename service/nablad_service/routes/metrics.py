"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nablad_service.metrics import Metrics

router = APIRouter(tags=["metrics"])


@router.get("/metrics", summary="Counters, as Prometheus reads them")
async def metrics(request: Request) -> Response:
    """Requests, refusals, queue and device time, batches, compilations, bytes; in Prometheus' text format."""
    counted: Metrics = request.app.state.metrics
    text, media = counted.text(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media})
