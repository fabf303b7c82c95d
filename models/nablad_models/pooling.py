"""Layers that summarise: windows of feature maps, or a whole axis."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jax import Array, lax

from nablad_models.layer import Layer, per_example
from nablad_models.reading import Unreadable
from nablad_models.shapes import DoesNotFit, Shape, show
from nablad_models.windows import feature_maps, slide, spread

MAX_POOLS = {1: eqx.nn.MaxPool1d, 2: eqx.nn.MaxPool2d, 3: eqx.nn.MaxPool3d}
AVG_POOLS = {1: eqx.nn.AvgPool1d, 2: eqx.nn.AvgPool2d, 3: eqx.nn.AvgPool3d}


def maxpool(
    kernel: int | list[int], *, dims: int, stride: int | list[int] | None, padding: int | list[int]
) -> Layer:
    """The largest value in each window of (channels, *spatial); the stride is by default the kernel."""
    return _pool(MAX_POOLS[dims], kernel, dims, stride, padding)


def avgpool(
    kernel: int | list[int], *, dims: int, stride: int | list[int] | None, padding: int | list[int]
) -> Layer:
    """The mean of each window of (channels, *spatial), zeros of the padding counted as PyTorch does."""
    return _pool(AVG_POOLS[dims], kernel, dims, stride, padding)


def _pool(
    kind: Callable[..., Callable[[Array], Array]],
    kernel: int | list[int],
    dims: int,
    stride: int | list[int] | None,
    padding: int | list[int],
) -> Layer:
    window = spread("kernel", kernel, dims)
    strides = window if stride is None else spread("stride", stride, dims)
    padded = spread("padding", padding, dims)
    if any(2 * pad > size for pad, size in zip(padded, window, strict=True)):
        raise Unreadable(f"padding {padding} may be at most half of the kernel {kernel}")
    pool = kind(kernel_size=window, stride=strides, padding=padded)
    return Layer(
        gives=feature_maps(None, None, dims, slide(window, strides, list(padded), (1,) * dims)),
        forward=per_example(lambda _, x: pool(x), rank=dims + 1),
        takes=None,
    )


def adaptive_avgpool(target: int | list[int], *, dims: int) -> Layer:
    """Means over bins so placed that the spatial sizes become `target`; 1 is the global mean.

    Bin i of m along n values reaches from floor(i n / m) to ceil((i + 1) n / m), as in PyTorch; Equinox
    places the bins differently where m does not divide n.
    """
    sizes = spread("size", target, dims)

    def apply(_: object, x: Array) -> Array:
        for axis, m in enumerate(sizes, start=1):
            n = x.shape[axis]
            bins = [lax.slice_in_dim(x, i * n // m, -(-(i + 1) * n // m), axis=axis) for i in range(m)]
            x = jnp.stack([jnp.mean(values, axis) for values in bins], axis)
        return x

    return Layer(
        gives=feature_maps(None, None, dims, lambda axis, _: sizes[axis]),
        forward=per_example(apply, rank=dims + 1),
        takes=None,
    )


def mean(axis: int) -> Layer:
    """The mean along one axis of an example: along 0, a sequence of vectors becomes one vector."""

    def gives(shape: Shape) -> Shape:
        if axis >= len(shape):
            raise DoesNotFit(
                f"takes examples of at least {axis + 1} axes such as {show((None,) * (axis + 1))}"
            )
        return (*shape[:axis], *shape[axis + 1 :])

    return Layer(gives=gives, forward=per_example(lambda _, x: jnp.mean(x, axis)))
