"""A derivative of the program: what is differentiated as a function of arrays alone, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine import cautions, coupling, derivatives, values
from nablad_service.engine.derivatives import Choice, DerivativeRow, Differentiation, Shapes
from nablad_service.engine.drawing import drawn
from nablad_service.engine.environment import Environment, Learned, Meaning
from nablad_service.engine.flattening import BY_COORDINATES, Flat
from nablad_service.engine.indexing import leaf_of
from nablad_service.engine.modes import need_no_pushed_rule
from nablad_service.engine.values import Value
from nablad_service.language import graph

if TYPE_CHECKING:
    from nablad_service.engine.evaluation import Evaluation

AROUND = -2
"""Stands among captured nodes for what a derivative stands in: the runs of maps and loops, key and states."""


def derivative(evaluation: Evaluation, node: graph.Derivative, environment: Environment) -> Value:
    """The derivative `node`, by the strategy that was pinned, planned or is the static rule."""
    problem, learned = differentiation(evaluation, node, environment)
    return derivatives.TABLE[node.operator].strategies[learned.choice.strategy](problem)


def differentiation(
    evaluation: Evaluation, node: graph.Derivative, environment: Environment
) -> tuple[Differentiation, Learned]:
    """What `node` differentiates, with all that it reads explicit, and how that is to be done."""
    row = derivatives.TABLE[node.operator]
    x = _variable(evaluation, node, environment)
    flat = Flat.of(x) if isinstance(x, dict) and node.operator in BY_COORDINATES else None
    captured = {index: environment.values[index] for index in node.captured}

    if node.leaf is not None:
        # The rest of the tree is captured too: its own gradients flow through it.
        captured[node.wrt] = environment.values[node.wrt]

    # What stands around it holds arrays too, and a rule must not close over any.
    captured[AROUND] = (environment.runs, environment.key, environment.states)

    def function(x: Value, captured: Mapping[int, Value]) -> Value:
        at = x if flat is None else flat.unravel(x)
        if node.leaf is not None:
            at = captured[node.wrt].copy()
            at[node.leaf] = x
        inner = environment.child({**captured, node.wrt: at})
        inner.runs, inner.key, inner.states = captured[AROUND]
        for index in node.path:
            inner.values[index] = evaluation.value(index, inner)
        y = inner.values[node.value] if flat is None else flat.value(inner.values[node.value])
        return y if isinstance(y, dict) and row.of_trees else values.array(y, "what is differentiated")

    vectors = tuple(_as_arrays(environment.values[index]) for index in node.vectors)
    if flat is not None:
        x, vectors = flat.x, tuple(flat.probes(vector) for vector in vectors)
    own = drawn(evaluation, node, environment, x) if node.drawing else None
    if own is not None:
        vectors = (jax.ShapeDtypeStruct((own.most, *x.shape), x.dtype),)
    # By shapes too: a function of the server may call a def with several.
    key = node.index, _shapes_in((x, vectors, captured))
    learned = evaluation.known.get(key)
    if learned is None:
        learned = _learn(evaluation, node, lambda x: function(x, captured), x, vectors, environment.examples)
        evaluation.known[key] = learned
        evaluation.learned.setdefault(node.index, learned)
    if own is not None and own.until is None:
        evaluation.check_size(vectors[0].shape, x.dtype, environment.examples)
        vectors = (own.draw(own.most),)
    problem = Differentiation(
        function,
        x,
        captured,
        vectors,
        learned.shapes,
        differentiated=environment.outermost and evaluation.meaning.differentiated,
        drawn=own,
    )
    return problem, learned


def _variable(evaluation: Evaluation, node: graph.Derivative, environment: Environment) -> Value:
    x = environment.values[node.wrt]
    if node.leaf is not None:
        x = leaf_of(x, [node.leaf])
    if isinstance(x, tuple):
        detail = f"'{node.wrt_name}' is a tuple; name an array, p = stack([a, b]), and compute from it"
        raise Refusal("wrong_kind", detail)
    if values.is_static(x):
        return jnp.asarray(x, evaluation.meaning.dtype)
    x = _as_arrays(x)
    for leaf in jax.tree.leaves(x):
        if not values.is_float(leaf):
            detail = f"'{node.wrt_name}' holds {leaf.dtype}; derivatives need floats"
            raise Refusal("wrong_dtype", detail)
    return x


def _learn(
    evaluation: Evaluation,
    node: graph.Derivative,
    function: Callable[[Value], Any],
    x: Value,
    vectors: tuple[Value, ...],
    examples: int,
) -> Learned:
    """Trace the value once: its shape, and whether examples mix where the operator needs to know."""
    row = derivatives.TABLE[node.operator]
    closed, y = jax.make_jaxpr(function, return_shape=True)(x)
    need_no_pushed_rule(closed)
    dtype = jax.tree.leaves(y)[0].dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise Refusal("wrong_dtype", f"a value of {dtype} has no derivative")
    shapes = Shapes(_spec(x), _spec(y), tuple(_spec(vector) for vector in vectors))
    row.check(shapes)
    evaluation.check_size(row.result_shape(shapes), dtype, examples)
    for x_axis, y_axis in row.independent_axes(shapes):
        if not coupling.keeps_examples_apart(closed, x_axis, y_axis):
            detail = (
                f"{node.operator} works example by example, but the value's entry i along axis {y_axis} "
                f"may depend on other entries of '{node.wrt_name}' than its own; write a def of one "
                "example and vmap it, or take jacobian"
            )
            raise Refusal("couples_examples", detail)
    program = evaluation.meaning.program
    if caution := cautions.of_derivative(program, node, shapes, closed, evaluation.kinks):
        evaluation.cautions[node.index] = caution
    obstacles = {name: row.obstacle(name, shapes, closed) for name in row.strategies}
    for name, built in row.builds.items():
        obstacles[name] = obstacles[name] or _too_large(evaluation, built(shapes), dtype, examples)
    choice = _choice(evaluation.meaning, node, row, shapes, obstacles)
    if choice.strategy in row.builds:
        evaluation.check_size(row.builds[choice.strategy](shapes), dtype, examples)
    apply = () if evaluation.meaning.reverse_only else row.strategies
    others = (name for name in apply if name != choice.strategy and obstacles[name] is None)
    return Learned(shapes, replace(choice, others=tuple(others)))


def _too_large(evaluation: Evaluation, shape: tuple[int, ...], dtype: Any, examples: int) -> str | None:
    """The obstacle that a strategy builds more than the server allows."""
    try:
        evaluation.check_size(shape, dtype, examples)
    except Refusal as refusal:
        return refusal.detail
    return None


def _choice(
    meaning: Meaning,
    node: graph.Derivative,
    row: DerivativeRow,
    shapes: Shapes,
    obstacles: Mapping[str, str | None],
) -> Choice:
    """What the caller pinned, else what the planner chose, else the static rule."""
    pinned = meaning.strategies.get(node.operator)
    if meaning.reverse_only:
        if pinned not in (None, row.in_reverse):
            detail = (
                f"the strategy '{pinned}' of {node.operator} does not apply: something in the program "
                f"has no forward mode; '{row.in_reverse}' does"
            )
            raise Refusal("strategy", detail)
        return Choice(row.in_reverse, "something in the program has no forward mode")
    if pinned is not None:
        if why := obstacles[pinned]:
            apply = ", ".join(name for name, obstacle in obstacles.items() if obstacle is None)
            found = f"the strategy '{pinned}' of {node.operator} does not apply: {why}"
            raise Refusal("strategy", f"{found}; these do: {apply}")
        return Choice(pinned, "asked for")
    planned = meaning.choices.get(node.index)
    if planned is not None and obstacles[planned] is None:
        return Choice(planned, meaning.why)
    if meaning.nesting in row.strategies:
        return Choice(meaning.nesting, "asked for")
    for name in row.preferred:
        if obstacles[name] is None:
            return Choice(name, "nothing of the size of the Jacobian is made")
    choice = row.choose(shapes)
    if why := obstacles[choice.strategy]:
        # Where the usual choice is too large, another may not be.
        others = (Choice(name, why) for name, obstacle in obstacles.items() if obstacle is None)
        return next(others, choice)
    return choice


def _shapes_in(value: Value) -> Any:
    """Structure, shapes and dtypes of a value, to be compared."""
    leaves, structure = jax.tree.flatten(value)
    specs = [(jnp.shape(leaf), str(leaf.dtype)) if values.is_array(leaf) else leaf for leaf in leaves]
    return structure, tuple(specs)


def _spec(value: Value) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), value)


def _as_arrays(value: Value) -> Value:
    return values.map_tree(jnp.asarray, value) if isinstance(value, dict) else values.array(value)
