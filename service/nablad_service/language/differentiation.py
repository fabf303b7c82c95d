"""Derivatives: which variable, which path, and a refusal where there is none."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NoReturn

from nablad_service.language import dependence, graph
from nablad_service.language.arity import check_arity
from nablad_service.language.drawing import drawing_of, draws_probes
from nablad_service.language.places import Span
from nablad_service.language.scopes import Model, Scope
from nablad_service.language.signatures import OperatorSignature

if TYPE_CHECKING:
    from nablad_service.language.lowering import Lowering


def derivative(lowering: Lowering, node: ast.Call, signature: OperatorSignature, scope: Scope) -> int:
    """`grad(y, x)` and its kin: the second argument is a name, `d` takes several."""
    span = Span.of(node)
    keywords = {str(keyword.arg): keyword.value for keyword in node.keywords}
    check_arity(lowering, signature, len(node.args), keywords, span)
    given = list(node.args)
    drawing: graph.Drawing | None = None
    if draws_probes(signature):
        drawing, keywords = drawing_of(lowering, signature, given, keywords, scope, span)
    rest = signature.parameters[len(given) :]
    given += [keywords[parameter.name] for parameter in rest if parameter.name in keywords]
    value = lowering.expression(given[0], scope)
    variadic = signature.parameters[1].variadic
    variables = given[1:] if variadic else given[1:2]
    vectors = () if variadic else tuple(lowering.expression(vector, scope) for vector in given[2:])
    for variable in variables:
        value = _add_derivative(lowering, signature, value, variable, vectors, drawing, scope, span)
    return value


def _add_derivative(
    lowering: Lowering,
    signature: OperatorSignature,
    value: int,
    variable: ast.expr,
    vectors: tuple[int, ...],
    drawing: graph.Drawing | None,
    scope: Scope,
    span: Span,
) -> int:
    wrt, leaf, name = _variable(lowering, variable, scope, signature)
    found = dependence.path(lowering.nodes, value, wrt, lowering.frame.leaves - {wrt}, leaf)
    if found is None:
        _independent(lowering, value, wrt, name, span)
    inside = (*found.nodes, value)
    order = signature.order + max(lowering.orders[index] for index in inside)
    if order > lowering.limits.derivative_order:
        detail = f"derivatives are nested {order} deep, more than {lowering.limits.derivative_order}"
        lowering.refuse("limit", detail, span)
    return lowering.add(
        graph.Derivative,
        span,
        order=order,
        # forward and backward pass each evaluate the path again, at every level
        cost=3**signature.order * (1 + sum(lowering.costs[index] for index in found.nodes)),
        operator=signature.name,
        value=value,
        wrt=wrt,
        leaf=leaf,
        wrt_name=name,
        vectors=vectors,
        path=found.nodes,
        captured=found.captured,
        drawing=drawing,
    )


def _variable(
    lowering: Lowering, node: ast.expr, scope: Scope, signature: OperatorSignature
) -> tuple[int, str | None, str]:
    span = Span.of(node)
    named = lowering.named_leaf(node, scope)
    if named is not None:
        return *named, ast.unparse(node)
    match node:
        case ast.Attribute(attr="params"):
            return lowering.expression(node, scope), None, ast.unparse(node)
        case ast.Name(id=name):
            if isinstance(scope.find(name), Model):
                detail = f"'{name}' is a model; differentiate with respect to {name}.params"
                lowering.refuse("not_a_name", detail, span)
            return lowering.name(name, scope, span), None, name
    detail = (
        f"{signature.name} differentiates with respect to a name, not an expression; name it first "
        f"(t = {ast.unparse(node)[:40]}) and compute the value from that name"
    )
    lowering.refuse("not_a_name", detail, span)


LOOKED_AT = 20
"""Arguments of the defs around that are looked at for the reason of a refusal."""


def _independent(lowering: Lowering, value: int, wrt: int, name: str, span: Span) -> NoReturn:
    detail = f"the value does not depend on '{name}'"
    parent = dependence.parent_that_flows(lowering.nodes, value, wrt, lowering.frame.leaves)
    held = [
        leaf
        # One reason is enough, and each look walks the graph.
        for leaf in sorted(lowering.frame.leaves)[-LOOKED_AT:]
        if dependence.path(lowering.nodes, leaf, wrt, lowering.frame.leaves - {leaf}) is not None
        and dependence.path(lowering.nodes, value, leaf, lowering.frame.leaves - {leaf}) is not None
    ]
    if parent is not None and isinstance(lowering.nodes[parent], graph.Parameters):
        detail += (
            f": '{name}' is a variable of its own; differentiate with respect to the parameters where they "
            'are, model.params or model.params["..."], or compute the value from it: model(x, params=...)'
        )
    elif parent is not None:
        detail += (
            f": it was computed from the array that '{name}' was taken out of; compute it from '{name}' "
            f"itself, for example model(stack([{name}, ...]))"
        )
    elif held:
        detail += (
            "; inside a def the arguments are variables of their own: differentiate with respect to "
            f"the argument, or use '{name}' in the def directly"
        )
    else:
        detail += f"; compute it from '{name}' (0*{name} or stop_gradient({name}) where zeros are meant)"
    lowering.refuse("independent", detail, span, name=name)
