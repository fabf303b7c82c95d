"""OpenAPI for routes that read their bodies themselves: the messages are the documentation."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from nablad import wire
from nablad.messages import (
    CheckRequest,
    EvaluateRequest,
    GradientRequest,
    Message,
    ModelRequest,
    ParamsRequest,
    PinRequest,
    ShortcutRequest,
    ValueRequest,
    WarmRequest,
)
from nablad.problems import Problem
from nablad.training.messages import (
    SessionGradient,
    SessionLoad,
    SessionRequest,
    SessionSave,
    SessionStep,
    TrainRequest,
)

MESSAGES = (
    GradientRequest,
    EvaluateRequest,
    CheckRequest,
    ModelRequest,
    ParamsRequest,
    ShortcutRequest,
    WarmRequest,
    ValueRequest,
    PinRequest,
    SessionRequest,
    SessionGradient,
    SessionStep,
    SessionSave,
    SessionLoad,
    TrainRequest,
)
REF = "#/components/schemas/{model}"


def takes(message: type[Message]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is `message`, as JSON or msgpack."""
    schema = {"$ref": REF.format(model=message.__name__)}
    return {
        "requestBody": {
            "required": True,
            "content": {wire.JSON: {"schema": schema}, wire.MSGPACK: {"schema": schema}},
        },
        "responses": {
            "4XX": {
                "description": "A problem document",
                "content": {wire.PROBLEM: {"schema": {"$ref": REF.format(model="Problem")}}},
            }
        },
    }


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas of all messages among its components."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
        for message in (*MESSAGES, Problem):
            schema = message.model_json_schema(ref_template=REF)
            schemas.update(schema.pop("$defs", {}))
            schemas[message.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema
