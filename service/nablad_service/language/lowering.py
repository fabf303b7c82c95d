"""From a checked `ast` to a `Program`: names resolved, `def`s written out, paths of derivatives found."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from nablad.problems import Refusal
from nablad_service.language import dependence, graph, syntax
from nablad_service.language.limits import Limits
from nablad_service.language.places import Span, nearest, refusal
from nablad_service.language.scopes import Callable, Function, Mapped, Model, Operator, Scope, Variable
from nablad_service.language.signatures import OperatorSignature

NodeT = TypeVar("NodeT", bound=graph.Node)

INFIX: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "remainder",
    ast.Pow: "power",
    ast.MatMult: "matmul",
    ast.USub: "negative",
    ast.UAdd: "positive",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
CONSTANTS = {"pi": 3.141592653589793}


def parse(
    text: str,
    *,
    inputs: Collection[str],
    models: Collection[str],
    operators: Mapping[str, OperatorSignature],
    limits: Limits | None = None,
) -> graph.Program:
    """Read a program.

    Args:
        text: the program, in the language of `docs/language.md`.
        inputs: names of the request's inputs.
        models: names of the request's models.
        operators: the operator table, by name and alias.
        limits: bounds on the size of the program.

    Raises:
        Refusal: with a code of the first group of `nablad.problems.CODES` and the place in the text.
    """
    limits = limits or Limits()
    module = syntax.read(text, limits)
    lowering = _Lowering(text, operators, limits)
    try:
        return lowering.program(module, inputs, models)
    except RecursionError:
        raise refusal("limit", "the program is nested too deeply; name parts of it", text) from None


@dataclass(frozen=True, slots=True)
class _Frame:
    """The `def` calls and maps around a node."""

    leaves: frozenset[int] = frozenset()
    """Arguments of the calls: variables of their own to derivatives inside."""
    active: tuple[ast.FunctionDef, ...] = ()
    mapped: bool = False


class _Lowering:
    """Lives for one `parse`."""

    def __init__(self, text: str, operators: Mapping[str, OperatorSignature], limits: Limits) -> None:
        self.text = text
        self.operators = operators
        self.limits = limits
        self.nodes: list[graph.Node] = []
        self.orders: list[int] = []
        self.costs: list[int] = []
        self.total_cost = 0
        self.bindings: dict[str, int] = {}
        self.parameters: dict[str, int] = {}
        self.leaves: dict[tuple[str, str], int] = {}
        self.frame = _Frame()

    # -- nodes

    def add(
        self, kind: type[NodeT], span: Span | None, *, order: int = 0, cost: int = 1, **fields: Any
    ) -> int:
        index = len(self.nodes)
        if index >= self.limits.nodes:
            self.refuse("limit", f"the program has more than {self.limits.nodes} operations", span)
        self.total_cost += cost
        if self.total_cost > self.limits.evaluations:
            self.refuse("limit", f"tracing would take more than {self.limits.evaluations} evaluations", span)
        self.nodes.append(kind(index=index, span=span, **fields))
        self.orders.append(order)
        self.costs.append(cost)
        return index

    def refuse(self, code: str, detail: str, span: Span | None, **extra: Any) -> NoReturn:
        raise refusal(code, detail, self.text, span, **extra)

    # -- the program

    def program(self, module: ast.Module, inputs: Collection[str], models: Collection[str]) -> graph.Program:
        for name in inputs:
            if name in models:
                raise Refusal("invalid_request", f"'{name}' names both an input and a model")
        top = Scope(None)
        input_nodes = {name: self.add(graph.Input, None, name=name) for name in inputs}
        for name in models:
            self._add_parameters(module, name)
            top.names[name] = Model(name)
        top.names.update({name: Variable(index) for name, index in input_nodes.items()})
        reserved = frozenset(top.names)
        result = self.body(module.body, top, reserved)
        names = {name: meaning.index for name, meaning in top.names.items() if isinstance(meaning, Variable)}
        return graph.Program(
            self.text, tuple(self.nodes), names, input_nodes, dict(self.bindings), result, tuple(self.orders)
        )

    def _add_parameters(self, module: ast.Module, model: str) -> None:
        # A leaf that the text names gets a node of its own, before the tree that holds it.
        binding = self.bindings[model] = self.add(graph.Binding, None, model=model)
        for node in ast.walk(module):
            match node:
                case ast.Subscript(
                    value=ast.Attribute(value=ast.Name(id=name), attr="params"),
                    slice=ast.Constant(value=str(leaf)),
                ) if name == model and (model, leaf) not in self.leaves:
                    span = Span.of(node)
                    self.leaves[model, leaf] = self.add(
                        graph.ParameterLeaf, span, model=model, leaf=leaf, binding=binding
                    )
        leaves = tuple(index for (name, _), index in self.leaves.items() if name == model)
        self.parameters[model] = self.add(graph.Parameters, None, model=model, binding=binding, leaves=leaves)

    # -- statements

    def body(self, body: list[ast.stmt], scope: Scope, reserved: Collection[str] = ()) -> int | None:
        """Lower statements; gives the node of the final expression or `return`, if there is one."""
        for position, statement in enumerate(body):
            last = position == len(body) - 1
            match statement:
                case ast.Assign():
                    self.assign(statement, scope, reserved)
                case ast.FunctionDef():
                    self.define(
                        statement.name, Function(statement, scope), scope, reserved, Span.of(statement)
                    )
                case ast.Return(value=ast.expr() as value) | ast.Expr(value=value) if last:
                    return self.expression(value, scope)
                case _:
                    detail = "only the last line may be a bare expression or a return; assign this to a name"
                    self.refuse("syntax", detail, Span.of(statement))
        return None

    def define(
        self,
        name: str,
        meaning: Variable | Callable,
        scope: Scope,
        reserved: Collection[str],
        span: Span,
    ) -> None:
        if name in reserved:
            self.refuse("redefined_name", f"'{name}' is an input or a model; assign to another name", span)
        if name in scope.names:
            self.refuse("redefined_name", f"'{name}' has a value already; give this one a new name", span)
        scope.names[name] = meaning

    def assign(self, statement: ast.Assign, scope: Scope, reserved: Collection[str]) -> None:
        if len(statement.targets) != 1:
            self.refuse("syntax", "assign to one name, or to names separated by commas", Span.of(statement))
        target = statement.targets[0]
        match target:
            case ast.Name(id=name):
                function = self.callable_or_none(statement.value, scope)
                if function is not None:
                    self.define(name, function, scope, reserved, Span.of(target))
                    return
                before = len(self.nodes)
                index = self.expression(statement.value, scope)
                if index < before:  # each assignment is its own variable, also `b = a`
                    index = self.add(graph.Identity, Span.of(target), value=index)
                self.define(name, Variable(index), scope, reserved, Span.of(target))
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                value = self.expression(statement.value, scope)
                for position, element in enumerate(elements):
                    if not isinstance(element, ast.Name):
                        self.refuse("syntax", "only plain names can be assigned to", Span.of(element))
                    span = Span.of(element)
                    index = self.add(graph.Unpack, span, value=value, position=position, count=len(elements))
                    self.define(element.id, Variable(index), scope, reserved, span)
            case _:
                self.refuse("syntax", "only plain names can be assigned to", Span.of(target))

    # -- expressions

    def expression(self, node: ast.expr, scope: Scope) -> int:
        span = Span.of(node)
        match node:
            case ast.Constant(value=value):
                if value is Ellipsis:
                    self.refuse("syntax", "'...' stands in an index only", span)
                return self.add(graph.Constant, span, value=value)
            case ast.Name(id=name):
                return self.name(name, scope, span)
            case ast.BinOp():
                return self.chain(node, scope)
            case ast.UnaryOp(op=op, operand=operand):
                return self.apply(INFIX[type(op)], [self.expression(operand, scope)], span)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                operands = [self.expression(left, scope), self.expression(right, scope)]
                return self.apply(INFIX[type(op)], operands, span)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                items = tuple(self.expression(element, scope) for element in elements)
                return self.add(graph.MakeTuple, span, items=items)
            case ast.Attribute(value=value, attr=attr):
                return self.attribute(value, attr, scope, span)
            case ast.Subscript(value=value, slice=index):
                return self.subscript(value, index, scope, span)
            case ast.Call():
                return self.call(node, scope)
        self.refuse("syntax", "this is not part of the loss language here", span)

    def chain(self, node: ast.BinOp, scope: Scope) -> int:
        """`a + b - c + ...` leans left, however long: walk down the spine and come back without recursion."""
        spine = [node]
        while isinstance(spine[-1].left, ast.BinOp):
            spine.append(spine[-1].left)
        value = self.expression(spine[-1].left, scope)
        for link in reversed(spine):
            right = self.expression(link.right, scope)
            value = self.apply(INFIX[type(link.op)], [value, right], Span.of(link))
        return value

    def apply(self, operator: str, arguments: list[int], span: Span, **keywords: int) -> int:
        return self.add(
            graph.Apply, span, operator=operator, arguments=tuple(arguments), keywords=tuple(keywords.items())
        )

    def name(self, name: str, scope: Scope, span: Span) -> int:
        meaning = scope.find(name)
        match meaning:
            case Variable(index):
                return index
            case Model():
                detail = f"'{name}' is a model: call it, {name}(x), or take its parameters, {name}.params"
                self.refuse("wrong_kind", detail, span)
            case Function() | Mapped() | Operator():
                self.refuse("wrong_kind", f"'{name}' is a function: call it, {name}(...)", span)
        if name in CONSTANTS:
            return self.add(graph.Constant, span, value=CONSTANTS[name])
        if name in self.operators:
            text = self.operators[name].text
            self.refuse("wrong_kind", f"'{name}' is an operator: call it, {text}", span)
        self.unknown(name, scope, span)

    def unknown(self, name: str, scope: Scope, span: Span) -> NoReturn:
        known = scope.known() | set(self.operators) | set(CONSTANTS)
        detail = f"'{name}' is not defined{nearest(name, sorted(known))}"
        if not nearest(name, sorted(known)):
            here = ", ".join(sorted(scope.known())) or "nothing"
            detail += f"; defined here: {here}, and the operators of GET /v1/operators"
        self.refuse("unknown_name", detail, span, name=name)

    def attribute(self, value: ast.expr, attr: str, scope: Scope, span: Span) -> int:
        if attr == "params":
            match value:
                case ast.Name(id=name) if isinstance(scope.find(name), Model):
                    return self.parameters[name]
                case ast.Name(id=name) if scope.find(name) is None:
                    self.unknown(name, scope, Span.of(value))
            self.refuse("wrong_kind", "only a model has .params", span)
        operator = "transpose" if attr == "T" else "shape"
        return self.apply(operator, [self.expression(value, scope)], span)

    def subscript(self, value: ast.expr, index: ast.expr, scope: Scope, span: Span) -> int:
        is_tuple = isinstance(index, ast.Tuple)
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        base = self.expression(value, scope)
        entries = tuple(self.index_entry(part, scope) for part in parts)
        return self.add(graph.Index, span, value=base, entries=entries, is_tuple=is_tuple)

    def index_entry(self, part: ast.expr, scope: Scope) -> Any:
        match part:
            case ast.Constant(value=None):
                return None
            case ast.Constant(value=value) if value is Ellipsis:
                return Ellipsis
            case ast.Slice(lower=lower, upper=upper, step=step):
                low, high, stride = (
                    None if bound is None else self.expression(bound, scope) for bound in (lower, upper, step)
                )
                return graph.Slice(start=low, stop=high, step=stride)
        return self.expression(part, scope)

    def named_leaf(self, node: ast.expr, scope: Scope) -> int | None:
        """The node of `model.params["leaf"]`, where `node` is that."""
        match node:
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id=name), attr="params"),
                slice=ast.Constant(value=str(leaf)),
            ) if isinstance(scope.find(name), Model):
                return self.leaves[name, leaf]
        return None

    # -- calls

    def callable_or_none(self, node: ast.expr, scope: Scope) -> Callable | None:
        """What can be called: a `def`, a model, an operator, or `vmap` of one of these."""
        match node:
            case ast.Name(id=name):
                meaning = scope.find(name)
                if meaning is None and name in self.operators:
                    return Operator(self.operators[name].name)
                return None if isinstance(meaning, Variable) else meaning
            case ast.Call(func=ast.Name(id="vmap")) if scope.find("vmap") is None:
                return self.vmap(node, scope)
        return None

    def vmap(self, node: ast.Call, scope: Scope) -> Mapped:
        span = Span.of(node)
        given = list(node.args)
        in_axes: ast.expr | None = None
        for keyword in node.keywords:
            if keyword.arg != "in_axes":
                self.refuse("arity", f"vmap takes in_axes, not '{keyword.arg}'", Span.of(keyword.value))
            in_axes = keyword.value
        if len(given) == 2 and in_axes is None:
            in_axes = given.pop()
        if len(given) != 1:
            self.refuse(
                "arity", "vmap takes one function: vmap(f)(x) or vmap(f, in_axes=(0, None))(x, y)", span
            )
        function = self.callable_or_none(given[0], scope)
        if function is None:
            if isinstance(given[0], ast.Name) and scope.find(given[0].id) is None:
                self.unknown(given[0].id, scope, Span.of(given[0]))
            detail = "vmap maps a def, a model or an operator; the call comes after: vmap(f)(x)"
            self.refuse("wrong_kind", detail, Span.of(given[0]))
        return Mapped(function, self.axes(in_axes) if in_axes is not None else None)

    def axes(self, node: ast.expr) -> tuple[int | None, ...]:
        try:
            axes = ast.literal_eval(node)
        except (ValueError, TypeError):
            axes = "no literal"
        axes = axes if isinstance(axes, tuple | list) else (axes,)
        if not all(axis is None or (isinstance(axis, int) and not isinstance(axis, bool)) for axis in axes):
            detail = "in_axes is a whole number or None for each argument, e.g. in_axes=(0, None)"
            self.refuse("wrong_kind", detail, Span.of(node))
        return tuple(axes)

    def call(self, node: ast.Call, scope: Scope) -> int:
        span = Span.of(node)
        function = self.callable_or_none(node.func, scope)
        if function is None:
            self.not_callable(node.func, scope)
        if isinstance(function, Operator):
            signature = self.operators[function.name]
            if signature.family == "derivative" and signature.order:
                return self.derivative(node, signature, scope)
        if isinstance(node.func, ast.Name) and node.func.id == "vmap":
            self.refuse("wrong_kind", "vmap(f) is a function: call it, vmap(f)(x), or name it", span)
        arguments: list[int | Callable] = []
        for argument in node.args:
            passed = self.callable_or_none(argument, scope) if isinstance(function, Function) else None
            arguments.append(passed if passed is not None else self.expression(argument, scope))
        keywords = {str(item.arg): self.expression(item.value, scope) for item in node.keywords}
        return self.invoke(function, arguments, keywords, span)

    def not_callable(self, node: ast.expr, scope: Scope) -> NoReturn:
        span = Span.of(node)
        match node:
            case ast.Name(id=name) if isinstance(scope.find(name), Variable):
                if name in self.operators:
                    detail = f"'{name}' is a value here and hides the operator '{name}'; rename the value"
                    self.refuse("hidden_operator", detail, span)
                self.refuse("wrong_kind", f"'{name}' is a value, it cannot be called", span)
            case ast.Name(id=name):
                self.unknown(name, scope, span)
        detail = "only operators, models, defs and vmap(f) can be called"
        self.refuse("syntax", detail, span)

    def invoke(
        self, function: Callable, arguments: list[int | Callable], keywords: dict[str, int], span: Span
    ) -> int:
        match function:
            case Operator(name):
                signature = self.operators[name]
                self.check_arity(signature, len(arguments), keywords, span)
                return self.apply(name, self.values(arguments, span), span, **keywords)
            case Model(name):
                return self.model_call(name, self.values(arguments, span), keywords, span)
            case Mapped():
                if keywords:
                    self.refuse("arity", "a mapped function takes its arguments by position", span)
                return self.map(function, self.values(arguments, span), span)
            case Function(statement, scope):
                return self.inline(statement, scope, arguments, keywords, span)

    def values(self, arguments: list[int | Callable], span: Span) -> list[int]:
        for argument in arguments:
            if not isinstance(argument, int):
                self.refuse("wrong_kind", "a function cannot be an argument here", span)
        return [argument for argument in arguments if isinstance(argument, int)]

    def check_arity(
        self, signature: OperatorSignature, given: int, keywords: Collection[str], span: Span
    ) -> None:
        parameters = signature.parameters
        variadic = any(parameter.variadic for parameter in parameters)
        by_position = {parameter.name for parameter in parameters[:given]}
        if given > len(parameters) and not variadic:
            detail = f"{signature.text} takes {signature.counts} arguments, {given} are given"
            self.refuse("arity", detail, span)
        names = [parameter.name for parameter in parameters]
        for keyword in keywords:
            if keyword not in names:
                hint = nearest(keyword, names)
                self.refuse("arity", f"{signature.text} has no argument '{keyword}'{hint}", span)
            if keyword in by_position and not variadic:
                self.refuse("arity", f"{signature.text}: '{keyword}' is given twice", span)
        for parameter in parameters:
            if parameter.required and parameter.name not in by_position and parameter.name not in keywords:
                detail = f"{signature.text} lacks its argument '{parameter.name}'"
                self.refuse("arity", detail, span)

    def model_call(self, model: str, arguments: list[int], keywords: dict[str, int], span: Span) -> int:
        unknown = set(keywords) - {"params", "mode"}
        if unknown:
            name = min(unknown)
            self.refuse("arity", f"a model takes params= and mode=, not '{name}'", span)
        if not arguments:
            self.refuse("arity", f"{model}(x) takes an input; its parameters come from the binding", span)
        mode = None
        if "mode" in keywords:
            given = self.nodes[keywords["mode"]]
            if not isinstance(given, graph.Constant) or given.value not in ("eval", "train"):
                self.refuse("wrong_kind", 'mode is "eval" or "train"', span)
            mode = str(given.value)
        return self.add(
            graph.ModelCall,
            span,
            model=model,
            arguments=tuple(arguments),
            params=keywords.get("params", self.parameters[model]),
            mode=mode,
            mapped=self.frame.mapped,
        )

    def inline(
        self,
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
                self.refuse("arity", f"{name}({', '.join(names)}) cannot take '{keyword}' here", span)
            bound[keyword] = value
        if len(arguments) > len(names) or len(bound) < len(names):
            given = len(arguments) + len(keywords)
            detail = f"{name}({', '.join(names)}) takes {len(names)} arguments, {given} are given"
            self.refuse("arity", detail, span)
        outer = self.frame
        if statement in outer.active:
            self.refuse("limit", f"'{name}' calls itself; a program has no recursion", span)
        if len(outer.active) >= self.limits.call_depth:
            self.refuse("limit", f"defs call one another more than {self.limits.call_depth} deep", span)
        inner = Scope(scope)
        leaves = set()
        for argument, passed in bound.items():
            if isinstance(passed, int):
                index = self.add(graph.Identity, span, value=passed)
                leaves.add(index)
                inner.names[argument] = Variable(index)
            else:
                inner.names[argument] = passed
        self.frame = _Frame(outer.leaves | leaves, (*outer.active, statement), outer.mapped)
        result = self.body(statement.body, inner)
        self.frame = outer
        assert result is not None, "syntax.read checks that a def ends with return"
        return result

    def map(self, function: Mapped, arguments: list[int], span: Span) -> int:
        if not arguments:
            self.refuse("arity", "a mapped function needs at least one argument", span)
        if function.in_axes is not None and len(function.in_axes) not in (1, len(arguments)):
            detail = f"in_axes names {len(function.in_axes)} arguments, {len(arguments)} are given"
            self.refuse("arity", detail, span)
        outer = self.frame
        start = len(self.nodes)
        parameters = [self.add(graph.Argument, span, name=f"argument {i + 1}") for i in range(len(arguments))]
        self.frame = _Frame(outer.leaves, outer.active, mapped=True)
        result = self.invoke(function.function, list(parameters), {}, span)
        self.frame = outer
        inside = [index for index in graph.needed(self.nodes, [result]) if index >= start]
        body = tuple(index for index in inside if not isinstance(self.nodes[index], graph.Argument))
        reads = {read for index in body for read in self.nodes[index].reads}
        if result < start:
            reads.add(result)
        return self.add(
            graph.Map,
            span,
            order=max((self.orders[index] for index in body), default=0),
            start=start,
            arguments=tuple(arguments),
            parameters=tuple(parameters),
            in_axes=function.in_axes,
            result=result,
            body=body,
            free=tuple(sorted(read for read in reads if read < start)),
        )

    # -- derivatives

    def derivative(self, node: ast.Call, signature: OperatorSignature, scope: Scope) -> int:
        """`grad(y, x)` and its kin: the second argument is a name, `d` takes several."""
        span = Span.of(node)
        keywords = {str(keyword.arg): keyword.value for keyword in node.keywords}
        self.check_arity(signature, len(node.args), keywords, span)
        given = list(node.args)
        rest = signature.parameters[len(given) :]
        given += [keywords[parameter.name] for parameter in rest if parameter.name in keywords]
        value = self.expression(given[0], scope)
        variadic = signature.parameters[1].variadic
        variables = given[1:] if variadic else given[1:2]
        vectors = () if variadic else tuple(self.expression(vector, scope) for vector in given[2:])
        for variable in variables:
            value = self.add_derivative(signature, value, variable, vectors, scope, span)
        return value

    def add_derivative(
        self,
        signature: OperatorSignature,
        value: int,
        variable: ast.expr,
        vectors: tuple[int, ...],
        scope: Scope,
        span: Span,
    ) -> int:
        wrt, name = self.variable(variable, scope, signature)
        found = dependence.path(self.nodes, value, wrt, self.frame.leaves - {wrt})
        if found is None:
            self.independent(value, wrt, name, span)
        inside = (*found.nodes, value)
        order = signature.order + max(self.orders[index] for index in inside)
        if order > self.limits.derivative_order:
            detail = f"derivatives are nested {order} deep, more than {self.limits.derivative_order}"
            self.refuse("limit", detail, span)
        return self.add(
            graph.Derivative,
            span,
            order=order,
            # forward and backward pass each evaluate the path again, at every level
            cost=3**signature.order * (1 + sum(self.costs[index] for index in found.nodes)),
            operator=signature.name,
            value=value,
            wrt=wrt,
            wrt_name=name,
            vectors=vectors,
            path=found.nodes,
            captured=found.captured,
        )

    def variable(self, node: ast.expr, scope: Scope, signature: OperatorSignature) -> tuple[int, str]:
        span = Span.of(node)
        leaf = self.named_leaf(node, scope)
        if leaf is not None:
            return leaf, ast.unparse(node)
        match node:
            case ast.Attribute(attr="params"):
                return self.expression(node, scope), ast.unparse(node)
            case ast.Name(id=name):
                if isinstance(scope.find(name), Model):
                    detail = f"'{name}' is a model; differentiate with respect to {name}.params"
                    self.refuse("not_a_name", detail, span)
                return self.name(name, scope, span), name
        detail = (
            f"{signature.name} differentiates with respect to a name, not an expression; name it first "
            f"(t = {ast.unparse(node)[:40]}) and compute the value from that name"
        )
        self.refuse("not_a_name", detail, span)

    def independent(self, value: int, wrt: int, name: str, span: Span) -> NoReturn:
        detail = f"the value does not depend on '{name}'"
        parent = dependence.parent_that_flows(self.nodes, value, wrt, self.frame.leaves)
        held = [
            leaf
            for leaf in self.frame.leaves
            if dependence.path(self.nodes, leaf, wrt, self.frame.leaves - {leaf}) is not None
            and dependence.path(self.nodes, value, leaf, self.frame.leaves - {leaf}) is not None
        ]
        if parent is not None:
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
            detail += "; 0*x or stop_gradient(x) give zeros where zeros are meant"
        self.refuse("independent", detail, span, name=name)
