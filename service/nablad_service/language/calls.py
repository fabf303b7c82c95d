"""Calls: of operators, models and `def`s (written out where they are called), and of `vmap` of these."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from nablad_service.language import differentiation, graph
from nablad_service.language.arity import check_arity
from nablad_service.language.places import Span
from nablad_service.language.scopes import Callable, Frame, Function, Mapped, Model, Operator, Scope, Variable

if TYPE_CHECKING:
    from nablad_service.language.lowering import Lowering

# Operators whose body is a function, and which argument that is.
LOOPS = {"fori": 1, "scan": 0}


def callable_or_none(lowering: Lowering, node: ast.expr, scope: Scope) -> Callable | None:
    """What can be called: a `def`, a model, an operator, or `vmap` of one of these."""
    match node:
        case ast.Name(id=name):
            meaning = scope.find(name)
            if meaning is None and name in lowering.operators:
                return Operator(lowering.operators[name].name)
            return None if isinstance(meaning, Variable) else meaning
        case ast.Call(func=ast.Name(id="vmap")) if scope.find("vmap") is None:
            return _vmap(lowering, node, scope)
    return None


def _vmap(lowering: Lowering, node: ast.Call, scope: Scope) -> Mapped:
    span = Span.of(node)
    given = list(node.args)
    in_axes: ast.expr | None = None
    for keyword in node.keywords:
        if keyword.arg != "in_axes":
            lowering.refuse("arity", f"vmap takes in_axes, not '{keyword.arg}'", Span.of(keyword.value))
        in_axes = keyword.value
    if len(given) == 2 and in_axes is None:
        in_axes = given.pop()
    if len(given) != 1:
        lowering.refuse(
            "arity", "vmap takes one function: vmap(f)(x) or vmap(f, in_axes=(0, None))(x, y)", span
        )
    function = callable_or_none(lowering, given[0], scope)
    if function is None:
        if isinstance(given[0], ast.Name) and scope.find(given[0].id) is None:
            lowering.unknown(given[0].id, scope, Span.of(given[0]))
        detail = "vmap maps a def, a model or an operator; the call comes after: vmap(f)(x)"
        lowering.refuse("wrong_kind", detail, Span.of(given[0]))
    if isinstance(function, Operator) and lowering.operators[function.name].family == "derivative":
        detail = f"vmap cannot map {function.name}; write a def of one example that uses it"
        lowering.refuse("wrong_kind", detail, Span.of(given[0]))
    return Mapped(function, _axes(lowering, in_axes) if in_axes is not None else None)


def _axes(lowering: Lowering, node: ast.expr) -> tuple[int | None, ...]:
    try:
        axes = ast.literal_eval(node)
    except (ValueError, TypeError):
        axes = "no literal"
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    if not all(axis is None or (isinstance(axis, int) and not isinstance(axis, bool)) for axis in axes):
        detail = "in_axes is a whole number or None for each argument, e.g. in_axes=(0, None)"
        lowering.refuse("wrong_kind", detail, Span.of(node))
    return tuple(axes)


def call(lowering: Lowering, node: ast.Call, scope: Scope) -> int:
    """Lower a call, of whatever can be called."""
    span = Span.of(node)
    function = callable_or_none(lowering, node.func, scope)
    if function is None:
        _not_callable(lowering, node.func, scope)
    if isinstance(function, Operator):
        signature = lowering.operators[function.name]
        if signature.family == "derivative" and signature.order:
            return differentiation.derivative(lowering, node, signature, scope)
    if isinstance(node.func, ast.Name) and node.func.id == "vmap":
        lowering.refuse("wrong_kind", "vmap(f) is a function: call it, vmap(f)(x), or name it", span)
    registered = isinstance(function, Operator) and _is_registered(lowering, function)
    takes_functions = isinstance(function, Function) or (
        isinstance(function, Operator) and (function.name in LOOPS or registered)
    )

    def passed(argument: ast.expr, *, functions: bool) -> int | Callable:
        found = callable_or_none(lowering, argument, scope) if functions else None
        return found if found is not None else lowering.expression(argument, scope)

    arguments = [passed(argument, functions=takes_functions) for argument in node.args]
    keywords = {str(item.arg): passed(item.value, functions=registered) for item in node.keywords}
    return _invoke(lowering, function, arguments, keywords, span)


def _is_registered(lowering: Lowering, function: Operator) -> bool:
    return lowering.operators[function.name].family == "registered"


def _not_callable(lowering: Lowering, node: ast.expr, scope: Scope) -> NoReturn:
    span = Span.of(node)
    match node:
        case ast.Name(id=name) if isinstance(scope.find(name), Variable):
            if name in lowering.operators:
                detail = f"'{name}' is a value here and hides the operator '{name}'; rename the value"
                lowering.refuse("hidden_operator", detail, span)
            lowering.refuse("wrong_kind", f"'{name}' is a value, it cannot be called", span)
        case ast.Name(id=name):
            lowering.unknown(name, scope, span)
    detail = "only operators, models, defs and vmap(f) can be called"
    lowering.refuse("syntax", detail, span)


def _invoke(
    lowering: Lowering,
    function: Callable,
    arguments: list[int | Callable],
    given: Mapping[str, int | Callable],
    span: Span,
) -> int:
    if isinstance(function, Operator) and _is_registered(lowering, function):
        return _registered(lowering, function.name, arguments, given, span)
    keywords = {name: value for name, value in given.items() if isinstance(value, int)}
    match function:
        case Operator("vmap"):
            lowering.refuse("wrong_kind", "vmap maps a function: vmap(f)(x); it has no other name", span)
        case Operator(name):
            signature = lowering.operators[name]
            check_arity(lowering, signature, len(arguments), keywords, span)
            if name in LOOPS:
                if keywords:
                    lowering.refuse("arity", f"{name} takes its arguments by position", span)
                return _loop(lowering, name, arguments, span)
            return lowering.apply(name, _values(lowering, arguments, span), span, **keywords)
        case Model(name):
            return _model_call(lowering, name, _values(lowering, arguments, span), keywords, span)
        case Mapped():
            if keywords:
                lowering.refuse("arity", "a mapped function takes its arguments by position", span)
            return _map(lowering, function, _values(lowering, arguments, span), span)
        case Function(statement, scope):
            return _inline(lowering, statement, scope, arguments, keywords, span)


def _registered(
    lowering: Lowering,
    function: str,
    arguments: list[int | Callable],
    keywords: Mapping[str, int | Callable],
    span: Span,
) -> int:
    """A call of a function of the server's operator: functions that it is given become bodies."""
    check_arity(lowering, lowering.operators[function], len(arguments), keywords, span)

    def settled(value: int | Callable) -> int | graph.Body:
        if isinstance(value, int):
            return value
        return _body(lowering, value, _takes(lowering, value, span), span)

    positional = tuple(settled(value) for value in arguments)
    named = tuple((name, settled(value)) for name, value in keywords.items())
    bodies = [value for value in (*positional, *dict(named).values()) if isinstance(value, graph.Body)]
    return lowering.add(
        graph.Registered,
        span,
        order=max((_order(lowering, body) for body in bodies), default=0),
        cost=1 + sum(_cost(lowering, body) for body in bodies),
        function=function,
        arguments=positional,
        keywords=named,
    )


def _takes(lowering: Lowering, function: Callable, span: Span) -> int:
    """How many arguments a function has that is handed to another."""
    match function:
        case Function(statement):
            return len(statement.args.args)
        case Mapped(inner):
            return _takes(lowering, inner, span)
        case Model():
            return 1
        case Operator(name):
            parameters = lowering.operators[name].parameters
            if lowering.operators[name].family in ("derivative", "loop", "registered"):
                lowering.refuse("wrong_kind", f"write a def that uses {name}, and hand that over", span)
            return sum(parameter.required for parameter in parameters)


def _values(lowering: Lowering, arguments: list[int | Callable], span: Span) -> list[int]:
    for argument in arguments:
        if not isinstance(argument, int):
            lowering.refuse("wrong_kind", "a function cannot be an argument here", span)
    return [argument for argument in arguments if isinstance(argument, int)]


def _model_call(
    lowering: Lowering, model: str, arguments: list[int], keywords: dict[str, int], span: Span
) -> int:
    # Which names the inputs have, the model knows: net(sensors=u, y=points).
    named = tuple((name, value) for name, value in keywords.items() if name not in ("params", "mode"))
    if not arguments and not named:
        lowering.refuse("arity", f"{model}(x) takes an input; its parameters come from the binding", span)
    mode = None
    if "mode" in keywords:
        given = lowering.nodes[keywords["mode"]]
        if not isinstance(given, graph.Constant) or given.value not in ("eval", "train"):
            lowering.refuse("wrong_kind", 'mode is "eval" or "train"', span)
        mode = str(given.value)
    return lowering.add(
        graph.ModelCall,
        span,
        model=model,
        arguments=tuple(arguments),
        named=named,
        params=keywords.get("params", lowering.parameters[model]),
        mode=mode,
        mapped=lowering.frame.mapped,
    )


def _inline(
    lowering: Lowering,
    statement: ast.FunctionDef,
    scope: Scope,
    arguments: list[int | Callable],
    keywords: dict[str, int],
    span: Span,
) -> int:
    """Write a `def` out where it is called; its arguments become variables of their own."""
    name = statement.name
    names = [argument.arg for argument in statement.args.args]
    bound: dict[str, int | Callable] = dict(zip(names, arguments, strict=False))
    for keyword, value in keywords.items():
        if keyword not in names or keyword in bound:
            lowering.refuse("arity", f"{name}({', '.join(names)}) cannot take '{keyword}' here", span)
        bound[keyword] = value
    if len(arguments) > len(names) or len(bound) < len(names):
        given = len(arguments) + len(keywords)
        takes = f"{len(names)} argument{'s' * (len(names) != 1)}"
        detail = f"{name}({', '.join(names)}) takes {takes}, {given} {'is' if given == 1 else 'are'} given"
        lowering.refuse("arity", detail, span)
    outer = lowering.frame
    if statement in outer.active:
        lowering.refuse("limit", f"'{name}' calls itself; a program has no recursion", span)
    if len(outer.active) >= lowering.limits.call_depth:
        lowering.refuse("limit", f"defs call one another more than {lowering.limits.call_depth} deep", span)
    inner = Scope(scope)
    leaves = set()
    for argument, passed in bound.items():
        if isinstance(passed, int):
            index = lowering.add(graph.Identity, span, value=passed)
            leaves.add(index)
            inner.names[argument] = Variable(index)
        else:
            inner.names[argument] = passed
    lowering.frame = Frame(outer.leaves | leaves, (*outer.active, statement), outer.mapped)
    result = lowering.body(statement.body, inner)
    lowering.frame = outer
    assert result is not None, "syntax.read checks that a def ends with return"
    return result


def _map(lowering: Lowering, function: Mapped, arguments: list[int], span: Span) -> int:
    if not arguments:
        lowering.refuse("arity", "a mapped function needs at least one argument", span)
    if function.in_axes is not None and len(function.in_axes) not in (1, len(arguments)):
        detail = f"in_axes names {len(function.in_axes)} arguments, {len(arguments)} are given"
        lowering.refuse("arity", detail, span)
    body = _body(lowering, function.function, len(arguments), span)
    return lowering.add(
        graph.Map,
        span,
        order=_order(lowering, body),
        cost=_cost(lowering, body),
        arguments=tuple(arguments),
        in_axes=function.in_axes,
        body=body,
    )


def _loop(lowering: Lowering, operator: str, arguments: list[int | Callable], span: Span) -> int:
    """`fori(n, body, init)` and `scan(body, init, xs)`: the body has two arguments."""
    position = LOOPS[operator]
    function = arguments.pop(position)
    if isinstance(function, int):
        detail = f"the body of {operator} is a def: {lowering.operators[operator].text}"
        lowering.refuse("wrong_kind", detail, span)
    if isinstance(function, Operator) and lowering.operators[function.name].family in ("derivative", "loop"):
        detail = f"{operator} cannot run {function.name} itself; give it a def that uses {function.name}"
        lowering.refuse("wrong_kind", detail, span)
    values = _values(lowering, arguments, span)
    body = _body(lowering, function, 2, span)
    return lowering.add(
        graph.Loop,
        span,
        order=_order(lowering, body),
        cost=_cost(lowering, body),
        operator=operator,
        arguments=tuple(values),
        body=body,
    )


def _body(lowering: Lowering, function: Callable, count: int, span: Span) -> graph.Body:
    """Lower a function once, for arguments that are not known yet."""
    outer = lowering.frame
    start = len(lowering.nodes)
    parameters = [lowering.add(graph.Argument, span, name=f"argument {i + 1}") for i in range(count)]
    lowering.frame = Frame(outer.leaves, outer.active, mapped=True)
    result = _invoke(lowering, function, list(parameters), {}, span)
    lowering.frame = outer
    inside = [index for index in graph.needed(lowering.nodes, [result]) if index >= start]
    nodes = tuple(index for index in inside if not isinstance(lowering.nodes[index], graph.Argument))
    reads = {result, *(read for index in nodes for read in lowering.nodes[index].reads)}
    return graph.Body(
        parameters=tuple(parameters),
        result=result,
        nodes=nodes,
        free=tuple(sorted(read for read in reads if read < start)),
    )


def _order(lowering: Lowering, body: graph.Body) -> int:
    return max((lowering.orders[index] for index in body.nodes), default=0)


def _cost(lowering: Lowering, body: graph.Body) -> int:
    return 1 + sum(lowering.costs[index] for index in body.nodes)
