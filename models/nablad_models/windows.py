"""The arithmetic of sliding windows, for convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable

from nablad_models.reading import LARGEST_COUNT, Unreadable, choice, count, shown, whole
from nablad_models.shapes import DoesNotFit, Shape, axis_is, show

Padding = str | int | list[int]
Resize = Callable[[int, int], int]
"""The new size along a spatial axis, from the axis (0 the first spatial one) and the size."""


def spread(what: str, value: int | list[int], dims: int) -> tuple[int, ...]:
    """One number an axis; raises `Unreadable` where a list has another length than `dims`."""
    if isinstance(value, int):
        return (value,) * dims
    if len(value) != dims:
        raise Unreadable(f"{what} {value} has {len(value)} numbers, but there are {dims} spatial axes (dims)")
    return tuple(value)


def read_counts(value: object) -> int | list[int]:
    """A positive whole number, or one for each spatial axis: a kernel, a stride."""
    if not isinstance(value, list | tuple):
        return count(value)
    if not value:
        raise Unreadable("expected a whole number for each spatial axis, got []")
    return [count(each) for each in value]


def read_pads(value: object) -> int | list[int]:
    """A whole number from 0, or one for each spatial axis."""
    read = [whole(each) for each in value] if isinstance(value, list | tuple) else [whole(value)]
    if not read or max(read) > LARGEST_COUNT:
        raise Unreadable(f"expected whole numbers up to {LARGEST_COUNT}, got {shown(value)}")
    return read if isinstance(value, list | tuple) else read[0]


def read_padding(value: object) -> Padding:
    """The names "same" and "valid", or what `read_pads` takes."""
    return str(choice("padding", ["same", "valid"])(value)) if isinstance(value, str) else read_pads(value)


def read_dims(value: object) -> int:
    """The number of spatial axes."""
    if value not in (1, 2, 3):
        raise Unreadable(f"the number of spatial axes (dims) is 1, 2 or 3, got {shown(value)}")
    return whole(value)


def pads(padding: Padding, dims: int) -> str | tuple[tuple[int, int], ...]:
    """The padding as Equinox takes it."""
    if isinstance(padding, str):
        return padding.upper()
    return tuple((each, each) for each in spread("padding", padding, dims))


def slide(
    kernel: tuple[int, ...], stride: tuple[int, ...], padding: Padding, dilation: tuple[int, ...]
) -> Resize:
    """How many places a window takes along an axis."""
    sides = pads(padding, len(kernel))

    def resize(axis: int, size: int) -> int:
        if sides == "SAME":
            return -(-size // stride[axis])
        padded = size + (0 if isinstance(sides, str) else sum(sides[axis]))
        return (padded - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1

    return resize


def feature_maps(
    channels_in: int | None, channels_out: int | None, dims: int, resize: Resize
) -> Callable[[Shape], Shape]:
    """The shapes of a layer from (channels, *spatial) to (channels, *resized), channels as given or kept."""

    def gives(shape: Shape) -> Shape:
        wanted = (channels_in, *[None] * dims)
        if len(shape) != len(wanted):
            raise DoesNotFit(f"takes {show(wanted)}")
        if channels_in is not None:
            axis_is(shape, 0, channels_in)
        spatial = [None if size is None else resize(axis, size) for axis, size in enumerate(shape[1:])]
        if any(size is not None and size < 1 for size in spatial):
            raise DoesNotFit("has a window larger than the array along a spatial axis")
        return (shape[0] if channels_out is None else channels_out, *spatial)

    return gives
