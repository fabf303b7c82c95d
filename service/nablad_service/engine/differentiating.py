"""A derivative of the program: what is differentiated as a function of arrays alone, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine import cautions, coupling, derivatives, values
from nablad_service.engine.derivatives import Choice, DerivativeRow, Differentiation, Shapes, Together, Tower
from nablad_service.engine.drawing import drawn
from nablad_service.engine.environment import Environment, Learned, Meaning
from nablad_service.engine.flattening import BY_COORDINATES, Flat
from nablad_service.engine.indexing import leaf_of
from nablad_service.engine.modes import need_no_pushed_rule
from nablad_service.engine.towers import Group, obstacle
from nablad_service.engine.values import Value
from nablad_service.language import graph
from nablad_service.language.places import place

if TYPE_CHECKING:
    from nablad_service.engine.evaluation import Evaluation

AROUND = -2
"""Stands among captured nodes for what a derivative stands in: the runs of maps and loops, key and states."""


def derivative(evaluation: Evaluation, node: graph.Derivative, environment: Environment) -> Value:
    """The derivative `node`, by the strategy that was pinned, planned or is the static rule."""
    problem, learned = differentiation(evaluation, node, environment)
    row, strategy = derivatives.TABLE[node.operator], learned.choice.strategy
    group = _group(node, environment)
    if group is None or strategy not in row.together:
        return row.strategies[strategy](problem)
    return _together(evaluation, row.together[strategy], group, environment)[node.index]


def with_its_derivatives(evaluation: Evaluation, index: int, environment: Environment) -> Value | None:
    """A value that is computed together with its derivatives; None where it is not."""
    group, meaning = (environment.groups or {}).get(index), evaluation.meaning
    if group is None or index in group.derivatives:
        return None
    value = meaning.program.nodes[index]
    if isinstance(value, graph.ModelCall) and (value.mode or meaning.modes[value.model]) == "train":
        return None  # it leaves a state behind
    for read in (*group.captured, *group.variables):
        # Constants have no turn to wait for.
        if isinstance(node := meaning.program.nodes[read], graph.Constant):
            environment.values[read] = node.value
    leader = meaning.program.nodes[group.leader]
    assert isinstance(leader, graph.Derivative)
    _, learned = _member(evaluation, group.leader, environment)
    together = derivatives.TABLE[leader.operator].together.get(learned.choice.strategy)
    return _together(evaluation, together, group, environment)[index] if together else None


def _together(
    evaluation: Evaluation, strategy: Together, group: Group, environment: Environment
) -> dict[int, Value]:
    """All members of a group, computed when the first of them is asked for."""
    if group.leader not in environment.together:
        found = strategy(_tower(evaluation, group, environment))
        by_member = dict(zip(group.wanted, found, strict=True))
        environment.together.update({index: by_member[part] for index, part in group.members.items()})
    return environment.together


def _group(node: graph.Derivative, environment: Environment) -> Group | None:
    return (environment.groups or {}).get(node.index)


def _tower(evaluation: Evaluation, group: Group, environment: Environment) -> Tower:
    """The derivatives of a group, with all that they read explicit."""
    for index in group.derivatives:
        _member(evaluation, index, environment)
    captured = {index: environment.values[index] for index in group.captured}
    captured[AROUND] = _around(environment)

    def function(xs: tuple[Value, ...], captured: Mapping[int, Value]) -> tuple[Value, ...]:
        inner = _inside(environment, captured, dict(zip(group.variables, xs, strict=True)))
        for index in group.path:
            inner.values[index] = evaluation.value(index, inner)
        return tuple(values.array(inner.values[index], "what is differentiated") for index in group.values)

    xs = tuple(_variable(evaluation, node, environment) for node in group.variables.values())
    return Tower(function, xs, captured, group.wanted, environment.maps)


def _member(evaluation: Evaluation, index: int, environment: Environment) -> tuple[Differentiation, Learned]:
    """What `differentiation` says of a member before its turn; a refusal points at it."""
    program = evaluation.meaning.program
    node = program.nodes[index]
    assert isinstance(node, graph.Derivative)
    assert node.span is not None
    try:
        return differentiation(evaluation, node, environment)
    except Refusal as refusal:
        refusal.where = refusal.where or place(program.text, node.span)
        raise


def _around(environment: Environment) -> Value:
    """What stands around a derivative holds arrays too, and a rule must not close over any."""
    return environment.runs, environment.key, environment.states


def _inside(
    environment: Environment, captured: Mapping[int, Value], variables: Mapping[int, Value]
) -> Environment:
    """Where the path of a derivative is evaluated again, as a function of its variables."""
    inner = environment.child({**captured, **variables})
    inner.runs, inner.key, inner.states = captured[AROUND]
    return inner


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

    captured[AROUND] = _around(environment)

    def function(x: Value, captured: Mapping[int, Value]) -> Value:
        at = x if flat is None else flat.unravel(x)
        if node.leaf is not None:
            at = captured[node.wrt].copy()
            at[node.leaf] = x
        inner = _inside(environment, captured, {node.wrt: at})
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
    group = _group(node, environment)
    key = node.index, (_shapes_in((x, vectors, captured)), group is not None)
    learned = evaluation.known.get(key)
    if learned is None:
        learned = _learn(evaluation, node, lambda x: function(x, captured), x, vectors, environment)
        evaluation.known[key] = learned
        evaluation.learned.setdefault(node.index, learned)
    if own is not None and own.beforehand:
        evaluation.check_size(vectors[0].shape, x.dtype, environment.examples)
        vectors = (own.draw(own.most),)
    problem = Differentiation(
        function,
        x,
        captured,
        vectors,
        learned.shapes,
        differentiated=environment.outermost and evaluation.meaning.differentiated,
        maps=environment.maps,
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
    environment: Environment,
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
    evaluation.check_size(row.result_shape(shapes), dtype, environment.examples)
    for x_axis, y_axis in row.independent_axes(shapes):
        if not coupling.keeps_examples_apart(closed, x_axis, y_axis):
            detail = (
                f"{node.operator} works example by example, but the value's entry i along axis {y_axis} "
                f"may depend on other entries of '{node.wrt_name}' than its own; write a def of one "
                "example and vmap it, or take jacobian"
            )
            raise Refusal("couples_examples", detail)
    program, group = evaluation.meaning.program, _group(node, environment)
    if caution := cautions.of_derivative(program, node, shapes, closed, evaluation.kinks):
        evaluation.cautions[node.index] = caution
    obstacles = {name: row.obstacle(name, shapes, closed) for name in row.strategies}
    for name, built in row.builds.items():
        obstacles[name] = obstacles[name] or _too_large(
            evaluation, built(shapes), dtype, environment.examples
        )
    for name in row.together:
        obstacles[name] = _why_alone(program, node, environment)
    choice = _choice(evaluation.meaning, node, row, shapes, obstacles, environment)
    if choice.strategy in row.builds:
        evaluation.check_size(row.builds[choice.strategy](shapes), dtype, environment.examples)
    apply = () if evaluation.meaning.reverse_only else row.strategies
    others = tuple(name for name in apply if name != choice.strategy and obstacles[name] is None)
    inner = group.inner[node.index] if group and choice.strategy in row.together else ()
    leader = group.leader if group else node.index
    return Learned(shapes, replace(choice, others=others), leader, inner)


def _why_alone(program: graph.Program, node: graph.Derivative, environment: Environment) -> str | None:
    """Why `node` cannot be computed together with others; None where it can."""
    if environment.groups is None:
        return "nothing pulls it back by itself, as it stands in another derivative or in no loss"
    return obstacle(program, node)


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
    environment: Environment,
) -> Choice:
    """What the caller pinned, else what the planner chose, else the static rule."""
    group, pinned = _group(node, environment), meaning.strategies.get(node.operator)
    if meaning.reverse_only:
        if pinned not in (None, row.in_reverse):
            detail = (
                f"the strategy '{pinned}' of {node.operator} does not apply: something in the program "
                f"has no forward mode; '{row.in_reverse}' does"
            )
            raise Refusal("strategy", detail)
        return Choice(row.in_reverse, "something in the program has no forward mode")
    if pinned is not None:
        why = obstacles[pinned]
        if why and pinned in row.together and environment.groups is None:
            return replace(row.choose(shapes), reason=why)
        if why:
            apply = ", ".join(name for name, hindrance in obstacles.items() if hindrance is None)
            found = f"the strategy '{pinned}' of {node.operator} does not apply: {why}"
            raise Refusal("strategy", f"{found}; these do: {apply}")
        return Choice(pinned, "asked for")
    planned = meaning.choices.get(group.leader if group else node.index)
    if planned is not None and obstacles[planned] is None:
        return Choice(planned, meaning.why)
    if meaning.nesting in row.strategies:
        return Choice(meaning.nesting, "asked for")
    if group is not None and row.choose_together is not None:
        return row.choose_together(group.order, group.of_derivatives)
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
