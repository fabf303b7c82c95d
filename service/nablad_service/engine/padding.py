"""A computation for some number of examples, done by the one for more: exact, or refused.

The same program is traced for n examples and for a larger number N, and both traces are compared step by
step. Where they differ in the length of one axis alone, each value for N begins with the value for n, along
that axis, as long as every step keeps it so: steps that treat the entries of the axis one by one do; sums
and maxima over it do when the entries past n are taken out first; anything else is refused. Numbers that
depend on n (a mean divides by it) are found by the comparison too, and become arguments. So the program for
N, padded inputs, n and those numbers give what the program for n gives, to rounding; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from nablad_service.engine.coupling import CONVOLUTION, FIXED, MIXED, PARTIAL, through
from nablad_service.engine.merged import Merged, Step, merged
from nablad_service.engine.resizing import SETTINGS

BODIES = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}
"""Loops and branches, with the parameters that hold their computations."""
BITWISE = frozenset({"bitcast_convert_type", "shift_left", "shift_right_arithmetic", "shift_right_logical"})
ALONG = frozenset({"cumsum", "cumprod", "cummax", "cummin"})
"""Each entry made of those before it, or of those after it where it runs in reverse."""


class Unpadded(Exception):
    """Why a program for more examples cannot take the place of one for fewer."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Two traces that differ in the number of examples alone."""

    small: Merged
    large: Merged
    axes: tuple[int | None, ...]
    """Along which axis each value has the examples."""
    lifted: tuple[int, ...]
    """Numbers of the computation that depend on how many examples there are."""
    masks: Mapping[int, Sequence[tuple[int, Any]]] = field(repr=False)
    """By step: operands whose entries past n must not count, and what stands for them."""
    inner: Mapping[int, tuple[Compared, ...]] = field(repr=False)
    """The bodies of loops and branches, by step."""

    def numbers(self, program: Compared) -> Any:
        """What `program`, compared with the same larger trace, needs to stand for the smaller one here.

        Raises:
            Unpadded: where something else depends on how many examples there are.
        """
        alike = self.axes == program.axes and self.inner.keys() == program.inner.keys()
        if not alike or not set(self.lifted) <= set(program.lifted):
            raise Unpadded("something in it depends on this very number of examples")
        own = [np.asarray(self.small.fixed[value]) for value in program.lifted]
        inner = {
            str(step): [one.numbers(other) for one, other in zip(bodies, program.inner[step], strict=True)]
            for step, bodies in self.inner.items()
        }
        return {"own": own, "inner": inner}

    def own_numbers(self) -> Any:
        """What the larger trace needs to stand for itself."""
        return {
            "own": [np.asarray(self.large.fixed[value]) for value in self.lifted],
            "inner": {
                str(step): [one.own_numbers() for one in bodies] for step, bodies in self.inner.items()
            },
        }

    def run(self, arguments: Sequence[Any], numbers: Any, count: Any) -> list[Any]:
        """The results of the larger trace for padded `arguments`, whose first `count` examples count."""
        flat = self.large
        known = {**flat.fixed, **dict(zip(self.lifted, numbers["own"], strict=True))}
        known.update(zip(flat.arguments, arguments, strict=True))
        for position, step in enumerate(flat.steps):
            operands = [known[read] for read in step.reads]
            for operand, filler in self.masks.get(position, ()):
                axis = self.axes[step.reads[operand]]
                operands[operand] = _masked(operands[operand], axis, count, filler)
            bodies = self.inner.get(position)
            if bodies is None:
                made = step.run(operands)
            else:
                made = _run_bodies(step, bodies, operands, numbers["inner"][str(position)], count)
            known.update(zip(step.makes, made, strict=True))
        return [known[value] for value in flat.results]


def compared(small: ClosedJaxpr, large: ClosedJaxpr, number: int, larger: int) -> Compared:
    """Two traces of one program, for `number` examples and for `larger`, more of them.

    Raises:
        Unpadded: where the second cannot stand for the first; it says why.
    """
    one, other = merged(small, merge=False), merged(large, merge=False)
    if _outline(one) != _outline(other):
        raise Unpadded("it is computed in another way for another number of examples")
    live = {*one.arguments, *one.results}
    for step in one.steps:
        live.update((*step.reads, *step.makes))
    axes = tuple(
        _axis(one.avals[value], other.avals[value], number, larger) if value in live else None
        for value in range(len(one.avals))
    )
    lifted = tuple(
        value
        for value, given in one.fixed.items()
        if value in live and not _begins_with(other.fixed[value], given, axes[value])
    )
    if any(axes[value] is not None for value in lifted):
        raise Unpadded("an array of constants in it depends on the number of examples")
    masks: dict[int, Sequence[tuple[int, Any]]] = {}
    inner: dict[int, tuple[Compared, ...]] = {}
    for position, (step, smaller) in enumerate(zip(other.steps, one.steps, strict=True)):
        if step.equation.primitive.name in BODIES:
            inner[position] = _bodies(smaller.equation, step.equation, number, larger)
            continue
        found = _rule(
            step.equation,
            smaller.equation,
            [axes[read] for read in step.reads],
            [axes[made] for made in step.makes],
        )
        if found:
            masks[position] = found
    return Compared(one, other, axes, lifted, masks, inner)


def _outline(flat: Merged) -> Any:
    """What does not depend on lengths: the steps, and which values they read and make."""
    steps = [(step.equation.primitive, step.reads, step.makes) for step in flat.steps]
    return steps, flat.arguments, flat.results, tuple(flat.fixed), len(flat.avals)


def _axis(small: Any, large: Any, number: int, larger: int) -> int | None:
    """The axis along which a value has the examples, by the two shapes that it has."""
    shapes = getattr(small, "shape", ()), getattr(large, "shape", ())
    alike = getattr(small, "dtype", None) == getattr(large, "dtype", None) and len(shapes[0]) == len(
        shapes[1]
    )
    differ = [axis for axis, lengths in enumerate(zip(*shapes, strict=False)) if lengths[0] != lengths[1]]
    if not alike or len(differ) > 1:
        raise Unpadded("an array in it has the examples along several axes")
    if differ and (shapes[0][differ[0]], shapes[1][differ[0]]) != (number, larger):
        raise Unpadded(
            "an array in it has a length that depends on the number of examples and is not that number"
        )
    return differ[0] if differ else None


def _begins_with(large: Any, small: Any, axis: int | None) -> bool:
    large, small = np.asarray(large), np.asarray(small)
    if axis is not None:
        large = np.take(large, np.arange(small.shape[axis]), axis)
    return bool(np.array_equal(large, small, equal_nan=large.dtype.kind == "f"))


# -- what each step does to the first entries


def _rule(
    large: JaxprEqn, small: JaxprEqn, taken: Sequence[int | None], made: Sequence[int | None]
) -> list[tuple[int, Any]]:
    """The operands to mask so that the result for n is the beginning of the one for N.

    Raises:
        Unpadded: where there is no such way.
    """
    name = large.primitive.name
    along = [axis for axis in (*taken, *made) if axis is not None]
    if not along:
        _same(large, small)
        return []
    if all(axis is None for axis in taken):
        _check_made(large, small, made[0])
        return []
    if name in FILLERS and taken[0] is not None and taken[0] in large.params["axes"]:
        _same(large, small)
        return [(0, FILLERS[name](_dtype(large, 0)))]
    if name in ALONG or name == "cumlogsumexp":
        _same(large, small)
        if large.params["axis"] == taken[0] and large.params["reverse"]:
            raise _cannot(name)
        return []
    if name == "slice" and made[0] is None:
        _same(large, small)  # of entries that are there for n too
        return []
    if name == "gather" and taken[0] is None:
        return _check_looked_up(large, small, taken[1])
    if name == "scatter-add" and taken[0] is None and made[0] is None:
        return _check_scattered(large, small, taken)
    if name in BITWISE:
        _same(large, small)
        if {axis for axis in taken if axis is not None} != {made[0]} or _rank(large.invars[0]) != _rank(
            large.outvars[0]
        ):
            raise _cannot(name)
        return []
    found = through(large, [FIXED if axis is None else axis for axis in taken])
    if PARTIAL in found:
        if name not in ("dot_general", "reduce_sum", CONVOLUTION):
            raise _cannot(name)
        _same(large, small)
        return [(operand, 0) for operand, axis in enumerate(taken) if axis is not None]
    if MIXED in found or [None if axis < 0 else axis for axis in found] != list(made):
        raise _cannot(name)
    if name == "slice":
        _same(large, small, "limit_indices")
        _check_other_lengths(large, small, "limit_indices", made[0])
    elif name in SETTINGS:
        _same(large, small, SETTINGS[name])
        _check_other_lengths(large, small, SETTINGS[name], taken[0] if name == "gather" else made[0])
    else:
        _same(large, small)
    return []


def _check_made(large: JaxprEqn, small: JaxprEqn, axis: int | None) -> None:
    """Values with an entry for each example that are made of what has none: each entry by its position."""
    name, params = large.primitive.name, large.params
    if name in ("broadcast_in_dim", "iota"):
        _same(large, small, "shape")
        return
    if name == "pad" and axis is not None:
        low, _, between = params["padding_config"][axis]
        other_low, _, other_between = small.params["padding_config"][axis]
        rest = [
            [one for position, one in enumerate(each.params["padding_config"]) if position != axis]
            for each in (large, small)
        ]
        if (low, between, rest[0]) == (other_low, other_between, rest[1]):
            return
    by_position: bool = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined] # defined while JAX is imported
    if name == "random_bits" and axis == 0 and not _rank(large.invars[0]) and by_position:
        # Each number is a function of its position, counted along the last axis first.
        _same(large, small, "shape")
        return
    raise _cannot(name)


def _check_looked_up(large: JaxprEqn, small: JaxprEqn, axis: int | None) -> list[tuple[int, Any]]:
    """Rows of a table by positions that each example has."""
    _same(large, small)
    if axis is None or axis == _rank(large.invars[1]) - 1:
        raise _cannot("gather")
    return []


def _check_scattered(large: JaxprEqn, small: JaxprEqn, taken: Sequence[int | None]) -> list[tuple[int, Any]]:
    """Each example's part added where its positions say: the gradient of a look-up."""
    _same(large, small)
    positions, updates = taken[1], taken[2]
    numbers = large.params["dimension_numbers"]
    apart = updates is not None and updates not in numbers.update_window_dims
    if not apart or positions is None or positions == _rank(large.invars[1]) - 1:
        raise _cannot("scatter-add")
    return [(2, 0)]


def _check_other_lengths(large: JaxprEqn, small: JaxprEqn, setting: str, axis: int | None) -> None:
    one, other = large.params[setting], small.params[setting]
    if any(
        left != right
        for position, (left, right) in enumerate(zip(one, other, strict=True))
        if position != axis
    ):
        raise _cannot(large.primitive.name)


def _same(large: JaxprEqn, small: JaxprEqn, but: str = "") -> None:
    """Refuse steps that differ in a setting."""
    for name, value in large.params.items():
        if name != but and not _equal(value, small.params[name]):
            raise _cannot(large.primitive.name)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Jaxpr | ClosedJaxpr):
        return str(one) == str(other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one is other or one == other)


def _cannot(name: str) -> Unpadded:
    return Unpadded(f"a step of it ({name}) takes the examples together in a way that cannot be padded")


def _dtype(equation: JaxprEqn, operand: int) -> Any:
    return equation.invars[operand].aval.dtype  # type: ignore[attr-defined]


def _rank(atom: Any) -> int:
    return len(atom.aval.shape)


def _is_bool(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.bool_))


def _lowest(dtype: Any) -> Any:
    if _is_bool(dtype):
        return False
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    if _is_bool(dtype):
        return True
    return jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


FILLERS: dict[str, Any] = {
    "reduce_sum": lambda dtype: 0,
    "reduce_prod": lambda dtype: 1,
    "reduce_max": _lowest,
    "reduce_min": _highest,
    "argmax": _lowest,
    "argmin": _highest,
    "reduce_or": lambda dtype: 0,
    "reduce_and": lambda dtype: True if _is_bool(dtype) else -1,
}
"""What entries that do not count hold, by the step that takes all of them together."""


def _masked(value: Any, axis: int | None, count: Any, filler: Any) -> Any:
    assert axis is not None
    here = jax.lax.broadcasted_iota(jnp.int32, value.shape, axis) < count
    return jnp.where(here, value, jnp.asarray(filler, value.dtype))


# -- loops and branches


def _bodies(small: JaxprEqn, large: JaxprEqn, number: int, larger: int) -> tuple[Compared, ...]:
    name = large.primitive.name
    for setting, value in large.params.items():
        if setting not in BODIES[name] and not _equal(value, small.params[setting]):
            raise _cannot(name)

    def all_of(equation: JaxprEqn) -> list[ClosedJaxpr]:
        found: list[ClosedJaxpr] = []
        for setting in BODIES[name]:
            value = equation.params[setting]
            found += value if isinstance(value, tuple | list) else [value]
        return found

    return tuple(
        compared(one, other, number, larger) for one, other in zip(all_of(small), all_of(large), strict=True)
    )


def _run_bodies(
    step: Step, bodies: Sequence[Compared], operands: Sequence[Any], numbers: Sequence[Any], count: Any
) -> list[Any]:
    params = step.equation.params
    runs = [
        lambda *given, one=one, its=its: one.run(given, its, count)
        for one, its in zip(bodies, numbers, strict=True)
    ]
    if step.equation.primitive.name == "cond":
        return list(jax.lax.switch(operands[0], runs, *operands[1:]))
    if step.equation.primitive.name == "while":
        consts = params["cond_nconsts"], params["body_nconsts"]
        of_cond, of_body = operands[: consts[0]], operands[consts[0] : sum(consts)]
        return list(
            jax.lax.while_loop(
                lambda carry: runs[0](*of_cond, *carry)[0],
                lambda carry: tuple(runs[1](*of_body, *carry)),
                tuple(operands[sum(consts) :]),
            )
        )
    shared, carries = params["num_consts"], params["num_carry"]

    def body(carry: Any, xs: Any) -> tuple[Any, Any]:
        after = runs[0](*operands[:shared], *carry, *xs)
        return tuple(after[:carries]), tuple(after[carries:])

    last, ys = jax.lax.scan(
        body,
        tuple(operands[shared : shared + carries]),
        tuple(operands[shared + carries :]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*last, *ys]
