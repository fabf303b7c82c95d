"""Where a computation applies its parameters: products with a weight, convolutions, and repeated arrays.

A parameter may be turned and reshaped on its way, or cut into pieces that do not overlap: norms and products
of rows do not see that. What else is done to it before it meets the data is not followed, and its rows must
be formed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import jax
import jax.numpy as jnp

from nablad_service.engine import coupling
from nablad_service.engine.derivatives.outer_products import Outer, Rows
from nablad_service.engine.merged import Merged, Step

Way: TypeAlias = tuple[tuple[Any, ...], ...]
"""What happens to a parameter before it is used: the names and settings of the steps."""
Kind: TypeAlias = Literal["product", "convolution", "repeated"]
ALONE: Final = -1
"""There is one example, and so no axis of examples."""

TURNS = frozenset(["transpose", "reshape", "squeeze", "expand_dims", "rev", "copy", "neg"])


@dataclass(frozen=True)
class Use:
    """The operand `number` of the step at `position` is a parameter, or a piece of one."""

    position: int
    number: int
    kind: Kind
    way: Way
    step: Step

    @property
    def repeated(self) -> tuple[int, ...]:
        """Axes of the result along which an array that is only repeated lies many times."""
        given, made = shape_of(self.step, self.number), result_shape(self.step)
        if self.step.equation.primitive.name == "broadcast_in_dim":
            at = self.step.equation.params["broadcast_dimensions"]
            given = tuple(given[at.index(axis)] if axis in at else 1 for axis in range(len(made)))
        given = given or (1,) * len(made)
        return tuple(
            axis for axis, lengths in enumerate(zip(given, made, strict=True)) if lengths[0] != lengths[1]
        )

    @property
    def signature(self) -> tuple[Any, ...]:
        """Uses of one parameter whose rows add up entry by entry share it."""
        params = self.step.equation.params
        shape = shape_of(self.step, self.number)
        if self.kind == "product":
            (contracted, batch) = params["dimension_numbers"]
            return self.kind, self.way, tuple(contracted[self.number]), tuple(batch[self.number]), shape
        if self.kind == "convolution":
            spec = tuple(params["dimension_numbers"].rhs_spec)
            return self.kind, self.way, spec, params["feature_group_count"], shape
        return self.kind, self.way, shape

    def example_axes(self) -> list[int]:
        """Axes of what the step makes that may hold the examples."""
        if self.kind == "product":
            return _product_axes(self.step, self.number)[1]
        if self.kind == "convolution":
            return [self.step.equation.params["dimension_numbers"].out_spec[0]]
        return list(self.repeated)

    def places(self, axis: int) -> tuple[int, int, int]:
        """How many places share the parameter in one example, and the in and out sizes there."""
        made = result_shape(self.step)
        given = shape_of(self.step, self.number)
        if self.kind == "repeated":
            return 1, 1, math.prod(given)
        if self.kind == "product":
            contracted = self.step.equation.params["dimension_numbers"][0][self.number]
            width = math.prod(given[one] for one in contracted)
            free = _product_axes(self.step, self.number)[1]
            return math.prod(made[one] for one in free if one != axis), width, math.prod(given) // width
        numbers = self.step.equation.params["dimension_numbers"]
        out = given[numbers.rhs_spec[0]]
        count = math.prod(made) // out // (made[axis] if axis != ALONE else 1)
        groups = self.step.equation.params["feature_group_count"]
        return count, math.prod(given) // out, out // groups

    @property
    def on_operand(self) -> bool:
        """Whether the change that stands for the parameter's is added to the operand, or to what is made."""
        return self.kind == "repeated" and self.step.equation.primitive.name != "broadcast_in_dim"

    def rows(self, axis: int, operands: Sequence[Any], delta: Any) -> Outer | Rows:
        """The rows that it gives the parameter.

        `delta` are cotangents of the change, with a leading axis of passes; `axis` holds the examples.
        """
        if self.kind == "product":
            return _outer_of_product(self.step, self.number, axis, operands[1 - self.number], delta)
        if self.kind == "convolution":
            return _outer_of_convolution(self.step, axis, operands[0], operands[1], delta)
        summed = tuple(one + 1 for one in self.repeated if one != axis)
        total = jnp.sum(delta, axis=summed, keepdims=True)
        total = total[:, None] if axis == ALONE else jnp.moveaxis(total, axis + 1, 1)
        return Rows(total.reshape(*total.shape[:2], -1))


def shape_of(step: Step, number: int) -> tuple[int, ...]:
    """Shape of an operand."""
    aval: Any = step.equation.invars[number].aval
    return tuple(aval.shape)


def result_shape(step: Step) -> tuple[int, ...]:
    """Shape of what a step makes."""
    aval: Any = step.equation.outvars[0].aval
    return tuple(aval.shape)


def uses_of(flat: Merged, parameter: int, readers: Mapping[int, list[tuple[int, int]]]) -> list[Use] | None:
    """All uses of a parameter; None where something is done to it that is not followed."""
    found: list[Use] = []
    waiting: list[tuple[int, Way]] = [(parameter, ())]
    while waiting:
        value, way = waiting.pop()
        if value in flat.results:
            return None
        for position, number in readers.get(value, ()):
            step = flat.steps[position]
            name, params = step.equation.primitive.name, step.equation.params
            if (
                name in TURNS
                or _only_converts(step)
                or (name == "broadcast_in_dim" and _repeats_nothing(step))
            ):
                waiting.append((step.makes[0], (*way, (name, str(params)))))
            elif name == "split":
                pieces = enumerate(step.makes)
                waiting += [(made, (*way, (name, str(params), index))) for index, made in pieces]
            elif name == "slice":
                bounds = tuple(zip(params["start_indices"], params["limit_indices"], strict=True))
                waiting.append((step.makes[0], (*way, (name, str(params["strides"]), bounds))))
            elif (kind := _kind(step, number)) is not None:
                found.append(Use(position, number, kind, way, step))
            else:
                return None
    return found if _disjoint({use.way for use in found}) else None


def _kind(step: Step, number: int) -> Kind | None:
    name = step.equation.primitive.name
    if name == "dot_general":
        return "product"
    if name == "conv_general_dilated":
        return "convolution" if number == 1 and step.equation.params["batch_group_count"] == 1 else None
    once = step.reads.count(step.reads[number]) == 1
    elementwise = name in coupling.ELEMENTWISE and len(step.makes) == 1
    return "repeated" if name == "broadcast_in_dim" or (elementwise and once) else None


def _only_converts(step: Step) -> bool:
    if step.equation.primitive.name != "convert_element_type":
        return False
    return bool(jnp.issubdtype(step.equation.params["new_dtype"], jnp.floating))


def _repeats_nothing(step: Step) -> bool:
    return math.prod(shape_of(step, 0)) == math.prod(result_shape(step))


def _disjoint(ways: set[Way]) -> bool:
    """Whether different ways lead to pieces that do not overlap."""
    ordered = sorted(ways, key=str)
    return all(_apart(one, other) for i, one in enumerate(ordered) for other in ordered[:i])


def _apart(one: Way, other: Way) -> bool:
    for left, right in zip(one, other, strict=False):
        if left == right:
            continue
        if left[0] == right[0] == "split":
            return bool(left[1] == right[1])
        if left[0] == right[0] == "slice":
            pairs = zip(left[2], right[2], strict=True)
            return any(a[1] <= b[0] or b[1] <= a[0] for a, b in pairs)
        return False
    return False  # one goes on where the other ends


def keeps_examples(flat: Merged, use: Use, axis: int) -> bool:
    """Whether entry i of the result depends on the step's result at i along `axis` alone."""
    known: dict[int, coupling.Axis] = {use.step.makes[0]: axis}

    for step in flat.steps[use.position + 1 :]:
        inputs = [known.get(read, coupling.FIXED) for read in step.reads]
        if any(one != coupling.FIXED for one in inputs):
            known.update(zip(step.makes, coupling.through(step.equation, inputs), strict=True))
    (result,) = flat.results
    return known.get(result, coupling.FIXED) in (0, coupling.FIXED, coupling.ZERO)


def _product_axes(step: Step, number: int) -> tuple[list[int], list[int], list[int]]:
    """Axes of a product by where they come from: batch axes, the other operand, the parameter."""
    (_, (batch, _)) = step.equation.params["dimension_numbers"]
    free = [_free(step, 0), _free(step, 1)]
    start = len(batch)
    of_left = list(range(start, start + len(free[0])))
    of_right = list(range(start + len(free[0]), start + len(free[0]) + len(free[1])))
    return list(range(start)), (of_right, of_left)[number], (of_left, of_right)[number]


def _free(step: Step, number: int) -> list[int]:
    contracted, batch = step.equation.params["dimension_numbers"]
    taken = (*contracted[number], *batch[number])
    return [axis for axis in range(len(shape_of(step, number))) if axis not in taken]


def _outer_of_product(step: Step, number: int, axis: int, other: Any, delta: Any) -> Outer:
    (contracted, batch) = step.equation.params["dimension_numbers"]
    groups, places, out = _product_axes(step, number)
    free = _free(step, 1 - number)
    lead = []
    if axis != ALONE:
        at = places.index(axis)
        lead, places, free = (
            [(axis, free[at])],
            [*places[:at], *places[at + 1 :]],
            [*free[:at], *free[at + 1 :]],
        )
    a = jnp.transpose(other, [*(own for _, own in lead), *free, *batch[1 - number], *contracted[1 - number]])
    made = result_shape(step)
    delta = jnp.transpose(
        delta, [0, *(one + 1 for one in (*(made for made, _ in lead), *places, *groups, *out))]
    )
    examples = made[axis] if axis != ALONE else 1
    count, group = math.prod(made[one] for one in places), math.prod(made[one] for one in groups)
    width = math.prod(shape_of(step, 1 - number)[one] for one in contracted[1 - number])
    return Outer(
        a.reshape(examples, count, group, width),
        delta.reshape(delta.shape[0], examples, count, group, math.prod(made[one] for one in out)),
    )


def _outer_of_convolution(step: Step, axis: int, image: Any, kernel: Any, delta: Any) -> Outer:
    params = step.equation.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    patches = jax.lax.conv_general_dilated_patches(
        jnp.transpose(image, numbers.lhs_spec),
        filter_shape=[kernel.shape[one] for one in numbers.rhs_spec[2:]],
        window_strides=params["window_strides"],
        padding=params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
    )
    pictures = patches.shape[0]
    a = jnp.moveaxis(patches.reshape(pictures, groups, patches.shape[1] // groups, -1), 3, 1)
    delta = jnp.transpose(delta, [0, *(one + 1 for one in numbers.out_spec)])
    passes, _, out, *_ = delta.shape
    delta = jnp.moveaxis(delta.reshape(passes, pictures, groups, out // groups, -1), 4, 2)
    if axis == ALONE:
        a = a.reshape(1, -1, *a.shape[2:])
        delta = delta.reshape(passes, 1, -1, *delta.shape[3:])
    return Outer(a, delta)
