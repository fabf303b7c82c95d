"""`/health/live` and `/health/ready`, for load balancers and containers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from nablad_service.planning import programs
from nablad_service.running import scheduler

router = APIRouter(prefix="/health", tags=["health"])


@router.head("/live", include_in_schema=False)
@router.get("/live", summary="Is the process alive?")
async def live(request: Request) -> JSONResponse:
    """200 as long as the event loop turns; 503 where only a restart helps."""
    trouble, for_good = stuck(request.app.state)
    if trouble and for_good:
        return JSONResponse({"status": "stuck", "reason": trouble}, 503)
    return JSONResponse({"status": "live"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Should it get calls?")
async def ready(request: Request) -> JSONResponse:
    """200 while calls are welcome, 503 while the server starts, stops, or cannot compute."""
    state = request.app.state
    if not getattr(state, "ready", False):
        return JSONResponse({"status": "not ready"}, 503)
    trouble, _ = stuck(state)
    if trouble:
        return JSONResponse({"status": "not ready", "reason": trouble}, 503)
    queue = state.pipeline.scheduler.statistics()
    body = {
        "status": "ready",
        "device": state.device,
        "queue": queue.waiting_or_running,
        # No reason to withhold calls: the other models are served.
        "failed_models": len(state.pipeline.models.failed()),
    }
    return JSONResponse(body)


def stuck(state: Any) -> tuple[str | None, bool]:
    """What keeps the server from computing, and whether it has done so for as long as its limit again."""
    if not getattr(state, "ready", False):
        return None, False
    for seconds, limit, reason in (
        (state.pipeline.scheduler.stuck_for(), state.settings.run_seconds, scheduler.OCCUPIED),
        (state.pipeline.programs.stuck_for(), state.settings.compile_seconds, programs.OCCUPIED),
    ):
        if seconds:
            return reason, seconds > limit
    return None, False
