"""Shapes of one example, with sizes that may be unknown until data arrive."""

from __future__ import annotations

from collections.abc import Sequence

Shape = tuple[int | None, ...]
"""The shape of one example; `None` is a size that only the data will tell."""


class DoesNotFit(Exception):
    """A layer cannot take examples of the shape offered; the message says what it takes."""


def show(shape: Sequence[int | None]) -> str:
    """`shape` as people write it, unknown sizes as `?`: `(3, ?, ?)`."""
    sizes = ["?" if size is None else str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"


def fits(expected: int | None, given: int | None) -> bool:
    """Whether one size can be the other: equal, or one of them not known yet."""
    return expected is None or given is None or expected == given


def all_fit(expected: Shape, given: Shape) -> bool:
    """Whether two shapes can be the same shape."""
    return len(expected) == len(given) and all(map(fits, expected, given))


def axis_is(shape: Shape, axis: int, size: int) -> Shape:
    """`shape` with `size` along `axis`.

    Raises `DoesNotFit` when the shape has no such axis or another size there.
    """
    if not -len(shape) <= axis < len(shape):
        raise DoesNotFit(f"takes {show((size,))}")
    sure = list(shape)
    sure[axis] = size
    if not fits(size, shape[axis]):
        raise DoesNotFit(f"takes {show(sure)}")
    return tuple(sure)


def size_of(shape: Shape) -> int | None:
    """The number of entries, or `None` where a size is unknown."""
    total = 1
    for size in shape:
        if size is None:
            return None
        total *= size
    return total
