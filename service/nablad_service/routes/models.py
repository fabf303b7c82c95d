"""`/v1/models` and the resident parameters below it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nablad.arrays import Received, encode_tree
from nablad.messages import ModelInfo, ModelRequest, ParamsRequest, decode_arrays
from nablad_service.hosting import HostedModel, Values
from nablad_service.requests.handles import tree_of
from nablad_service.requests.reading import decode
from nablad_service.routes.bodies import answer_format, document, pipeline, read_body
from nablad_service.routes.schema import takes

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="All hosted models")
async def all_models(request: Request) -> Response:
    """Every hosted model, described, and what could not be loaded, with the reasons."""
    store = pipeline(request).models
    described = {
        "models": [card.model_dump() for card in store.cards()],
        "failed": [failure.model_dump() for failure in store.failed()],
    }
    return document(described, answer_format(request)[0])


@router.get("/{name}", summary="One model")
async def one_model(request: Request, name: str) -> Response:
    """Where it comes from, its inputs, shapes, number of parameters, version."""
    card = pipeline(request).models.card(name)
    return document(card.model_dump(), answer_format(request)[0])


@router.put("/{name}", openapi_extra=takes(ModelRequest), summary="Host a model")
async def put_model(request: Request, name: str) -> Response:
    """Host an architecture or a StableHLO artifact under a name, in place of what had that name."""
    body = await read_body(request)
    store, tensors = pipeline(request).models, partial(_tensors, pipeline(request).values, body.tenant)

    def work() -> ModelInfo:
        wanted = decode(body, ModelRequest)
        params, state = tensors(wanted.params, wanted.state)
        return store.put(
            name, wanted.architecture, params, state, wanted.seed, stablehlo=wanted.stablehlo
        ).info()

    card = await asyncio.to_thread(work)
    return document(card.model_dump(), body.answer)


@router.delete("/{name}", status_code=204, summary="Stop hosting a model")
async def delete_model(request: Request, name: str) -> Response:
    """Remove the model and its parameters, from memory and from the repository."""
    await asyncio.to_thread(pipeline(request).models.delete, name)
    return Response(status_code=204)


@router.post("/{name}/load", summary="Read a model from the repository")
async def load_model(request: Request, name: str) -> Response:
    """Read a model's folder: one that was unloaded, repaired, or put there while the server ran."""
    card = await asyncio.to_thread(pipeline(request).models.load, name)
    return document(card.model_dump(), answer_format(request)[0])


@router.post("/{name}/unload", summary="Let go of a model's memory")
async def unload_model(request: Request, name: str) -> Response:
    """Take a model out of memory; the repository keeps it, and `load` brings it back."""
    card = await asyncio.to_thread(pipeline(request).models.unload, name)
    return document(card.model_dump(), answer_format(request)[0])


@router.get("/{name}/params", summary="Resident parameters")
async def get_params(request: Request, name: str) -> Response:
    """The resident parameters and state, with their version."""
    return await _params(request, name, None)


@router.get("/{name}/params/{version}", summary="Resident parameters of a version")
async def get_version(request: Request, name: str, version: str) -> Response:
    """The parameters and state of a version, the current one or another that is resident."""
    return await _params(request, name, version)


async def _params(request: Request, name: str, version: str | None) -> Response:
    hosted = pipeline(request).models.get(name, version)
    media, encoding = answer_format(request)

    def work() -> Response:
        answer: dict[str, Any] = {
            "params": encode_tree(hosted.params, encoding),
            "state": encode_tree(hosted.state, encoding),
            "version": hosted.version,
        }
        return document(answer, media)

    return await asyncio.to_thread(work)


@router.put("/{name}/params", openapi_extra=takes(ParamsRequest), summary="Replace resident parameters")
async def put_params(request: Request, name: str) -> Response:
    """Replace the resident parameters, and the state where one is given; the answer has the new version."""
    body = await read_body(request)
    store, tensors = pipeline(request).models, partial(_tensors, pipeline(request).values, body.tenant)

    def work() -> HostedModel:
        wanted = decode(body, ParamsRequest)
        params, state = tensors(wanted.params, wanted.state)
        return store.set_params(name, params or {}, state)

    hosted = await asyncio.to_thread(work)
    return document({"version": hosted.version}, body.answer)


@router.put(
    "/{name}/params/{version}",
    openapi_extra=takes(ParamsRequest),
    summary="Further resident parameters",
)
async def put_version(request: Request, name: str, version: str) -> Response:
    """Let parameters be resident under their version, for bindings that name it; the current ones stay so."""
    body = await read_body(request)
    store, tensors = pipeline(request).models, partial(_tensors, pipeline(request).values, body.tenant)

    def work() -> HostedModel:
        wanted = decode(body, ParamsRequest)
        params, state = tensors(wanted.params, wanted.state)
        return store.put_params(name, version, params or {}, state)

    hosted = await asyncio.to_thread(work)
    return document({"version": hosted.version}, body.answer)


def _tensors(
    values: Values, tenant: str, params: Mapping[str, Any] | None, state: Mapping[str, Any] | None
) -> tuple[dict[str, Received] | None, dict[str, Received] | None]:
    """The parameters and the state in a request, which may be handles."""
    take = partial(values.take, tenant)
    given = (tree_of(params, "params", take), tree_of(state, "state", take))
    own, kept = (
        None if tree is None else decode_arrays(tree, f"{what}.")
        for tree, what in zip(given, ("params", "state"), strict=True)
    )
    return own, kept
