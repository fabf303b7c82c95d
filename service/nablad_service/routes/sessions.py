"""`/v1/sessions`: training state that stays on the server, while its caller keeps the loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nablad import wire
from nablad.arrays import encode_tree
from nablad.training.messages import (
    SessionGradient,
    SessionLoad,
    SessionRequest,
    SessionSave,
    SessionStep,
    Standing,
)
from nablad_service.answers.timing import Timing
from nablad_service.requests.reading import Body
from nablad_service.routes.bodies import (
    TENANT,
    answer_format,
    document,
    pipeline,
    read_body,
    tenant_of,
)
from nablad_service.routes.leaving import CLOSED, CallerLeft, while_there
from nablad_service.routes.schema import takes
from nablad_service.running.off_loop import off_loop
from nablad_service.training.computing import Stepped
from nablad_service.training.labels import parameter_of
from nablad_service.training.sessions import Sessions

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("", status_code=201, openapi_extra=takes(SessionRequest), summary="Begin a session")
async def create(request: Request) -> Response:
    """Models with their start parameters, inputs that are trained beside them, and an optimiser of optax."""
    body = await read_body(request)
    lookups = pipeline(request).reader.lookups(body)
    standing = await _sessions(request).create(body, lookups)
    return _standing(standing, body.answer, 201)


@router.get("", summary="All sessions of a tenant")
async def all_sessions(request: Request) -> Response:
    """Where they stand, those of which only saves are there among them."""
    listed = [one.model_dump(mode="json") for one in _sessions(request).all(_tenant(request))]
    return document({"sessions": listed}, answer_format(request)[0])


@router.get("/{name}", summary="Where a session stands")
async def one_session(request: Request, name: str) -> Response:
    """Its step, the number of the last call that was done, its saves; nothing is loaded for it."""
    return _standing(_sessions(request).standing(_tenant(request), name), answer_format(request)[0])


@router.delete("/{name}", status_code=204, summary="End a session")
async def delete(request: Request, name: str) -> Response:
    """Forget a session, with its saves."""
    await _sessions(request).delete(_tenant(request), name)
    return Response(status_code=204)


@router.post("/{name}/gradient", openapi_extra=takes(SessionGradient), summary="Compute and accumulate")
async def gradient(request: Request, name: str) -> Response:
    """A loss on this batch; its gradients stay, and are added to those since the last step.

    The answer has the value, the terms and norms; arrays only where `outputs` or `gradients` ask for them.
    What is not finite is added all the same, and diagnosed in `non_finite`.
    """
    body = await read_body(request)
    lookups = pipeline(request).reader.lookups(body)
    try:
        asked, timed, non_finite = await while_there(
            request, _sessions(request).gradient(name, body, lookups)
        )
    except CallerLeft:
        return Response(status_code=CLOSED)
    computed, accumulated, stepped = timed.result
    timing = Timing(
        queue_ms=timed.finished.waited * 1e3,
        compile_ms=timed.compiling * 1e3,
        device_ms=timed.finished.ran * 1e3,
        compiled=timed.compiled,
    )
    told = {  # a `SessionGradientAnswer`
        "sequence": asked.sequence,
        "value": computed.value,
        "terms": computed.terms,
        "norms": computed.norms,
        "term_norms": computed.term_norms,
        "accumulated": accumulated,
        "stepped": None if stepped is None else _stepped(*stepped),
        "non_finite": None if non_finite is None else non_finite.model_dump(),
        "timing": vars(timing),
    }

    def encoded() -> dict[str, Any]:
        arrays = {}
        if asked.outputs:
            arrays["outputs"] = encode_tree(computed.outputs, body.encoding, body.floats)
        if asked.gradients:
            arrays["gradients"] = encode_tree(by_entry(computed.gradients), body.encoding, body.floats)
        return arrays

    size = 0 if not (asked.gradients or asked.outputs) else len(body.data) + computed.bytes
    arrays = await off_loop(size, encoded)
    response = document({**_words(told, body), **arrays}, body.answer)
    response.headers["Server-Timing"] = timing.header()
    return response


@router.post("/{name}/step", openapi_extra=takes(SessionStep), summary="Update the parameters")
async def step(request: Request, name: str) -> Response:
    """One step of the optimiser with the mean of the gradients since the last; what it names holds for it."""
    body = await read_body(request)
    try:
        asked, timed = await while_there(request, _sessions(request).step(name, body))
    except CallerLeft:
        return Response(status_code=CLOSED)
    return document(_words({"sequence": asked.sequence, **_stepped(*timed.result)}, body), body.answer)


@router.post("/{name}/save", openapi_extra=takes(SessionSave), summary="Save")
async def save(request: Request, name: str) -> Response:
    """Keep parameters, optimiser, step and random state together; durable when it is answered."""
    body = await read_body(request)
    try:
        standing = await while_there(request, _sessions(request).save(name, body))
    except CallerLeft:
        return Response(status_code=CLOSED)
    return _standing(standing, body.answer)


@router.post("/{name}/load", openapi_extra=takes(SessionLoad), summary="Go back to a save")
async def load(request: Request, name: str) -> Response:
    """Stand where a save stands, the last one or that of a step."""
    body = await read_body(request)
    try:
        standing = await while_there(request, _sessions(request).load(name, body))
    except CallerLeft:
        return Response(status_code=CLOSED)
    return _standing(standing, body.answer)


@router.get("/{name}/params", summary="What a session has trained")
async def params(request: Request, name: str) -> Response:
    """Parameters and state by model, and trained inputs, as they are after the last call."""
    media, encoding = answer_format(request)
    found = await _sessions(request).params(_tenant(request), name)
    trees = (*found.params.values(), *found.state.values(), found.trained)
    size = sum(leaf.nbytes for tree in trees for leaf in tree.values())

    def work() -> Response:
        answer = {
            "step": found.step,
            "params": encode_tree(found.params, encoding),
            "state": encode_tree(found.state, encoding),
            "trained": encode_tree(found.trained, encoding),
        }
        return document(answer, media)

    return await off_loop(size, work)


@router.get("/{name}/gradients", summary="What has been accumulated")
async def gradients(request: Request, name: str) -> Response:
    """The mean of the gradients since the last step, which the next one takes."""
    media, encoding = answer_format(request)
    accumulated, found = await _sessions(request).gradients(_tenant(request), name)
    size = sum(one.nbytes for one in found.values())

    def work() -> Response:
        mean = encode_tree(by_entry(found), encoding)
        return document({"accumulated": accumulated, "gradients": mean}, media)

    return await off_loop(size, work)


def by_entry(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by label as answers have them: those of a model together under `net.params`."""
    found: dict[str, Any] = {}
    for label, array in arrays.items():
        parameter = parameter_of(label)
        if parameter is None:
            found[label] = array
        else:
            found.setdefault(f"{parameter[0]}.params", {})[parameter[1]] = array
    return found


def _stepped(stepped: Stepped, count: int) -> dict[str, Any]:
    """What came of a step, as it travels."""
    return {"step": count, **vars(stepped)}


def _words(value: Any, body: Body) -> Any:
    """Numbers as the answer's format has them: JSON has words for those that are not finite."""
    if body.answer != wire.JSON:
        return value
    if isinstance(value, dict):
        return {name: _words(one, body) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _standing(standing: Standing, media: str, status: int = 200) -> Response:
    return document(standing.model_dump(mode="json"), media, status)


def _tenant(request: Request) -> str:
    return tenant_of(request.headers.get(TENANT))


def _sessions(request: Request) -> Sessions:
    found: Sessions = request.app.state.sessions
    return found
