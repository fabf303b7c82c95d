"""`GET /v1/operators`: the operator table."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nablad.messages import OperatorInfo
from nablad_service.engine.operators import INFIX, SIGNATURES
from nablad_service.language.signatures import OperatorSignature
from nablad_service.routes.bodies import answer_format, document

router = APIRouter(prefix="/v1", tags=["programs"])


def operator_table(signatures: Mapping[str, OperatorSignature] = SIGNATURES) -> list[OperatorInfo]:
    """Every operator once: derivatives first, then the rest by family, then what the server registered."""
    unique: dict[str, OperatorSignature] = {}
    for signature in (*signatures.values(), *INFIX):
        unique.setdefault(signature.name, signature)
    return [
        OperatorInfo(
            name=one.name, signature=one.text, doc=one.doc, family=one.family, aliases=list(one.aliases)
        )
        for one in unique.values()
    ]


@router.get("/operators", summary="The operator table")
async def operators(request: Request) -> Response:
    """Every operator of the loss language: its signature and a sentence."""
    table = [operator.model_dump() for operator in operator_table(request.app.state.engine.signatures)]
    return document({"operators": table}, answer_format(request)[0])
