"""`/health/live` and `/health/ready`, for load balancers and containers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

router = APIRouter(prefix="/health", tags=["health"])


@router.head("/live", include_in_schema=False)
@router.get("/live", summary="Is the process alive?")
async def live() -> JSONResponse:
    """200 as long as the event loop turns."""
    return JSONResponse({"status": "live"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Should it get calls?")
async def ready(request: Request) -> JSONResponse:
    """200 while calls are welcome, 503 while the server starts or stops."""
    state = request.app.state
    if not getattr(state, "ready", False):
        return JSONResponse({"status": "not ready"}, 503)
    queue = state.pipeline.scheduler.statistics()
    body = {
        "status": "ready",
        "device": state.device,
        "queue": queue.waiting_or_running,
        # No reason to withhold calls: the other models are served.
        "failed_models": len(state.pipeline.models.failed()),
    }
    return JSONResponse(body)
