"""`POST /v1/gradient`, `/v1/evaluate`, `/v1/plan`, `/v1/warm` and `/v1/check`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nablad.messages import CheckRequest, EvaluateRequest, GradientRequest, WarmRequest
from nablad_service.routes.bodies import answer_format, document, pipeline, read_body
from nablad_service.routes.leaving import answer
from nablad_service.routes.schema import takes

router = APIRouter(prefix="/v1", tags=["programs"])


@router.post("/gradient", openapi_extra=takes(GradientRequest), summary="Loss, terms and gradients")
async def gradient(request: Request) -> Response:
    """The loss, its terms, its gradients with respect to `wrt`, named outputs and the new state."""
    return await answer(request, pipeline(request).gradient(await read_body(request)))


@router.post("/evaluate", openapi_extra=takes(EvaluateRequest), summary="Named values of a program")
async def evaluate(request: Request) -> Response:
    """Named values of a program, without an outer gradient: a Jacobian, a trace, a prediction."""
    return await answer(request, pipeline(request).evaluate(await read_body(request)))


@router.post("/plan", openapi_extra=takes(GradientRequest), summary="What would run, and why")
async def plan(request: Request) -> Response:
    """The strategy of each inner derivative, its candidates and what they cost; compiles and runs nothing.

    Takes the body of `/v1/gradient`, or that of `/v1/evaluate` with its `program`.
    """
    body = await read_body(request)
    return document(await pipeline(request).plan(body), body.answer)


@router.post("/warm", openapi_extra=takes(WarmRequest), summary="Compile before it is called")
async def warm(request: Request) -> Response:
    """Compiles a program, and batches of it where asked; runs nothing, and needs no data.

    Takes the body of `/v1/gradient`, or that of `/v1/evaluate` with its `program`; arrays may be `{dtype,
    shape}` without `data`.
    """
    body = await read_body(request)
    return document(await pipeline(request).warm(body), body.answer)


@router.get("/plans", summary="What timing has taught")
async def plans(request: Request) -> Response:
    """Programs whose variants were timed, with the one that was chosen."""
    learned = [plan.listed() for plan in request.app.state.learned.all()]
    return document({"plans": learned}, answer_format(request)[0])


@router.post("/check", openapi_extra=takes(CheckRequest), summary="Gradients against finite differences")
async def check(request: Request) -> Response:
    """The gradients against central differences computed in float64: the largest difference by argument."""
    return await answer(request, pipeline(request).check(await read_body(request)))
