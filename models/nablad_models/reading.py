"""Readers of JSON values: each returns the value in normal form (JSON again) or says what it expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST = 2**31
"""No size is larger than this, and no model has more parameters."""

MOST_VALUES = 20_000
"""No architecture has more objects, lists and plain values in it, all counted."""

LARGEST_COUNT = 4096
"""No window, stride, depth or the like is larger than this."""

MOST_AXES = 32
"""No array has more axes: NumPy's limit was this for long."""

DEEPEST = 64
"""No architecture is nested deeper."""

Reader = Callable[[Any], Any]


@dataclass(frozen=True)
class Nested:
    """In place of a reader: the value is a list of layers, or one such list a branch."""

    branches: bool = False


@dataclass(frozen=True)
class Option:
    """A key beside a name: its default, in JSON, and its reader."""

    default: Any
    read: Reader | Nested


class Required:
    """In place of a default: the key must be there."""


REQUIRED = Required()


class Unreadable(ValueError):
    """A value is not what was expected; the message is a clause that can follow the name of a layer."""


def check_extent(value: Any) -> None:
    """Raise `Unreadable` for JSON so large or deep that reading it would hurt; does not recurse itself."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        each, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST:
            raise Unreadable(f"the architecture is nested deeper than {DEEPEST}")
        if seen > MOST_VALUES:
            raise Unreadable(f"the architecture has more than {MOST_VALUES} values in it")
        inside = (
            each.values() if isinstance(each, Mapping) else each if isinstance(each, list | tuple) else ()
        )
        waiting.extend((part, depth + 1) for part in inside)


def read_options(options: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The plain options with defaults filled in.

    Raises `Unreadable` for a key that is unknown, missing or wrong.
    """
    check_keys(options, given)
    return {key: read_option(key, option, given.get(key, option.default)) for key, option in options.items()}


def check_keys(options: Collection[str], given: Iterable[str]) -> None:
    """Raise `Unreadable` for a key that is not an option."""
    for key in given:
        if key not in options:
            raise Unreadable(unknown("option", str(key), list(options)))


def read_option(key: str, option: Option, value: Any) -> Any:
    """One plain option; raises `Unreadable` with its key."""
    if value is REQUIRED:
        raise Unreadable(f"option {key!r} is missing")
    if isinstance(option.read, Nested):
        raise TypeError(f"{key!r} holds layers, which are read where the table of layers is known")
    try:
        return option.read(value)
    except Unreadable as problem:
        raise Unreadable(f"option {key!r}: {problem}") from None


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not known, with the nearest that is."""
    name = name if len(name) <= 60 else f"{name[:57]}..."
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    return f"unknown {what} {name!r}; {hint}"


def shown(value: Any) -> str:
    """`value` short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def size(value: Any) -> int:
    """A positive whole number."""
    if not _is_whole(value) or not 0 < value <= LARGEST:
        raise Unreadable(f"expected a positive whole number up to {LARGEST}, got {shown(value)}")
    return int(value)


def count(value: Any) -> int:
    """A positive whole number for what is repeated or slid, never near the sizes that arrays may have."""
    if not _is_whole(value) or not 0 < value <= LARGEST_COUNT:
        raise Unreadable(f"expected a positive whole number up to {LARGEST_COUNT}, got {shown(value)}")
    return int(value)


def sizes(*names: str) -> Reader:
    """A list with one positive whole number a name."""

    def read(value: Any) -> list[int]:
        wrong = Unreadable(f"expected [{', '.join(names)}], positive whole numbers, got {shown(value)}")
        if not isinstance(value, list | tuple) or len(value) != len(names):
            raise wrong
        try:
            return [size(each) for each in value]
        except Unreadable:
            raise wrong from None

    return read


def one_or_more(value: Any) -> int | list[int]:
    """A positive whole number, or a list with one for each axis."""
    return each_size(value) if isinstance(value, list | tuple) else size(value)


def sizes_or_none(value: Any) -> list[int]:
    """A list of positive whole numbers, `[]` the shape of a single number."""
    return [] if value in ([], ()) else each_size(value)


def each_size(value: Any) -> list[int]:
    """A list of at least one positive whole number."""
    if not isinstance(value, list | tuple) or not value:
        raise Unreadable(f"expected a list of positive whole numbers, got {shown(value)}")
    return [size(each) for each in value]


def whole(value: Any) -> int:
    """A whole number from 0."""
    if not _is_whole(value) or not 0 <= value <= LARGEST:
        raise Unreadable(f"expected a whole number from 0, got {shown(value)}")
    return int(value)


def axis(value: Any) -> int:
    """The number of an axis, from 0."""
    if not _is_whole(value) or not 0 <= value < MOST_AXES:
        raise Unreadable(f"expected the number of an axis, from 0, got {shown(value)}")
    return int(value)


def axes(value: Any) -> list[int]:
    """The numbers 0, 1, ... in some order."""
    if not isinstance(value, list | tuple) or not value or sorted(map(whole, value)) != [*range(len(value))]:
        raise Unreadable(f"expected the axes of an example in a new order, like [1, 0], got {shown(value)}")
    return [int(each) for each in value]


def optional(read: Reader) -> Reader:
    """null, or what `read` takes."""
    return lambda value: None if value is None else read(value)


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Unreadable(f"expected true or false, got {shown(value)}")
    return value


def number(value: Any) -> float:
    """A finite number."""
    if not (_is_whole(value) or isinstance(value, float)) or not abs(value) < LARGEST:
        raise Unreadable(f"expected a finite number, got {shown(value)}")
    return float(value)


def positive(value: Any) -> float:
    """A finite number above zero."""
    read = number(value)
    if read <= 0:
        raise Unreadable(f"expected a number above zero, got {shown(value)}")
    return read


def fraction(value: Any) -> float:
    """A number from 0 to 1."""
    read = number(value)
    if not 0 <= read <= 1 or math.isnan(read):
        raise Unreadable(f"expected a number from 0 to 1, got {shown(value)}")
    return read


def below_one(value: Any) -> float:
    """A number from 0 up to, but not, 1."""
    read = fraction(value)
    if read == 1:
        raise Unreadable(f"expected a number below 1, got {shown(value)}")
    return read


def choice(what: str, known: Sequence[str]) -> Reader:
    """One of the known names."""

    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise Unreadable(f"expected one of {', '.join(known)}, got {shown(value)}")
        if value not in known:
            raise Unreadable(unknown(what, value, known))
        return value

    return read


def present(value: Any) -> bool:
    """true, for a layer that needs no more than its name."""
    if value is not True:
        raise Unreadable(f"expected true, got {shown(value)}")
    return True
