"""One NumPy call, its arguments matched to a row of the table, as an expression."""

from ast import literal_eval
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nablad.tracing.errors import TraceError, nearest
from nablad.tracing.expressions import call
from nablad.tracing.graph import Expression, Part
from nablad.tracing.numpy_table import LANGUAGE, NABLAD, NUMPY_DEFAULTS, Rewrite, Row
from nablad.tracing.operands import items, operand, option

_MISSING = np._NoValue  # how NumPy itself says "not given"


class Parameter(NamedTuple):
    """One parameter of a row's signature: its NumPy name, how it is written, and the default of a keyword."""

    name: str
    mark: str
    default: Any = None


def row_of(function: Callable[..., Any]) -> Row | Rewrite:
    """Return the table's row.

    Raises:
        TraceError: the language has no word for the NumPy function; the message names the nearest.
    """
    row = LANGUAGE.get(function)
    if row is not None:
        return row
    known = [*map(full_name, LANGUAGE), *(f"nablad.{name}" for name in NABLAD)]
    raise TraceError(
        f"{full_name(function)} has no word in the loss language; {nearest(function.__name__, known)}"
    )


def full_name(function: Callable[..., Any]) -> str:
    """Return the name under which people know a NumPy function."""
    module = getattr(function, "__module__", None) or "numpy"
    return f"{module}.{function.__name__}"


def expression_of(
    shown: str, row: Row, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Expression:
    """Return the call of a row; `shown` names the Python function in messages.

    Raises:
        TraceError: an argument is missing, unknown or cannot be written.
    """
    parameters = [_parameter(word) for word in row.signature.split()]
    given = _matched(shown, parameters, arguments, keywords)
    positional: list[Part] = []
    named: dict[str, Part] = {}
    for parameter in parameters:
        value = given.get(parameter.name, _MISSING)
        if parameter.mark == "=":
            if value is not _MISSING and not _same(value, parameter.default):
                named[parameter.name] = option(value)
        elif parameter.mark == "~":
            _refuse_unless_default(shown, parameter.name, value)
        else:
            positional.extend(_WRITTEN[parameter.mark](value) if value is not _MISSING else ())
    return call(row.name, positional, named)


_WRITTEN: dict[str, Callable[[Any], list[Part]]] = {
    "": lambda value: [operand(value)],
    "[]": lambda value: [items(value)],
    "()": lambda value: [option(value)],
    "*": lambda values: [operand(value) for value in values],
}


def _parameter(word: str) -> Parameter:
    for mark in ("~", "*"):
        if word.startswith(mark):
            return Parameter(word[1:], mark)
    for mark in ("[]", "()"):
        if word.endswith(mark):
            return Parameter(word[:-2], mark)
    name, mark, default = word.partition("=")
    return Parameter(name, mark, literal_eval(default) if default else _MISSING)


def _matched(
    shown: str, parameters: list[Parameter], arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    rest = list(arguments)
    for parameter in parameters:
        if parameter.mark == "*":
            given[parameter.name], rest = rest, []
        elif rest:
            given[parameter.name] = rest.pop(0)
    if rest:
        raise TraceError(f"{shown} is given {len(arguments)} arguments; the loss language takes {len(given)}")
    names = [parameter.name for parameter in parameters]
    for name, value in keywords.items():
        if name in names:
            given[name] = value
        else:
            _refuse_unless_default(shown, name, value)
    for parameter in parameters:
        required = parameter.mark in ("", "[]")
        if required and given.get(parameter.name, _MISSING) is _MISSING:
            raise TraceError(f"{shown} needs its argument {parameter.name!r} in a loss")
    return given


def _refuse_unless_default(shown: str, name: str, value: Any) -> None:
    if value is _MISSING or any(_same(value, default) for default in NUMPY_DEFAULTS.get(name, ())):
        return
    raise TraceError(f"{shown} is given {name!r}, which the loss language does not have: leave it out")


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)
