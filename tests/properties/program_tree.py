"""A program as a tree: drawn once, then written as text and evaluated by hand, two routes from one source.

Names are unique in the whole program, so that what a name stands for never depends on where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

N, D = 3, 2
SCALAR, EXAMPLES, POINT, BATCH, MATRIX = (), (N,), (D,), (N, D), (D, D)
Shape: TypeAlias = "tuple[int, ...] | str"
"""Of an array; for a parameter tree the name of its model."""


@dataclass(frozen=True)
class Name:
    """An input, an argument, an assigned value, or `model.params`."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Leaf:
    """One array of a model's parameters: `net.params["layer_1.weight"]`."""

    tree: str
    leaf: str
    shape: Shape

    @property
    def text(self) -> str:
        return f'{self.tree}["{self.leaf}"]'


@dataclass(frozen=True)
class Apply:
    """An operator: its text with places for the parts, and the same function in JAX."""

    text: str
    function: Callable[..., Any]
    parts: tuple[Expr, ...]
    shape: Shape


@dataclass(frozen=True)
class ModelCall:
    """`model(x)`, `model(x, params=p)`, or `vmap(model)(x)`."""

    model: str
    x: Expr
    params: Expr | None
    shape: Shape
    mapped: bool = False


@dataclass(frozen=True)
class Derivative:
    """`operator(value, variable, *vectors)`; `d` may have several variables."""

    operator: str
    value: Expr
    variables: tuple[Name | Leaf, ...]
    vectors: tuple[Expr, ...]
    shape: Shape


@dataclass(frozen=True)
class Call:
    """A `def` called, or mapped over `axes`."""

    function: Def
    arguments: tuple[Expr, ...]
    axes: tuple[int | None, ...] | None
    shape: Shape


@dataclass(frozen=True)
class Loop:
    """`fori(count, body, init)`, or one part of `scan(body, init, xs)`."""

    function: Def
    init: Expr
    over: int | Expr
    part: int
    shape: Shape


Expr: TypeAlias = Name | Leaf | Apply | ModelCall | Derivative | Call | Loop


@dataclass(frozen=True)
class Assign:
    """`name = value`."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Def:
    """A function; a scan's body has two results."""

    name: str
    arguments: tuple[Name, ...]
    body: tuple[Statement, ...]
    results: tuple[Expr, ...]


Statement: TypeAlias = Assign | Def


@dataclass(frozen=True)
class Program:
    """Statements, and what each assigned name stands for, in all scopes."""

    statements: tuple[Statement, ...]
    loss: Expr
    definitions: dict[str, Expr]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """As hypothesis shows it: the text, not the tree."""
        printer.text("\n" + self.text)

    @property
    def text(self) -> str:
        return "\n".join([*lines(self.statements), written(self.loss)])

    @property
    def names(self) -> frozenset[str]:
        """All names that the text holds, of inputs and parameters too."""
        found = set(mentioned(self.loss))
        for expression in self.definitions.values():
            found |= set(mentioned(expression))
        return frozenset(found | set(_in_defs(self.statements)))


def lines(statements: Iterable[Statement], indent: str = "") -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, Assign):
            yield f"{indent}{statement.name} = {written(statement.value)}"
            continue
        arguments = ", ".join(argument.name for argument in statement.arguments)
        yield f"{indent}def {statement.name}({arguments}):"
        yield from lines(statement.body, indent + "    ")
        results = ", ".join(written(result) for result in statement.results)
        yield f"{indent}    return {f'({results})' if len(statement.results) > 1 else results}"


def written(expression: Expr) -> str:
    """The expression as text of the loss language."""
    match expression:
        case Name(name=name):
            return name
        case Leaf():
            return expression.text
        case Apply(text=text, parts=parts):
            return text.format(*(written(part) for part in parts))
        case ModelCall(model=model, x=x, params=params, mapped=mapped):
            called = f"vmap({model})" if mapped else model
            return f"{called}({written(x)}{f', params={written(params)}' if params else ''})"
        case Derivative(operator=operator, value=value, variables=variables, vectors=vectors):
            return f"{operator}({', '.join(written(part) for part in (value, *variables, *vectors))})"
        case Call(function=function, arguments=arguments, axes=axes):
            texts = [written(argument) for argument in arguments]
            if axes is None and len(texts) > 1:  # the last one by its name
                texts[-1] = f"{function.arguments[-1].name}={texts[-1]}"
            given = ", ".join(texts)
            if axes is None:
                return f"{function.name}({given})"
            in_axes = "" if set(axes) == {0} else f", in_axes=({', '.join(map(str, axes))},)"
            return f"vmap({function.name}{in_axes})({given})"
        case Loop(function=function, init=init, over=int() as count):
            return f"fori({count}, {function.name}, {written(init)})"
        case Loop(function=function, init=init, over=xs, part=part):
            return f"scan({function.name}, {written(init)}, {written(xs)})[{part}]"
    raise TypeError(expression)


def children(expression: Expr) -> tuple[Expr, ...]:
    """The expressions right inside, a derivative's value and variables among them."""
    match expression:
        case Apply(parts=parts):
            return parts
        case ModelCall(model=model, x=x, params=params):
            return (x, params if params else Name(f"{model}.params", model))
        case Derivative(value=value, variables=variables, vectors=vectors):
            return (value, *variables, *vectors)
        case Call(arguments=arguments):
            return arguments
        case Loop(init=init, over=over):
            return (init,) if isinstance(over, int) else (init, over)
    return ()


def mentioned(expression: Expr) -> Iterator[str]:
    """Names in the text of the expression; those in `def`s stand elsewhere."""
    if isinstance(expression, Name | Leaf):
        yield expression.name if isinstance(expression, Name) else expression.tree
    for child in children(expression):
        yield from mentioned(child)


def _in_defs(statements: Iterable[Statement]) -> Iterator[str]:
    for statement in statements:
        if isinstance(statement, Def):
            yield from _in_defs(statement.body)
            for result in statement.results:
                yield from mentioned(result)


def root(variable: Name | Leaf) -> str:
    """The name that a variable is, or is a part of."""
    return variable.name if isinstance(variable, Name) else variable.tree
