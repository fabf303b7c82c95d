"""The probes of an estimate: a value that is given, or how the operator draws its own."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nablad_service.language import graph
from nablad_service.language.places import Span, nearest
from nablad_service.language.scopes import Scope
from nablad_service.language.signatures import OperatorSignature

if TYPE_CHECKING:
    from nablad_service.language.lowering import Lowering

KINDS = ("rademacher", "normal", "sphere", "orthogonal", "hutch++")
"""Random vectors whose expected outer product is the identity; for "hutch++" they find a basis first."""
MOST = 64
"""Probes drawn at most until the error is small, where the text does not say how many."""
GIVEN = 3
"""Arguments by position: value, variable, probes."""


def draws_probes(signature: OperatorSignature) -> bool:
    """Whether an operator can draw its own probes."""
    return any(parameter.name == "probes" for parameter in signature.parameters)


def drawing_of(
    lowering: Lowering,
    signature: OperatorSignature,
    given: Sequence[ast.expr],
    keywords: Mapping[str, ast.expr],
    scope: Scope,
    span: Span,
) -> tuple[graph.Drawing | None, dict[str, ast.expr]]:
    """What is drawn, None where probes are given; and the keywords that are left."""
    name = signature.name
    if len(given) > GIVEN:
        detail = f"{name} takes probes v by position; what it draws is told by name: {name}(y, x, probes=16)"
        lowering.refuse("arity", detail, Span.of(given[GIVEN]))
    options = [parameter.name for parameter in signature.parameters[GIVEN:]]
    of_drawing = {option: keywords[option] for option in options if option in keywords}
    others = {keyword: node for keyword, node in keywords.items() if keyword not in of_drawing}
    if len(given) == GIVEN or "v" in others:
        for option, node in of_drawing.items():
            detail = f"'{option}' is for probes that {name} draws itself, but the probes v are given"
            lowering.refuse("arity", f"{detail}; leave one of the two out", Span.of(node))
        return None, others
    if "probes" not in of_drawing and "until" not in of_drawing:
        until = f", or {name}(y, x, until=0.01)" if "until" in options else ""
        detail = f"{name} lacks probes: {name}(y, x, v), {name}(y, x, probes=16){until}"
        lowering.refuse("arity", detail, span)

    def node_of(option: str, default: int) -> int:
        if option in of_drawing:
            return lowering.expression(of_drawing[option], scope)
        return lowering.add(graph.Constant, span, value=default)

    kind = _kind(lowering, name, of_drawing.get("kind"))
    if kind == "hutch++" and "until" in of_drawing:
        detail = "the kind 'hutch++' makes a fixed number of products: probes=48 in place of until"
        lowering.refuse("wrong_kind", detail, Span.of(of_drawing["until"]))
    return graph.Drawing(
        kind=kind,
        probes=node_of("probes", MOST),
        seed=node_of("seed", 0),
        until=lowering.expression(of_drawing["until"], scope) if "until" in of_drawing else None,
    ), others


def _kind(lowering: Lowering, operator: str, node: ast.expr | None) -> str:
    match node:
        case None:
            return KINDS[0]
        case ast.Constant(value=str(kind)) if kind in KINDS:
            return kind
        case ast.Constant(value=str(kind)):
            detail = f"{operator} draws no probes of the kind '{kind[:60]}'{nearest(kind, KINDS)}"
            lowering.refuse("wrong_kind", f"{detail} (it knows {', '.join(KINDS)})", Span.of(node))
    detail = f"the kind of probes is one of the texts {', '.join(map(repr, KINDS))}"
    lowering.refuse("wrong_kind", detail, Span.of(node))
