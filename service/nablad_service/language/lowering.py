"""From a checked `ast` to a `Program`: names resolved, `def`s written out, paths of derivatives found."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import Any, NoReturn, TypeVar

from nablad.problems import Refusal
from nablad_service.language import calls, graph, syntax
from nablad_service.language.limits import Limits
from nablad_service.language.places import Span, nearest, refusal
from nablad_service.language.scopes import Callable, Frame, Function, Mapped, Model, Operator, Scope, Variable
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
    models: Mapping[str, Collection[str]],
    operators: Mapping[str, OperatorSignature],
    limits: Limits | None = None,
) -> graph.Program:
    """Read a program.

    Args:
        text: the program, in the language of `docs/language.md`.
        inputs: names of the request's inputs.
        models: the request's models by name, each with the names of its parameters.
        operators: the operator table, by name and alias.
        limits: bounds on the size of the program.

    Raises:
        Refusal: with a code of the first group of `nablad.problems.CODES` and the place in the text.
    """
    limits = limits or Limits()
    module = syntax.read(text, limits)
    lowering = Lowering(text, operators, limits)
    try:
        return lowering.program(module, inputs, models)
    except RecursionError:
        raise refusal("limit", "the program is nested too deeply; name parts of it", text) from None


class Lowering:
    """The graph under construction: statements and expressions become nodes. Lives for one `parse`."""

    def __init__(self, text: str, operators: Mapping[str, OperatorSignature], limits: Limits) -> None:
        self.text = text
        self.operators = operators
        self.limits = limits
        self.nodes: list[graph.Node] = []
        self.orders: list[int] = []
        self.costs: list[int] = []
        self.total_cost = 0
        self.parameters: dict[str, int] = {}
        self.leaves: Mapping[str, Collection[str]] = {}
        self.frame = Frame()

    # -- nodes

    def add(
        self, kind: type[NodeT], span: Span | None, *, order: int = 0, cost: int = 1, **fields: Any
    ) -> int:
        """Append a node; gives its index. `cost` is how many evaluations tracing it takes."""
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
        """Refuse the program, pointing at `span`."""
        raise refusal(code, detail, self.text, span, **extra)

    # -- the program

    def program(
        self, module: ast.Module, inputs: Collection[str], models: Mapping[str, Collection[str]]
    ) -> graph.Program:
        """Lower a whole program."""
        self.leaves = models
        for name in inputs:
            if name in models:
                raise Refusal("invalid_request", f"'{name}' names both an input and a model")
        top = Scope(None)
        input_nodes = {name: self.add(graph.Input, None, name=name) for name in inputs}
        for name in models:
            self.parameters[name] = self.add(graph.Parameters, None, model=name)
            top.names[name] = Model(name)
        top.names.update({name: Variable(index) for name, index in input_nodes.items()})
        reserved = frozenset(top.names)
        result = self.body(module.body, top, reserved)
        last = module.body[-1] if module.body else None
        value = last.value if isinstance(last, ast.Return | ast.Expr) else None
        result_span = Span.of(value) if value else None
        names = {name: meaning.index for name, meaning in top.names.items() if isinstance(meaning, Variable)}
        return graph.Program(
            self.text,
            tuple(self.nodes),
            names,
            input_nodes,
            dict(self.parameters),
            result,
            result_span,
            tuple(self.orders),
        )

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
                case ast.Return():
                    detail = "return stands on the last line and gives a value: return x"
                    self.refuse("syntax", detail, Span.of(statement))
                case _:
                    detail = "only the last line may be a bare expression; assign this to a name"
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
        """Give `name` its one meaning in `scope`."""
        if name in reserved:
            self.refuse("redefined_name", f"'{name}' is an input or a model; assign to another name", span)
        if name in scope.names:
            self.refuse("redefined_name", f"'{name}' has a value already; give this one a new name", span)
        scope.names[name] = meaning

    def assign(self, statement: ast.Assign, scope: Scope, reserved: Collection[str]) -> None:
        """`name = value`, `a, b = value`, `f = vmap(g)`."""
        if len(statement.targets) != 1:
            self.refuse("syntax", "assign to one name, or to names separated by commas", Span.of(statement))
        target = statement.targets[0]
        match target:
            case ast.Name(id=name):
                function = calls.callable_or_none(self, statement.value, scope)
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
        """Lower an expression; gives its node."""
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
                return calls.call(self, node, scope)
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
        """An operator's node."""
        return self.add(
            graph.Apply, span, operator=operator, arguments=tuple(arguments), keywords=tuple(keywords.items())
        )

    def name(self, name: str, scope: Scope, span: Span) -> int:
        """The node that a name stands for."""
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
        """Refuse a name that is not defined, with the nearest that is."""
        hint = nearest(name, sorted(scope.known() | set(self.operators) | set(CONSTANTS)))
        here = sorted(scope.known())
        shown = ", ".join(here[:12]) + (f" and {len(here) - 12} more" if len(here) > 12 else "")
        hint = hint or f"; defined here: {shown or 'nothing'}, and the operators"
        detail = f"'{name[:60]}' is not defined{hint} (data are sent in inputs)"
        self.refuse("unknown_name", detail, span, name=name[:60])

    def attribute(self, value: ast.expr, attr: str, scope: Scope, span: Span) -> int:
        """`.T`, `.shape`, and `.params` of a model."""
        if attr == "params":
            match value:
                case ast.Name(id=name) if isinstance(meaning := scope.find(name), Model):
                    return self.parameters[meaning.name]
                case ast.Name(id=name) if scope.find(name) is None:
                    self.name(name, scope, Span.of(value))
            self.refuse("wrong_kind", "only a model has .params", span)
        operator = "transpose" if attr == "T" else "shape"
        return self.apply(operator, [self.expression(value, scope)], span)

    def subscript(self, value: ast.expr, index: ast.expr, scope: Scope, span: Span) -> int:
        """`value[...]`."""
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        base = self.expression(value, scope)
        entries = tuple(self.index_entry(part, scope) for part in parts)
        return self.add(graph.Index, span, value=base, entries=entries)

    def index_entry(self, part: ast.expr, scope: Scope) -> Any:
        """One entry of an index: a node, a slice, None or Ellipsis."""
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

    def named_leaf(self, node: ast.expr, scope: Scope) -> tuple[int, str] | None:
        """The tree and the leaf's name of `model.params["leaf"]`, where `node` is that."""
        match node:
            case ast.Subscript(
                value=ast.Attribute(value=ast.Name(id=name), attr="params"),
                slice=ast.Constant(value=str(leaf)),
            ):
                meaning = scope.find(name)
                if isinstance(meaning, Model):
                    self.check_leaf(meaning.name, leaf, Span.of(node))
                    return self.parameters[meaning.name], leaf
        return None

    def check_leaf(self, model: str, leaf: str, span: Span) -> None:
        """Refuse a parameter that the model does not have."""
        leaves = self.leaves[model]
        if leaf not in leaves:
            hint = nearest(leaf, leaves) or f"; it has {', '.join(list(leaves)[:12]) or 'none'}"
            self.refuse("unknown_name", f"'{model}' has no parameter '{leaf[:60]}'{hint}", span)
