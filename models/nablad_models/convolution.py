"""Convolutions over one to three spatial axes, channels first, with the names and layouts of PyTorch."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from nablad_models import initialisers
from nablad_models.layer import Layer, per_example
from nablad_models.leaves import Leaf, Leaves
from nablad_models.reading import Unreadable, shown, size
from nablad_models.structure import filled
from nablad_models.windows import Padding, feature_maps, pads, read_counts, slide, spread


def read_sizes(value: Any) -> list[Any]:
    """`[in, out, kernel]`, the kernel one number or one for each spatial axis."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise Unreadable(f"expected [in, out, kernel], got {shown(value)}")
    return [size(value[0]), size(value[1]), read_counts(value[2])]


def conv(
    sizes: list[Any],
    *,
    dims: int,
    stride: int | list[int],
    padding: Padding,
    dilation: int | list[int],
    groups: int,
    padding_mode: str,
    bias: bool,
    init: str,
) -> Layer:
    """Convolution of (in, *spatial), weight (out, in / groups, *kernel), bias (out)."""
    size_in, size_out, _ = sizes
    _check_groups(groups, size_in, size_out)
    kernel, strides = spread("kernel", sizes[2], dims), spread("stride", stride, dims)
    dilations = spread("dilation", dilation, dims)
    options = {
        "stride": strides,
        "padding": pads(padding, dims),
        "dilation": dilations,
        "groups": groups,
        "use_bias": bias,
        "padding_mode": padding_mode.upper(),
    }

    def apply(leaves: Leaves, x: Array) -> Array:
        arrays = _with_bias_along_channels(leaves, dims)
        return filled(eqx.nn.Conv, arrays, dims, size_in, size_out, kernel, **options)(x)

    return Layer(
        gives=feature_maps(size_in, size_out, dims, slide(kernel, strides, padding, dilations)),
        forward=per_example(apply, rank=dims + 1),
        takes=(size_in, *[None] * dims),
        parameters=_parameters((size_out, size_in // groups, *kernel), size_out, bias, init),
    )


def conv_transpose(
    sizes: list[Any],
    *,
    dims: int,
    stride: int | list[int],
    padding: Padding,
    output_padding: int | list[int],
    dilation: int | list[int],
    groups: int,
    bias: bool,
    init: str,
) -> Layer:
    """The transpose of the convolution from out to in with the same weight.

    Weight (in, out / groups, *kernel), bias (out), as in PyTorch.
    The answer has the size `(n - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1`,
    or `n * stride` for padding "same".
    """
    size_in, size_out, _ = sizes
    _check_groups(groups, size_in, size_out)
    kernel, strides = spread("kernel", sizes[2], dims), spread("stride", stride, dims)
    dilations, extra = spread("dilation", dilation, dims), spread("output_padding", output_padding, dims)
    if any(more >= step for more, step in zip(extra, strides, strict=True)):
        raise Unreadable(f"output_padding {output_padding} must be smaller than stride {stride}")
    if padding == "same" and any(extra):
        raise Unreadable('output_padding has no meaning beside padding "same"')
    sides = pads(padding, dims)
    options = {
        "stride": strides,
        "padding": sides,
        "output_padding": extra,
        "dilation": dilations,
        "groups": groups,
        "use_bias": bias,
    }

    def apply(leaves: Leaves, x: Array) -> Array:
        # Equinox keeps the weight of the convolution that it runs on the dilated input: out and in swapped
        # within each group, space reversed.
        weight = leaves["weight"].reshape(groups, size_in // groups, size_out // groups, *kernel)
        weight = jnp.swapaxes(weight, 1, 2).reshape(size_out, size_in // groups, *kernel)
        weight = jnp.flip(weight, axis=tuple(range(2, dims + 2)))
        arrays = _with_bias_along_channels({**leaves, "weight": weight}, dims)
        return filled(eqx.nn.ConvTranspose, arrays, dims, size_in, size_out, kernel, **options)(x)

    def resize(axis: int, size: int) -> int:
        if sides == "SAME":
            return size * strides[axis]
        trimmed = 0 if isinstance(sides, str) else sum(sides[axis])
        return (size - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - trimmed + extra[axis]

    return Layer(
        gives=feature_maps(size_in, size_out, dims, resize),
        forward=per_example(apply, rank=dims + 1),
        takes=(size_in, *[None] * dims),
        parameters=_parameters((size_in, size_out // groups, *kernel), size_out, bias, init),
    )


def _parameters(shape: tuple[int, ...], size_out: int, bias: bool, init: str) -> dict[str, Leaf]:
    window = math.prod(shape[2:])
    # Fans as PyTorch counts them, also where a transposed convolution has them the other way round.
    fan_in, fan_out = shape[1] * window, shape[0] * window
    parameters = {"weight": Leaf(shape, initialisers.RULES[init](fan_in, fan_out))}
    if bias:
        parameters["bias"] = Leaf((size_out,), initialisers.bias(init, fan_in))
    return parameters


def _with_bias_along_channels(leaves: Leaves, dims: int) -> Leaves:
    return {**leaves, "bias": leaves["bias"].reshape(-1, *[1] * dims)} if "bias" in leaves else leaves


def _check_groups(groups: int, size_in: int, size_out: int) -> None:
    if size_in % groups or size_out % groups:
        raise Unreadable(
            f"groups {groups} must divide both {size_in} channels in and {size_out} channels out"
        )
