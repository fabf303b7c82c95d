"""Hypothesis draws well-typed programs: what is asked for is a shape, what comes is a tree of that shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax.numpy as jnp
from dependence import depends
from derivatives import ARRAYS, RECIPES, Recipe
from hypothesis import strategies as st
from program_tree import (
    BATCH,
    EXAMPLES,
    MATRIX,
    POINT,
    SCALAR,
    Apply,
    Assign,
    Call,
    Def,
    Derivative,
    Expr,
    Leaf,
    Loop,
    ModelCall,
    Name,
    Program,
    Shape,
    Statement,
)
from tame_operators import BINARY, OTHER, UNARY, squares, total

INPUTS = {
    "x": BATCH,
    "y": BATCH,
    "t": EXAMPLES,
    "s": EXAMPLES,
    "w": POINT,
    "q": POINT,
    "A": MATRIX,
    "c": SCALAR,
    "b": SCALAR,
}
LEAVES = (
    Leaf("net.params", "layer_2.weight", (1, 3)),
    Leaf("field.params", "layer_1.bias", (3,)),
    Leaf("field.params", "layer_2.weight", (2, 3)),
)
LARGEST = 22
"""Expressions in a program; compilation is what takes the time."""


Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Block:
    """The statements of a `def`, or of the top level, so far."""

    statements: list[Statement] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    functions: list[tuple[Def, Shape, bool]] = field(default_factory=list)
    """Each with the shape of its result, and whether it keeps examples apart."""


@dataclass(frozen=True)
class Room:
    """Where an expression is drawn, and how much may still be inside it."""

    blocks: tuple[Block, ...]
    depth: int
    order: int
    apart: bool = False
    wanted: tuple[Name, ...] = ()
    """Variables of the derivatives around: chosen more often."""

    def inner(self, **changes: Any) -> Room:
        return replace(self, **{"depth": self.depth - 1, **changes})


class Drawing:
    """One program being drawn.

    `plain` leaves out what Python has no own word for: calls and loops. With `unsure` examples may mix where
    they must not.
    """

    def __init__(self, draw: Draw, plain: bool, unsure: bool = False) -> None:
        self.draw = draw
        self.plain = plain
        self.unsure = unsure
        self.definitions: dict[str, Expr] = {}
        self.apart = set(INPUTS)
        self.size = 0
        self.count = 0
        self.top = Block(names=[Name(name, shape) for name, shape in INPUTS.items()])

    def choose(self, choices: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(choices))

    def fresh(self, start: str) -> str:
        self.count += 1
        return f"{start}{self.count}"

    # -- expressions

    def expression(self, shape: Shape, room: Room) -> Expr:
        self.size += 1
        if isinstance(shape, str):
            return self.tree(shape, room)
        if shape not in ARRAYS or room.depth <= 0 or self.size > LARGEST:
            return self.name(shape, room)
        kinds = [self.unary, self.binary, self.other, self.other, self.model, self.let]
        if room.order > 0:
            kinds += [self.derivative] * 4
        kinds += [self.mapped] * (shape in (EXAMPLES, BATCH) or (shape == POINT and not room.apart))
        kinds += [self.call, self.loop] * (not self.plain and not room.apart)
        return self.choose(kinds)(shape, room)

    def visible(self, shape: Shape, apart: bool, room: Room) -> list[Name]:
        every = [name for block in reversed(room.blocks) for name in block.names]
        return [name for name in every if name.shape == shape and (not apart or name.name in self.apart)]

    def name(self, shape: Shape, room: Room) -> Expr:
        if shape in ARRAYS:
            found: list[Name] = self.visible(shape, room.apart, room)
            return self.choose([name for name in found if name in room.wanted] * 4 + found)
        return next(leaf for leaf in LEAVES if leaf.shape == shape)

    def tree(self, model: str, room: Room) -> Expr:
        params = self.choose([*self.visible(model, False, room), Name(f"{model}.params", model)])
        if room.order <= 0 or room.depth <= 0 or room.apart or self.draw(st.booleans()):
            return params
        value = self.reaching(self.expression(SCALAR, room.inner(order=room.order - 1)), params, False)
        slope = Derivative("grad", value, (params,), (), model)
        return self.named(Apply("({} - 0.1 * {})", _step, (params, slope), model), model, room)

    def unary(self, shape: Shape, room: Room) -> Expr:
        return Apply(*self.choose(UNARY), (self.expression(shape, room.inner()),), shape)

    def binary(self, shape: Shape, room: Room) -> Expr:
        parts = self.expression(shape, room.inner()), self.expression(shape, room.inner())
        return Apply(*self.choose(BINARY), parts, shape)

    def other(self, shape: Shape, room: Room) -> Expr:
        rules = [rule for rule in OTHER if rule[0] == shape and (rule[2] or not room.apart)]
        _, parts, _, text, function = self.choose(rules)
        return Apply(text, function, tuple(self.expression(part, room.inner()) for part in parts), shape)

    def model(self, shape: Shape, room: Room) -> Expr:
        takes = BATCH if shape in (EXAMPLES, BATCH) else POINT
        if shape == MATRIX:
            return self.other(shape, room)
        model = "field" if shape in (POINT, BATCH) else "net"
        x = self.expression(takes, room.inner())
        params = self.tree(model, room.inner()) if not room.apart and self.draw(st.booleans()) else None
        mapped = params is None and takes == BATCH and self.draw(st.booleans())
        if model == "field":
            return ModelCall(model, x, params, shape, mapped)
        answer = ModelCall(model, x, params, (*takes[:-1], 1), mapped)
        return Apply("{}[..., 0]", lambda a: a[..., 0], (answer,), shape)

    def let(self, shape: Shape, room: Room) -> Expr:
        """A value with a name of its own: a variable for derivatives further down."""
        value = self.expression(shape, room.inner())
        if self.plain and isinstance(value, Name):
            # In Python another name for a value is the same variable, in a text it is one of its own.
            value = Apply(*UNARY[0], (value,), shape)
        return self.named(value, shape, room)

    def named(self, value: Expr, shape: Shape, room: Room) -> Name:
        name = Name(self.fresh("a"), shape)
        self.definitions[name.name] = value
        if room.apart:
            self.apart.add(name.name)
        room.blocks[-1].statements.append(Assign(name.name, value))
        room.blocks[-1].names.append(name)
        return name

    # -- derivatives

    def derivative(self, shape: Shape, room: Room) -> Expr:
        recipes = [
            recipe
            for recipe in RECIPES
            if recipe.result == shape
            and not recipe.unsure
            and recipe.order <= room.order
            and (recipe.keeps or not room.apart)
            and not (recipe.variables > 1 and len(self._independent(recipe, room)) < 2)
        ]
        operators = sorted({recipe.operator for recipe in recipes})
        operator = self.choose(operators)
        return self.derived(self.choose([one for one in recipes if one.operator == operator]), room)

    def derived(self, recipe: Recipe, room: Room) -> Expr:
        apart = room.apart or (recipe.apart and not self.unsure)
        variables = self.variables(recipe, apart, room)
        wanted = room.wanted + tuple(one for one in variables if isinstance(one, Name))
        inside = room.inner(order=room.order - recipe.order, apart=apart, wanted=wanted)
        if apart and recipe.y == SCALAR and variables[0].shape in (EXAMPLES, BATCH):
            value = self.reaching(self.expression(EXAMPLES, inside.inner()), variables[0], apart)
            value = Apply("sum({})", jnp.sum, (value,), SCALAR)
        else:
            value = self.expression(recipe.y, inside)
            for variable in variables:
                value = self.reaching(value, variable, apart)
        vectors = tuple(
            self.vector(variables[0].shape if shape == recipe.x else shape, recipe.probes, room)
            for shape in recipe.vectors
        )
        result = Derivative(recipe.operator, value, variables, vectors, recipe.result)
        return recipe.finish(result)

    def variables(self, recipe: Recipe, apart: bool, room: Room) -> tuple[Name | Leaf, ...]:
        if recipe.x == "leaf":
            return (self.choose(LEAVES),)
        if isinstance(recipe.x, str):
            names = self.visible(recipe.x, False, room)
            return (self.choose([*names, Name(f"{recipe.x}.params", recipe.x)]),)
        if recipe.variables > 1:
            found = self._independent(recipe, room)
            return (self.choose(found), self.choose(found))
        return (self.choose(self.visible(recipe.x, apart, room)),)

    def _independent(self, recipe: Recipe, room: Room) -> list[Name]:
        """Inputs and arguments: none of them was computed from another."""
        names = self.visible(recipe.x, room.apart or recipe.apart, room)
        return [name for name in names if name.name not in self.definitions]

    def vector(self, shape: Shape, probes: bool, room: Room) -> Expr:
        inside = replace(room, depth=min(room.depth - 1, 1))
        one = self.expression(shape, inside)
        if not probes or self.draw(st.booleans()):
            return one
        two = self.expression(shape, inside)
        return Apply("stack([{}, {}])", lambda a, b: jnp.stack([a, b]), (one, two), shape)

    def reaching(self, value: Expr, variable: Name | Leaf, apart: bool) -> Expr:
        """The value, made to depend on the variable where it does not yet."""
        name = variable.name if isinstance(variable, Name) else variable.tree
        if depends(value, name, self.definitions):
            return value
        part: Expr = variable if variable.shape == SCALAR else total(variable)
        if apart and variable.shape in (EXAMPLES, BATCH):
            part = _fitted(variable, value.shape)
        return Apply("({} * cos({}))", lambda a, b: a * jnp.cos(b), (value, part), value.shape)

    # -- functions

    def function(self, arguments: Sequence[Shape], results: Sequence[Shape], room: Room) -> Def:
        names = tuple(Name(self.fresh("p"), shape) for shape in arguments)
        self.apart |= {name.name for name in names}
        block = Block(names=list(names))
        inside = room.inner(blocks=(*room.blocks, block), wanted=room.wanted + names)
        found = []
        for shape in results:
            value = self.expression(shape, inside)
            for name in names:
                value = self.reaching(value, name, room.apart)
            found.append(value)
        function = Def(self.fresh("f"), names, tuple(block.statements), tuple(found))
        room.blocks[-1].statements.append(function)
        return function

    def mapped(self, shape: Shape, room: Room) -> Expr:
        shared = [(SCALAR, SCALAR, None), (POINT, POINT, None)]
        over = [(POINT, BATCH, 0), (SCALAR, EXAMPLES, 0)]
        if shape == POINT:
            over = [(SCALAR, POINT, 0), (EXAMPLES, BATCH, 1)]
        picked = [self.choose(over)]
        if self.draw(st.booleans()):
            picked.append(self.choose(over + shared))
        arguments = tuple(self.expression(whole, room.inner(depth=1)) for _, whole, _ in picked)
        function = self.function([one for one, _, _ in picked], [shape[1:]], room)
        return Call(function, arguments, tuple(axis for _, _, axis in picked), shape)

    def call(self, shape: Shape, room: Room) -> Expr:
        """Of a new `def`, or of one that is there already."""
        there = [
            function
            for block in room.blocks
            for function, result, apart in block.functions
            if result == shape and (apart or not room.apart)
        ]
        if there and self.draw(st.booleans()):
            function = self.choose(there)
            shapes = [argument.shape for argument in function.arguments]
        else:
            shapes = [self.choose((*ARRAYS, "field")) for _ in range(1 + self.draw(st.booleans()))]
            function = self.function(shapes, [shape], room)
            room.blocks[-1].functions.append((function, shape, room.apart))
        return Call(function, tuple(self.expression(one, room.inner(depth=1)) for one in shapes), None, shape)

    def loop(self, shape: Shape, room: Room) -> Expr:
        init_shape = shape if shape in (SCALAR, POINT, MATRIX) or self.draw(st.booleans()) else None
        over = self.choose([EXAMPLES, BATCH, None]) if init_shape is not None else EXAMPLES
        init = self.expression(init_shape if init_shape is not None else SCALAR, room.inner(depth=1))
        if over is None:
            body = self.counted(self.function([shape], [shape], room), room)
            return Loop(body, init, self.choose([1, 2, 3]), 0, shape)
        xs = self.expression(over, room.inner(depth=1))
        if init_shape is not None:
            return Loop(self.function([shape, over[1:]], [shape, SCALAR], room), init, xs, 0, shape)
        return Loop(self.function([SCALAR, over[1:]], [SCALAR, shape[1:]], room), init, xs, 1, shape)

    def counted(self, function: Def, room: Room) -> Def:
        """The body of fori, which also gets the number of the round."""
        number = Name(self.fresh("i"), SCALAR)
        result = Apply("({} + 0.1 * {})", lambda a, b: a + 0.1 * b, (*function.results, number), None)
        body = replace(function, arguments=(number, *function.arguments), results=(result,))
        room.blocks[-1].statements[-1] = body
        return body


def _step(tree: Any, slope: Any) -> Any:
    return type(tree)((name, leaf - 0.1 * slope[name]) for name, leaf in tree.items())


def _fitted(variable: Name | Leaf, shape: Shape) -> Expr:
    """A batch in the shape of another, example by example."""
    if variable.shape == shape:
        return variable
    if shape == EXAMPLES:
        return Apply("sum({}, axis=1)", lambda a: jnp.sum(a, 1), (variable,), shape)
    return Apply("{}[:, None]", lambda a: a[:, None], (variable,), shape)


@st.composite
def programs(
    draw: Any, *, plain: bool = False, unsure: bool = False, depth: int = 4, order: int = 3
) -> Program:
    """Programs whose loss holds one inner derivative at least; if `unsure`, one by examples."""
    drawing = Drawing(draw, plain, unsure)
    room = Room((drawing.top,), depth, order)
    for _ in range(draw(st.integers(0, 2))):
        drawing.let(drawing.choose(ARRAYS), replace(room, depth=2, order=1, apart=draw(st.booleans())))
    if unsure:
        recipe = drawing.choose([recipe for recipe in RECIPES if recipe.apart])
        shape, loss = recipe.result, drawing.derived(recipe, room)
    else:
        shape = drawing.choose(ARRAYS)
        loss = drawing.derivative(shape, room)
    loss = squares(loss) if shape != SCALAR else loss
    if draw(st.booleans()):
        parts = (loss, drawing.expression(SCALAR, room))
        loss = Apply(*drawing.choose(BINARY[:3]), parts, SCALAR)
    return Program(tuple(drawing.top.statements), loss, drawing.definitions)


def reached(program: Program) -> list[str]:
    """The inputs and the models' parameters that flow into the loss."""
    known = [*INPUTS, "field.params", "net.params"]
    return [name for name in known if depends(program.loss, name, program.definitions)]
