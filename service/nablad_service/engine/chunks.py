"""A traced computation, done for some of its examples at a time: less memory, and often less time.

What each example gives is computed in a loop over chunks of them and forgotten; sums over the examples, the
loss and the gradients of parameters above all, are added up on the way. What needs such a sum first (the
gradient of a root of a mean, the statistics of a batch) waits for the loop that makes it and goes into the
next one. What cannot be done for some of the examples is done for all, outside of the loops. So any
computation keeps its meaning, to rounding; how much it gains depends on how much of it stands inside.

It works on the jaxpr of the whole answer, the outer gradient included: there the number of examples is
written in wherever it matters (a mean divides by it), and a chunk cannot mistake its own length for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from nablad_service.engine.coupling import FIXED, MIXED, PARTIAL, ZERO, Axis, literal, through
from nablad_service.engine.merged import Merged, Step, merged
from nablad_service.engine.resizing import Part, do, repeats, shared

MOST_LOOPS = 3
"""Loops one after the other; what would need more is done for all examples."""
WHOLE = (FIXED, ZERO)


@dataclass(frozen=True)
class Examples:
    """How many examples there are, and along which axis of each argument they lie (None: of none)."""

    number: int
    axes: tuple[int | None, ...]


def in_chunks(closed: ClosedJaxpr, examples: Examples, at_once: int) -> Callable[..., list[Any]]:
    """The computation of `closed` as a function of the same arguments, for `at_once` examples at a time."""
    schedule = _Schedule(merged(closed), examples)
    return lambda *arguments: _run(schedule, arguments, at_once)


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where a step is done, and what each value that it reads and makes is there."""

    step: Step
    loop: int
    """Its loop, counted from 1; outside of the loops, how many it waits for."""
    inside: bool
    taken: tuple[Axis, ...]
    made: tuple[Axis, ...]


class _Schedule:
    """What is done before, between and after the loops, and what in each of them."""

    def __init__(self, flat: Merged, examples: Examples) -> None:
        self.flat = flat
        self.number = examples.number
        self.axis: dict[int, Axis] = {value: literal(number) for value, number in flat.fixed.items()}
        self.loop: dict[int, int] = dict.fromkeys((*flat.fixed, *flat.arguments), 0)
        self.placed: dict[int, _Placed] = {}
        """How each value is made, but for arguments and numbers of the computation."""
        self.spread: dict[tuple[int, int], _Placed] = {}
        """How to make values that are equal along an axis as long as the examples for some of them."""
        for value, axis in zip(flat.arguments, examples.axes, strict=True):
            self.axis[value] = FIXED if axis is None else axis
        steps = [self._place(step) for step in flat.steps]
        self.whole: set[int] = set()
        """Values that are wanted in full."""
        self._wanted: set[tuple[int, int]] = set()
        self._follow()
        self.outside = [one for one in steps if not one.inside and self.whole.intersection(one.step.makes)]
        self.loops = {
            loop: [
                one
                for one in steps
                if one.inside and any((value, loop) in self._wanted for value in one.step.makes)
            ]
            for loop in sorted({loop for _, loop in self._wanted})
        }

    # -- placing

    def _place(self, step: Step) -> _Placed:
        placed = self._inside(step, keep=True) or self._inside(step, keep=False) or self._outside(step)
        for value, axis in zip(step.makes, placed.made, strict=True):
            self.axis[value], self.loop[value], self.placed[value] = axis, placed.loop, placed
        if not placed.inside:
            self._spread_out(step)
        return placed

    def _inside(self, step: Step, *, keep: bool) -> _Placed | None:
        """The step in a loop, if one can do it; sums in the making are taken as such, or else as made."""

        def loop_for(taken: Sequence[Axis]) -> int:
            # What is taken whole must be there before the loop begins.
            return max(
                self.loop[value] + (axis in WHOLE) for value, axis in zip(step.reads, taken, strict=True)
            )

        if not step.reads:
            return None
        taken = [self.axis[value] for value in step.reads]
        if keep:
            loop = loop_for(taken)
            late = [
                axis == PARTIAL and self.loop[value] == loop
                for value, axis in zip(step.reads, taken, strict=True)
            ]
        else:
            late = [False] * len(taken)
        taken = [
            FIXED if axis == PARTIAL and not kept else axis for axis, kept in zip(taken, late, strict=True)
        ]
        if all(axis in WHOLE for axis in taken):
            return None
        made = through(step.equation, taken)
        loop = max(loop_for(taken), 1)
        if MIXED in made or loop > MOST_LOOPS or all(axis in WHOLE for axis in made):
            return None
        return _Placed(step, loop, True, tuple(taken), tuple(made))

    def _outside(self, step: Step) -> _Placed:
        zero = [ZERO if self.axis[value] == ZERO else FIXED for value in step.reads]
        loop = max((self.loop[value] for value in step.reads), default=0)
        return _Placed(step, loop, False, tuple(zero), tuple(through(step.equation, zero)))

    def _spread_out(self, step: Step) -> None:
        """Note along which axes the result of a step outside merely repeats itself."""
        along = [[axis for value, axis in self.spread if value == read] for read in step.reads]
        for axis, taken in repeats(step.equation, along, self.number).items():
            made = step.makes[0]
            self.spread[made, axis] = _Placed(step, self.loop[made], False, taken, (axis,))

    # -- what is wanted

    def _follow(self) -> None:
        """From the results back: which values are wanted in full, and which in which loop."""
        waiting: list[tuple[int, int | None]] = [(value, None) for value in self.flat.results]
        cuts: set[tuple[int, int]] = set()
        while waiting:
            value, loop = waiting.pop()
            placed = self.placed.get(value)
            if placed is None or not placed.inside:
                loop = None
            seen = value in self.whole if loop is None else (value, loop) in self._wanted
            if seen:
                continue
            if loop is None:
                self.whole.add(value)
                if placed is not None:
                    loop = placed.loop
                    if placed.inside:
                        waiting.append((value, loop))
                    else:
                        waiting += [(read, None) for read in placed.step.reads]
                continue
            assert placed is not None
            self._wanted.add((value, loop))
            apart = dict(shared(placed.step.equation, placed.taken))
            for position, (read, axis) in enumerate(zip(placed.step.reads, placed.taken, strict=True)):
                if position in apart:
                    waiting += self._for_cut(read, apart[position], cuts)
                else:
                    waiting.append((read, None if axis in WHOLE else loop))

    def _for_cut(self, value: int, axis: int, cuts: set[tuple[int, int]]) -> list[tuple[int, None]]:
        """What must be there in full to have some entries of `value`."""
        placed = self.spread.get((value, axis))
        if placed is None:
            return [(value, None)]
        if (value, axis) in cuts:
            return []
        cuts.add((value, axis))
        found: list[tuple[int, None]] = []
        for read, along in zip(placed.step.reads, placed.taken, strict=True):
            found += [(read, None)] if along in WHOLE else self._for_cut(read, along, cuts)
        return found

    def results_of(self, loop: int) -> tuple[list[int], list[int]]:
        """What a loop makes that is wanted in full: values of all examples together, and of each of them."""
        made = [
            value
            for one in self.loops[loop]
            if one.loop == loop
            for value in one.step.makes
            if value in self.whole
        ]
        return [value for value in made if self.axis[value] < 0], [v for v in made if self.axis[v] >= 0]


# -- running


def _run(schedule: _Schedule, arguments: Sequence[Any], at_once: int) -> list[Any]:
    flat = schedule.flat
    whole = {**flat.fixed, **dict(zip(flat.arguments, arguments, strict=True))}

    def outside(waits_for: int) -> None:
        for one in schedule.outside:
            if one.loop == waits_for:
                operands = [whole[value] for value in one.step.reads]
                whole.update(zip(one.step.makes, one.step.run(operands), strict=True))

    outside(0)
    for loop in range(1, MOST_LOOPS + 1):
        if loop in schedule.loops:
            whole.update(_loop(schedule, loop, whole, at_once))
        outside(loop)
    return [whole[value] for value in flat.results]


def _loop(schedule: _Schedule, loop: int, whole: dict[int, Any], at_once: int) -> dict[int, Any]:
    """The results of a loop, in full."""
    together, stacked = schedule.results_of(loop)
    chunks, rest = divmod(schedule.number, at_once)

    def at(start: Any, length: int) -> tuple[list[Any], list[Any]]:
        values = _some(schedule, loop, whole, Part(start, length, schedule.number))
        return [values[value] for value in together], [values[value] for value in stacked]

    def joined(before: Sequence[Any], parts: Sequence[Any]) -> list[Any]:
        return [
            one + part if schedule.axis[value] == PARTIAL else part  # the same in all chunks
            for value, one, part in zip(together, before, parts, strict=True)
        ]

    def step(carry: tuple[Any, list[Any]], _: None) -> tuple[tuple[Any, list[Any]], list[Any]]:
        start, before = carry
        parts, rows = at(start, at_once)
        return (start + at_once, joined(before, parts)), rows

    avals = [schedule.flat.avals[value] for value in together]
    nothing = [jnp.zeros(aval.shape, aval.dtype) for aval in avals]
    # Carried, so that what is beyond the last whole chunk begins when the loop has ended: XLA for CPUs does
    # side by side what does not wait for one another, and both would need their memory.
    (end, totals), all_rows = jax.lax.scan(step, (jnp.zeros((), jnp.int32), nothing), length=chunks)
    found = dict(zip(together, totals, strict=True))
    for value, rows in zip(stacked, all_rows, strict=True):
        axis = schedule.axis[value]
        lengths = list(schedule.flat.avals[value].shape)
        lengths[axis] = chunks * at_once
        found[value] = jnp.moveaxis(rows, 0, axis).reshape(lengths)
    if rest:
        parts, last = at(end, rest)
        found.update(zip(together, joined(totals, parts), strict=True))
        for value, row in zip(stacked, last, strict=True):
            found[value] = jnp.concatenate([found[value], row], axis=schedule.axis[value])
    return found


def _some(schedule: _Schedule, loop: int, whole: dict[int, Any], part: Part) -> dict[int, Any]:
    """All that a loop makes of the examples at hand."""
    values: dict[int, Any] = {}
    cuts: dict[tuple[int, int], Any] = {}

    def cut(value: int, axis: int) -> Any:
        if (value, axis) not in cuts:
            placed = schedule.spread.get((value, axis))
            if placed is None:
                cuts[value, axis] = part.of(whole[value], axis)
            else:
                operands = [
                    whole[read] if along in WHOLE else cut(read, along)
                    for read, along in zip(placed.step.reads, placed.taken, strict=True)
                ]
                (cuts[value, axis],) = do(placed.step.equation, placed.taken, placed.made, operands, part)
        return cuts[value, axis]

    def operand(value: int, axis: Axis) -> Any:
        if value in values and axis not in WHOLE:
            return values[value]
        # One that is shared, with an entry for each example, is cut where it is used.
        return cut(value, axis) if axis >= 0 else whole.get(value)

    for one in schedule.loops[loop]:
        reads = one.step.reads
        operands = [operand(value, axis) for value, axis in zip(reads, one.taken, strict=True)]
        for position, axis in shared(one.step.equation, one.taken):
            operands[position] = cut(reads[position], axis)
        made = do(one.step.equation, one.taken, one.made, operands, part)
        values.update(zip(one.step.makes, made, strict=True))
    return values
