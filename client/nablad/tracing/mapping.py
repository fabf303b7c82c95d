"""`vmap`: a Python function, traced once into a `def` and applied to every entry along an axis."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nablad.tracing.errors import TraceError
from nablad.tracing.expressions import called, literal
from nablad.tracing.frames import local_variables
from nablad.tracing.graph import ANY, Expression, Part, Scope, Shape, Variable
from nablad.tracing.models import Model
from nablad.tracing.operands import operand
from nablad.tracing.recorder import Recorder, current, variables_of
from nablad.tracing.symbols import Symbol, record, record_together

Axes = int | None | Sequence[int | None]


def vmap(function: Callable[..., Any], in_axes: Axes = 0) -> "Mapped":
    """Map `function` over the leading axis of its arguments, or over `in_axes` (None: not mapped).

    The function sees one example. It may be a Python function, a model or another vmap, may use any value
    around it, and may return one value or a tuple. Numbers are passed on to every example.

    Raises:
        TraceError: `function` cannot be called, or `in_axes` holds something else than integers and None.
    """
    if not callable(function):
        raise TraceError(f"vmap takes a function, not a value of type {type(function).__name__}")
    listed = in_axes if isinstance(in_axes, Sequence) else (in_axes,)
    if not all(axis is None or isinstance(axis, int | np.integer) for axis in listed):
        raise TraceError(
            f"in_axes={in_axes!r}: give an integer, None, or a tuple of these with one per argument"
        )
    axes = tuple(None if axis is None else int(axis) for axis in listed)
    if all(axis is None for axis in axes):
        raise TraceError(f"in_axes={in_axes!r} maps no argument: call the function itself")
    return Mapped(function, axes if isinstance(in_axes, Sequence) else axes[0])


class Mapped:
    """What `vmap` gives: a function of batches."""

    def __init__(self, function: Callable[..., Any], in_axes: int | tuple[int | None, ...] | None) -> None:
        self.function = function
        self.in_axes = in_axes

    def __call__(self, *arguments: Any) -> Any:
        """Apply the function along the mapped axes.

        Raises:
            TraceError: outside a loss function, or the arguments do not fit `in_axes` or the function.
        """
        recorder = current("nablad.vmap")
        if not arguments:
            raise TraceError("a vmapped function needs at least one argument")
        parts = [operand(argument) for argument in arguments]
        callee, count = self._callee(recorder, [_shape(part) for part in parts])
        expression = called(callee, parts, {})
        return record(expression) if count is None else record_together(expression, count)

    def _callee(self, recorder: Recorder, shapes: list[Shape | None]) -> tuple[Expression, int | None]:
        axes = self.in_axes if isinstance(self.in_axes, tuple) else (self.in_axes,) * len(shapes)
        if len(axes) != len(shapes):
            raise TraceError(f"in_axes={self.in_axes} has {len(axes)} entries for {len(shapes)} arguments")
        inner = [_without(shape, axis) for shape, axis in zip(shapes, axes, strict=True)]
        target: Part
        if isinstance(self.function, Mapped):
            target, count = self.function._callee(recorder, inner)
        elif isinstance(self.function, Model):
            target, count = self.function._part, None
        else:
            target, count = _define(recorder, self.function, inner)
        option = "" if self.in_axes == 0 else f", in_axes={self.in_axes}"
        return Expression(
            f"{{}}({{}}{option})", (literal("vmap", words=("vmap",)), target), (ANY, ANY)
        ), count


def _define(
    recorder: Recorder, function: Callable[..., Any], shapes: list[Shape | None]
) -> tuple[Scope, int | None]:
    title = re.sub(r"\W", "", getattr(function, "__name__", "")) or "f"
    scope = Scope("f" if title == "lambda" else title, recorder.scope)
    names = _argument_names(function, len(shapes))
    scope.arguments = [
        Variable(scope, wish=name, shape=shape) for name, shape in zip(names, shapes, strict=True)
    ]
    with recorder.inside(scope), local_variables(function) as found:
        result = function(*(Symbol(argument, scope) for argument in scope.arguments))
        several = isinstance(result, tuple)
        results = result if several else (result,)
        if not results:
            raise TraceError(f"the vmapped function {title!r} returns nothing")
        scope.results = tuple(_result(title, value) for value in results)
        recorder.read.update(part for part in scope.results if isinstance(part, Variable))
    scope.locals = variables_of(scope, found)
    recorder.scope.items.append(scope)
    return scope, len(results) if several else None


def _result(title: str, value: Any) -> Part:
    try:
        return operand(value)
    except TraceError as error:
        raise TraceError(
            f"the vmapped function {title!r} must return one value or a tuple of values: {error}"
        ) from None


def _argument_names(function: Callable[..., Any], count: int) -> list[str]:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return [f"x{k}" for k in range(1, count + 1)]
    try:
        bound = signature.bind(*range(1, count + 1))
    except TypeError as error:
        raise TraceError(f"the vmapped function is given {count} arguments, but {error}") from None
    return [
        argument
        for name, value in bound.arguments.items()
        for argument in ([f"{name}_{k}" for k in value] if isinstance(value, tuple) else [name])
    ]


def _shape(part: Part) -> Shape | None:
    return part.shape if isinstance(part, Variable) and isinstance(part.shape, tuple) else None


def _without(shape: Shape | None, axis: int | None) -> Shape | None:
    if not shape or axis is None:
        return shape
    if not -len(shape) <= axis < len(shape):
        raise TraceError(f"vmap over axis {axis} of an argument of shape {shape}")
    return tuple(np.delete(shape, axis).tolist())
