"""Python values as parts of an expression: numbers, arrays, lists and traced values."""

import math
from functools import singledispatch
from typing import Any

import numpy as np

from nablad.tracing.errors import TraceError
from nablad.tracing.expressions import bracketed, call, listed, literal
from nablad.tracing.graph import ATOM, UNARY, Expression, Part, Shape, Variable
from nablad.tracing.recorder import Handle, current, part_of


@singledispatch
def operand(value: Any) -> Part:
    """Return `value` as part of an expression; an array becomes a constant, a list of traced values a stack.

    Raises:
        TraceError: the language has nothing to write for it.
    """
    if hasattr(value, "__array__"):
        return operand(np.asarray(value))
    raise TraceError(
        f"{_described(value)} cannot stand in a loss: a loss is made of traced values, numbers and arrays"
    )


@operand.register(Handle)
def _(value: Handle) -> Part:
    return part_of(value)


@operand.register(bool)
@operand.register(np.bool_)
def _(value: Any) -> Part:
    return literal(str(bool(value)))


@operand.register(int)
@operand.register(np.integer)
def _(value: Any) -> Part:
    return literal(str(int(value)), UNARY if value < 0 else ATOM)


@operand.register(float)
@operand.register(np.floating)
def _(value: Any) -> Part:
    number = float(value)
    if not math.isfinite(number):
        raise TraceError(f"the loss contains the number {number}: only finite numbers can be written")
    if abs(number) == math.pi and "pi" not in current("a number").given:
        return literal("pi" if number > 0 else "-pi", ATOM if number > 0 else UNARY, words=("pi",))
    return literal(repr(number), UNARY if math.copysign(1.0, number) < 0 else ATOM)


@operand.register(np.ndarray)
def _(value: np.ndarray[Any, Any]) -> Part:
    if value.dtype.kind not in "biuf":
        raise TraceError(f"an array of dtype {value.dtype} cannot stand in a loss: use real numbers")
    return current("an array constant").constant(value) if value.ndim else operand(value[()])


@operand.register(list)
@operand.register(tuple)
def _(value: Any) -> Part:
    if contains_handle(value):
        return call("stack", [items(value)])
    return operand(np.asarray(value))


def items(values: Any) -> Expression:
    """Return a list of operands, `[a, b]`."""
    return listed([operand(value) for value in values])


def option(value: Any) -> Part:
    """Return an axis, a shape, a flag or a string as it is written in a call.

    Raises:
        TraceError: the value cannot be written there.
    """
    if isinstance(value, str):
        return string(value)
    if isinstance(value, tuple | list):
        return bracketed([option(item) for item in value])
    if value is None:
        raise TraceError("None cannot be written here in the loss language: give a number")
    return operand(value)


def string(text: str) -> Expression:
    """Return a quoted string."""
    if not text.isprintable() or '"' in text or "\\" in text:
        raise TraceError(
            f"the string {text!r} cannot be written in a loss: no quotes, backslashes or line breaks"
        )
    return literal(f'"{text}"')


def contains_handle(value: Any) -> bool:
    """Whether a traced value stands in the nested lists and tuples of `value`."""
    if isinstance(value, list | tuple):
        return any(contains_handle(item) for item in value)
    return isinstance(value, Handle)


def is_condition(value: Any) -> bool:
    """Whether a value is known to hold true and false only."""
    if contains_handle(value):
        return isinstance(value, Handle) and isinstance(value._part, Variable) and value._part.boolean
    return np.asarray(value).dtype.kind == "b"


def known_shape(value: Any) -> Shape | None:
    """The shape of a value where it is known here: of numbers, arrays and inputs."""
    if not isinstance(value, Handle):
        return None if contains_handle(value) else np.shape(value)
    part = value._part
    return part.shape if isinstance(part, Variable) and isinstance(part.shape, tuple) else None


_DESCRIPTIONS: dict[type, str] = {
    type(None): "None (did a helper function forget its return?)",
    str: "a string",
    dict: "a dict (a parameter tree is used whole: p - rate * g)",
    complex: "a complex number",
}


def _described(value: Any) -> str:
    return _DESCRIPTIONS.get(type(value), f"a value of type {type(value).__name__}")
