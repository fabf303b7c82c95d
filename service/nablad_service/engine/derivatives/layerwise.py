"""Norms and Gram matrix of the rows of a Jacobian in parameters, layer by layer, the rows never made.

A zero is added wherever a parameter acts: to what its layer makes of the data. One backward pass in these
zeros gives the cotangents of all layers at once, for every example where examples do not mix: entry i of the
value then depends on entry i of each layer alone, which is proved from the traced computation. The norms are
made of these cotangents and of what the layers were given (`outer_products`).

What comes out is plain JAX: derivatives of any order go through it. Parameters that act in another way (in a
loop, through a function of their own, shared by examples that mix) get rows that are formed, in reverse.

Reference: I. Goodfellow, Efficient per-example gradient computations, arXiv:1510.01799 (2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from nablad_service.engine.derivatives.in_turn import in_turn
from nablad_service.engine.derivatives.outer_products import Outer, Rows, pairs_pay
from nablad_service.engine.derivatives.row import Differentiation, Shapes
from nablad_service.engine.derivatives.uses import (
    ALONE,
    Use,
    keeps_examples,
    result_shape,
    uses_of,
)
from nablad_service.engine.merged import WITHOUT_RULE, Merged, Step, merged

AT_ONCE = 16
"""Rows that are formed at once, where some must be."""

Located: TypeAlias = tuple[Use, int]
"""A use, and the axis of what its step makes that holds the examples."""


@dataclass(frozen=True)
class Layers:
    """A computation, and how the rows of its Jacobian come about."""

    flat: Merged
    examples: int
    passes: int
    """Rows of each example: one backward pass each."""
    pieces: tuple[tuple[Located, ...], ...]
    """Uses whose rows add up; the pieces of the parameters do not overlap."""
    formed: tuple[int, ...]
    """Arguments whose rows must be formed."""


def layers_of(closed: ClosedJaxpr, shape: tuple[int, ...]) -> Layers | str:
    """How to find the rows of a value of `shape`, or why it would gain nothing."""
    # Its steps are kept for the way back: who takes a computation apart has no use for forgetting it.
    flat = merged(closed, WITHOUT_RULE)
    readers = flat.readers()
    entries = [math.prod(var.aval.shape) for var in closed.jaxpr.invars]
    pieces = [_pieces(uses_of(flat, argument, readers)) for argument in flat.arguments]
    total, found = math.prod(shape), dict[int, tuple[tuple[Located, ...], ...]]()

    def layers(examples: int) -> Layers:
        formed = tuple(index for index in range(len(entries)) if index not in found)
        every = tuple(piece for located in found.values() for piece in located)
        return Layers(flat, examples, total // examples, every, formed)

    def most() -> bool:
        return 2 * sum(entries[index] for index in found) >= sum(entries)

    if shape and shape[0] > 1:
        for index, candidates in enumerate(pieces):
            located = None if candidates is None else _located(flat, candidates, shape[0])
            if located is not None:
                found[index] = located
        if most():
            return layers(shape[0])
        found.clear()
    for index, candidates in enumerate(pieces):
        if candidates is not None:
            found[index] = tuple(tuple((use, ALONE) for use in piece) for piece in candidates)
    if most() and 2 * sum(entries[index] for index in found if all(map(_pays, found[index]))) >= sum(entries):
        return layers(1)
    if shape and shape[0] > 1:
        return "the values of most layers mix the entries of the value along its first axis"
    return "most parameters act at so many places that to form the rows takes less"


def obstacle(shapes: Shapes, value: ClosedJaxpr) -> str | None:
    """Why the rows had better be formed."""
    found = layers_of(value, tuple(shapes.y.shape))
    return found if isinstance(found, str) else None


def norms(problem: Differentiation) -> Any:
    """Squared norms of the rows, in the order of the value's entries."""
    layers, parts = _parts(problem)
    total = sum((part.norms() for part in parts), _zeros(problem, layers.passes, layers.examples))
    return total.T.reshape(-1)


def gram(problem: Differentiation) -> Any:
    """Products of all pairs of rows."""
    layers, parts = _parts(problem)
    pairs = (layers.examples, layers.passes)
    total = sum((part.gram() for part in parts), _zeros(problem, *pairs, *pairs))
    return total.reshape(problem.shapes.y_size, -1)


def _zeros(problem: Differentiation, *shape: int) -> jax.Array:
    return jnp.zeros(shape, problem.shapes.y.dtype)


def _parts(problem: Differentiation) -> tuple[Layers, list[Outer | Rows]]:
    closed = jax.make_jaxpr(problem.at)(problem.x)
    layers = layers_of(closed, tuple(problem.shapes.y.shape))
    assert isinstance(layers, Layers), layers  # the obstacle was asked before
    arguments = jax.tree.leaves(problem.x)
    parts = _of_pieces(layers, arguments)
    if layers.formed:
        parts.append(_formed(layers, arguments))
    return layers, parts


def _of_pieces(layers: Layers, arguments: list[Any]) -> list[Outer | Rows]:
    """The rows of the pieces, by their factors."""
    uses = [use for piece in layers.pieces for use, _ in piece]
    if not uses:
        return []
    at: dict[int, list[int]] = {}
    for index, use in enumerate(uses):
        at.setdefault(use.position, []).append(index)

    def value(changes: list[Any]) -> tuple[Any, dict[int, list[Any]]]:
        met: dict[int, list[Any]] = {}

        def change(position: int) -> Callable[[Step, list[Any]], list[Any]]:
            def run(step: Step, operands: list[Any]) -> list[Any]:
                met[position] = operands
                changed = list(operands)
                for index in at[position]:
                    if uses[index].on_operand:
                        changed[uses[index].number] = changed[uses[index].number] + changes[index]
                (made,) = step.run(changed)
                for index in at[position]:
                    if not uses[index].on_operand:
                        made = made + changes[index]
                return [made]

            return run

        (y,) = layers.flat.evaluate(arguments, {position: change(position) for position in at})
        return y.reshape(-1), met

    none = [_zero(use.step) for use in uses]
    y, pull, met = jax.vjp(value, none, has_aux=True)
    cotangents = jnp.tile(jnp.eye(layers.passes, dtype=y.dtype), (1, layers.examples))
    if layers.passes == 1:
        deltas = [delta[None] for delta in pull(cotangents[0])[0]]
    else:
        (deltas,) = jax.vmap(pull)(cotangents)
    rest = iter(deltas)
    return [
        _added([use.rows(axis, met[use.position], next(rest)) for use, axis in piece])
        for piece in layers.pieces
    ]


def _zero(step: Step) -> jax.Array:
    """The change that is none."""
    made: Any = step.equation.outvars[0].aval
    return jnp.zeros(made.shape, made.dtype)


def _added(parts: list[Outer | Rows]) -> Outer | Rows:
    """One set of rows that is the sum of several: outer products at more places."""
    first = parts[0]
    if isinstance(first, Rows):
        return Rows(sum(part.entries for part in parts if isinstance(part, Rows)))
    outer = [part for part in parts if isinstance(part, Outer)]
    return Outer(
        jnp.concatenate([part.a for part in outer], axis=1),
        jnp.concatenate([part.delta for part in outer], axis=2),
    )


def _formed(layers: Layers, arguments: list[Any]) -> Rows:
    """The rows of the parameters that are not followed, in reverse, a few at a time."""

    def value(chosen: list[Any]) -> Any:
        given = list(arguments)
        for index, array in zip(layers.formed, chosen, strict=True):
            given[index] = array
        (y,) = layers.flat.evaluate(given)
        return y.reshape(-1)

    y, pull = jax.vjp(value, [arguments[index] for index in layers.formed])

    def row(cotangent: Any) -> Any:
        return jnp.concatenate([leaf.reshape(-1) for leaf in pull(cotangent)[0]])

    each = jnp.eye(y.size, dtype=y.dtype)
    rows = jax.vmap(row)(each) if y.size <= AT_ONCE else in_turn(row, each, at_once=AT_ONCE)
    return Rows(jnp.moveaxis(rows.reshape(layers.examples, layers.passes, -1), 1, 0))


def _pieces(uses: list[Use] | None) -> tuple[tuple[Use, ...], ...] | None:
    """Uses by what they use; None where their rows do not add up entry by entry."""
    if uses is None:
        return None
    found: dict[Any, list[Use]] = {}
    for use in uses:
        found.setdefault(use.way, []).append(use)
    if any(len({use.signature for use in piece}) > 1 for piece in found.values()):
        return None
    return tuple(map(tuple, found.values()))


def _located(
    flat: Merged, pieces: tuple[tuple[Use, ...], ...], examples: int
) -> tuple[tuple[Located, ...], ...] | None:
    """The uses with the axis that holds the examples; None where one of them mixes them."""
    found = []
    for piece in pieces:
        located = []
        for use in piece:
            lengths = result_shape(use.step)
            axes = (axis for axis in use.example_axes() if lengths[axis] == examples)
            axis = next((axis for axis in axes if keeps_examples(flat, use, axis)), None)
            if axis is None:
                return None
            located.append((use, axis))
        found.append(tuple(located))
    return tuple(found)


def _pays(piece: tuple[Located, ...]) -> bool:
    """Whether the rows of an example need not be formed."""
    counted = [use.places(axis) for use, axis in piece]
    (_, width, out), places = counted[0], sum(count for count, _, _ in counted)
    return piece[0][0].kind != "repeated" and pairs_pay(places, width, out)
