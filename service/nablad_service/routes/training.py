"""`/v1/train`: loops that run on the server, followed as server-sent events."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from nablad.arrays import encode_tree
from nablad.problems import Refusal
from nablad.training.messages import TrainRequest
from nablad_service.requests.reading import decode
from nablad_service.routes.bodies import TENANT, answer_format, document, pipeline, read_body, tenant_of
from nablad_service.routes.leaving import CLOSED, CallerLeft, while_there
from nablad_service.routes.schema import takes
from nablad_service.running.off_loop import off_loop
from nablad_service.training.run import Run
from nablad_service.training.runs import Runs

router = APIRouter(prefix="/v1/train", tags=["training"])
EVENTS = "text/event-stream"


@router.post("", openapi_extra=takes(TrainRequest), summary="Train on the server")
async def train(request: Request) -> Response:
    """Run a whole loop: program, optimiser, data, steps. The answer is a stream of events.

    `started`, `report` and `checkpoint` as they come, and at the end `done`, `stopped`, `diverged` or
    `failed`. What is wrong with the request is refused before anything begins.
    """
    body = await read_body(request, streams=True)
    wanted = await off_loop(len(body.data), lambda: decode(body, TrainRequest))
    lookups = pipeline(request).reader.lookups(body)
    try:
        run = await while_there(request, _runs(request).begin(wanted, lookups, body.tenant))
    except CallerLeft:
        return Response(status_code=CLOSED)
    return _stream(run, 0)


@router.get("", summary="All runs of a tenant")
async def all_runs(request: Request) -> Response:
    """Where all runs stand, those of which only saves are there among them."""
    listed = [one.model_dump() for one in _runs(request).all(_tenant(request))]
    return document({"runs": listed}, answer_format(request)[0])


@router.get("/{name}", summary="Where a run stands")
async def one_run(request: Request, name: str) -> Response:
    """Status, step, value and saves of a run."""
    standing = _runs(request).standing(_tenant(request), name)
    return document(standing.model_dump(), answer_format(request)[0])


@router.get("/{name}/events", summary="Follow a run")
async def events(request: Request, name: str) -> Response:
    """The events of a run, from the first, or from behind the one that `Last-Event-ID` names."""
    run = _runs(request).get(_tenant(request), name)
    last = request.headers.get("last-event-id", "").strip()
    if last and not last.isdecimal():
        raise Refusal("invalid_request", f"Last-Event-ID is a number, the id of an event, not '{last[:40]}'")
    return _stream(run, int(last or 0))


@router.post("/{name}/stop", summary="Stop a run")
async def stop(request: Request, name: str) -> Response:
    """Save and stop a run; answers how it ended, also where it had ended before."""
    ended = await _runs(request).get(_tenant(request), name).stop("it was asked to stop")
    return document(ended.model_dump(), answer_format(request)[0])


@router.get("/{name}/params", summary="What a run has trained")
async def params(request: Request, name: str) -> Response:
    """Parameters and state by model, and trained inputs: as they are now, or the last that were good."""
    media, encoding = answer_format(request)
    found: dict[str, Any] = await _runs(request).trained(_tenant(request), name)
    step = found.pop("step")
    return document({"step": step, **encode_tree(found, encoding)}, media)


@router.delete("/{name}", status_code=204, summary="Forget a run")
async def delete(request: Request, name: str) -> Response:
    """Stop a run, and remove it with its saves."""
    await _runs(request).delete(_tenant(request), name)
    return Response(status_code=204)


def _stream(run: Run, after: int) -> Response:
    # Proxies that gather answers before they send them would hold the events back.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(run.events.stream(after), media_type=EVENTS, headers=headers)


def _runs(request: Request) -> Runs:
    found: Runs = request.app.state.runs
    return found


def _tenant(request: Request) -> str:
    return tenant_of(request.headers.get(TENANT))
