"""One step of a traced computation, for some of the examples instead of all.

A jaxpr has its shapes written in. Where the axis of the examples is known for all that a step reads
(`coupling`), the step can be done for fewer of them: the length of that axis changes wherever it stands in
the step's settings, and what is shared by all examples but has an entry for each is cut to those at hand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from nablad_service.engine.coupling import CONVOLUTION, ELEMENTWISE, FIXED, ZERO, Axis, literal, through
from nablad_service.engine.merged import CALLS, bind


@dataclass(frozen=True)
class Part:
    """Which examples are at hand: `length` of them from `start` on (a traced number)."""

    start: Any
    length: int
    number: int
    """Of all examples."""

    def of(self, whole: Any, axis: int) -> Any:
        """Their entries of an array that has one for each example along `axis`."""
        return jax.lax.dynamic_slice_in_dim(whole, self.start, self.length, axis)


def do(
    equation: JaxprEqn,
    axes: Sequence[Axis],
    results: Sequence[Axis],
    operands: list[Any],
    part: Part,
) -> Sequence[Any]:
    """The results of one step for the examples at hand.

    `axes` and `results` say where the examples lie in operands and results; none is mixed. Operands that are
    `shared` have been cut.
    """
    name = equation.primitive.name
    if name in CALLS:
        inner = equation.params[CALLS[name]]
        jaxpr = getattr(inner, "jaxpr", inner)
        return _through(jaxpr, getattr(inner, "consts", ()), axes, operands, part)
    if name == "scan":
        return _scan(equation, axes, results, operands, part)
    if name == CONVOLUTION:
        return [_convolution(equation, operands)]
    return bind(equation, operands, _resized(equation, axes, results, part.length))


def _convolution(equation: JaxprEqn, operands: Sequence[Any]) -> Any:
    """A convolution with channels last.

    XLA for CPUs brings convolutions into this form, the one that it has fast code for, but not inside loops:
    there four to seven times the time of the same convolution outside was measured.
    """
    numbers = equation.params["dimension_numbers"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    rank = len(lhs)
    last = (0, rank - 1, *range(1, rank - 1))
    params = {
        **equation.params,
        "dimension_numbers": jax.lax.ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last),
    }
    images = jax.lax.transpose(operands[0], (lhs[0], *lhs[2:], lhs[1]))
    kernel = jax.lax.transpose(operands[1], (*rhs[2:], rhs[1], rhs[0]))
    (made,) = bind(equation, [images, kernel], params)
    return jax.lax.transpose(made, [last[out.index(axis)] for axis in range(rank)])


def shared(equation: JaxprEqn, axes: Sequence[Axis]) -> list[tuple[int, int]]:
    """The operands that are the same for all examples and have an entry for each: (position, axis)."""
    if not any(axis >= 0 for axis in axes):
        return []
    found = []
    for position, axis in enumerate(_meeting(equation, axes)):
        if axes[position] in (FIXED, ZERO) and axis is not None:
            shape = equation.invars[position].aval.shape  # type: ignore[attr-defined]
            if axis < len(shape) and shape[axis] == _length(equation, axes):
                found.append((position, axis))
    return found


REPEAT = ELEMENTWISE | {
    "broadcast_in_dim",
    "concatenate",
    "dot_general",
    "reduce_sum",
    "reshape",
    "squeeze",
    "transpose",
}
"""Primitives whose results are looked through for values that merely repeat themselves."""


def repeats(equation: JaxprEqn, along: Sequence[Collection[int]], number: int) -> dict[int, tuple[Axis, ...]]:
    """The axes, as long as the examples, along which a result merely repeats itself.

    `along` says that of the operands. With each axis stands what is taken of the operands to make some of it.
    """
    name = equation.primitive.name
    if len(equation.outvars) != 1 or name not in REPEAT:
        return {}
    found: dict[int, tuple[Axis, ...]] = {}
    for one in sorted({axis for axes in along for axis in axes}):
        taken = tuple(one if one in axes else FIXED for axes in along)
        (axis,) = through(equation, list(taken))
        if axis >= 0 and not shared(equation, taken):
            found[axis] = taken
    if name == "broadcast_in_dim":
        lengths = getattr(equation.invars[0].aval, "shape", ())
        dims = equation.params["broadcast_dimensions"]
        for axis, length in enumerate(equation.params["shape"]):
            if length == number and (axis not in dims or lengths[dims.index(axis)] == 1):
                found[axis] = (FIXED,)
    return found


def _meeting(equation: JaxprEqn, axes: Sequence[Axis]) -> list[int | None]:
    """The axis along which each operand meets the examples of the others."""
    name = equation.primitive.name
    if name == "dot_general":
        (contract, batch) = equation.params["dimension_numbers"]
        for here in (0, 1):
            if axes[here] < 0:
                continue
            for kind in (contract, batch):
                if axes[here] in kind[here]:
                    met = kind[1 - here][list(kind[here]).index(axes[here])]
                    return [axes[0], met] if here == 0 else [met, axes[1]]
        return [None, None]
    if name in ALONE or name in CALLS:
        return [None] * len(axes)
    carried = next(axis for axis in axes if axis >= 0)
    return [carried] * len(axes)


def _length(equation: JaxprEqn, axes: Sequence[Axis]) -> int:
    """The number of all examples."""
    position = next(position for position, axis in enumerate(axes) if axis >= 0)
    return int(equation.invars[position].aval.shape[axes[position]])  # type: ignore[attr-defined]


ALONE = (CONVOLUTION, "gather", "dynamic_slice", "pad", "optimization_barrier", "scan")
"""Primitives whose operands do not meet along the examples; a loop cuts what its body needs."""
SETTINGS = {
    "broadcast_in_dim": "shape",
    "reshape": "new_sizes",
    "slice": "limit_indices",
    "dynamic_slice": "slice_sizes",
    "gather": "slice_sizes",
}
"""Where a primitive holds lengths, with the axes of its result; for a gather with those of its operand."""


def _resized(
    equation: JaxprEqn, axes: Sequence[Axis], results: Sequence[Axis], length: int
) -> dict[str, Any]:
    params = dict(equation.params)
    setting = SETTINGS.get(equation.primitive.name)
    axis = axes[0] if equation.primitive.name == "gather" else results[0]
    if setting is not None and axis >= 0:
        lengths = list(params[setting])
        lengths[axis] = length
        params[setting] = tuple(lengths)
    return params


def _through(
    jaxpr: Jaxpr,
    constants: Sequence[Any],
    axes: Sequence[Axis],
    operands: Sequence[Any],
    part: Part,
    wanted: Sequence[Axis | None] | None = None,
) -> list[Any]:
    """A whole computation for the examples at hand; results that are shared are cut as `wanted`."""
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, operands, strict=True))
    lie: dict[Any, Axis] = dict.fromkeys(jaxpr.constvars, FIXED)
    lie.update(zip(jaxpr.invars, axes, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    spread: dict[Any, tuple[JaxprEqn | None, dict[int, tuple[Axis, ...]]]] = {}
    """How what is shared is made for some of the examples, from other such values; None where it is cut."""
    for atom, axis in zip(jaxpr.invars, axes, strict=True):
        if axis in (FIXED, ZERO):
            lengths = getattr(atom.aval, "shape", ())
            spread[atom] = None, {one: () for one, length in enumerate(lengths) if length == part.number}

    def spread_of(atom: Any) -> tuple[JaxprEqn | None, dict[int, tuple[Axis, ...]]]:
        return (None, {}) if isinstance(atom, Literal) else spread.get(atom, (None, {}))

    cuts: dict[tuple[Any, int], Any] = {}

    def cut(atom: Any, axis: int) -> Any:
        """What is shared, for the examples at hand; made for these alone where it can be."""
        equation, ways = spread_of(atom)
        if equation is None or axis not in ways:
            return part.of(value(atom), axis)
        if (atom, axis) not in cuts:
            taken = ways[axis]
            operands = [
                cut(read, along) if along >= 0 else value(read)
                for read, along in zip(equation.invars, taken, strict=True)
            ]
            (cuts[atom, axis],) = do(equation, taken, (axis,), operands, part)
        return cuts[atom, axis]

    for equation in jaxpr.eqns:
        given = [literal(atom.val) if isinstance(atom, Literal) else lie[atom] for atom in equation.invars]
        results = through(equation, given)
        if all(axis in (FIXED, ZERO) for axis in given):
            along = [spread_of(atom)[1] for atom in equation.invars]
            if ways := repeats(equation, along, part.number):
                spread[equation.outvars[0]] = (equation, ways)
        operands = [value(atom) for atom in equation.invars]
        for position, axis in shared(equation, given):
            operands[position] = cut(equation.invars[position], axis)
        made = do(equation, given, results, operands, part)
        known.update(zip(equation.outvars, made, strict=True))
        lie.update(zip(equation.outvars, results, strict=True))
    results = [lie.get(atom, FIXED) if not isinstance(atom, Literal) else FIXED for atom in jaxpr.outvars]
    found = [value(atom) for atom in jaxpr.outvars]
    return [
        cut(atom, axis) if axis is not None and axis >= 0 > result else one
        for atom, one, axis, result in zip(
            jaxpr.outvars, found, wanted or [None] * len(found), results, strict=True
        )
    ]


def _scan(
    equation: JaxprEqn, axes: Sequence[Axis], results: Sequence[Axis], operands: list[Any], part: Part
) -> list[Any]:
    params = equation.params
    body, consts, carries = params["jaxpr"], params["num_consts"], params["num_carry"]
    shared_by_all, init = operands[:consts], operands[consts : consts + carries]
    # What the loop carries may be shared by all examples at first and belong to each of them later.
    carried = list(results[:carries])
    for position, (before, after) in enumerate(zip(axes[consts:], carried, strict=False)):
        if before in (FIXED, ZERO) and after >= 0:
            init[position] = part.of(init[position], after)
    along = [axis - 1 if axis >= 0 else axis for axis in axes[consts + carries :]]
    lie = [*axes[:consts], *carried, *along]

    def run(carry: Any, xs: Any) -> tuple[Any, Any]:
        given = [*shared_by_all, *carry, *xs]
        wanted = [*carried, *[None] * (len(results) - carries)]
        after = _through(body.jaxpr, body.consts, lie, given, part, wanted)
        return tuple(after[:carries]), tuple(after[carries:])

    last, ys = jax.lax.scan(
        run,
        tuple(init),
        tuple(operands[consts + carries :]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*last, *ys]
