"""Layers that shift and scale by statistics of what passes through them."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from nablad.problems import Refusal
from nablad_models.initialisers import ones, zeros
from nablad_models.layer import Call, Layer, per_example
from nablad_models.leaves import Leaf, Leaves
from nablad_models.reading import Unreadable
from nablad_models.shapes import DoesNotFit, Shape, all_fit, axis_is, show

# Equinox's layers are not used here. Its BatchNorm wants the name of a vmapped axis, so cannot see several
# batch axes or spatial axes at once, and keeps other running statistics than PyTorch and Lux. Its LayerNorm
# and GroupNorm clamp the variance by maximum(0, var), which halves the derivative at a constant example: from
# the third order on, wrong.


def batchnorm(channels: int, *, eps: float, momentum: float, affine: bool) -> Layer:
    """Batch normalisation of axis 0 of an example.

    Parameters scale and bias, state running_mean and running_var, all (channels). Eval mode uses the running
    statistics. Train mode uses the mean and the biased variance over all batch axes and all axes of an
    example but the first, and moves the running statistics by `momentum`, the variance by its unbiased
    estimate, as PyTorch and Lux do.

    Raises `Refusal("shape_mismatch")` in train mode for fewer than two values a channel, or without a batch
    axis.
    """

    def forward(params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        channel = call.batch_axes
        new_state = dict(state)
        if call.train:
            axes = tuple(axis for axis in range(x.ndim) if axis != channel)
            count = math.prod(x.shape[axis] for axis in axes)
            _check_batch(call, count)
            mean = jnp.mean(x, axes)
            var = jnp.mean(jnp.square(x - _along(mean, channel, x.ndim)), axes)
            moved = {"running_mean": mean, "running_var": var * (count / (count - 1))}
            for name, now in moved.items():
                old = state[name]
                new_state[name] = (1 - momentum) * old + momentum * now.astype(old.dtype)
        else:
            # State may rest in another float type than the one computed in; the answer follows x.
            mean, var = state["running_mean"].astype(x.dtype), state["running_var"].astype(x.dtype)
        y = (x - _along(mean, channel, x.ndim)) * _along(lax.rsqrt(var + eps), channel, x.ndim)
        if affine:
            y = y * _along(params["scale"], channel, x.ndim) + _along(params["bias"], channel, x.ndim)
        return y, new_state

    return Layer(
        gives=lambda shape: axis_is(shape, 0, channels),
        forward=forward,
        takes=(channels,),
        parameters={"scale": Leaf((channels,), ones), "bias": Leaf((channels,), zeros)} if affine else {},
        state={"running_mean": Leaf((channels,), zeros), "running_var": Leaf((channels,), ones)},
        keeps_shape=True,
    )


def layernorm(size: int | list[int], *, eps: float, affine: bool) -> Layer:
    """Each trailing block of shape `size` to mean 0 and variance 1; weight and bias `size`."""
    block = (size,) if isinstance(size, int) else tuple(size)

    def apply(leaves: Leaves, x: Array) -> Array:
        y = _standard(x, tuple(range(x.ndim)), eps)
        return y * leaves["weight"] + leaves["bias"] if affine else y

    return _trailing(
        block, apply, {"weight": Leaf(block, ones), "bias": Leaf(block, zeros)} if affine else {}
    )


def rmsnorm(size: int | list[int], *, eps: float, affine: bool) -> Layer:
    """Each trailing block of shape `size` divided by its root mean square; weight `size`."""
    block = (size,) if isinstance(size, int) else tuple(size)

    def apply(leaves: Leaves, x: Array) -> Array:
        y = x * lax.rsqrt(jnp.mean(jnp.square(x)) + eps)
        return y * leaves["weight"] if affine else y

    return _trailing(block, apply, {"weight": Leaf(block, ones)} if affine else {})


def groupnorm(sizes: list[int], *, eps: float, affine: bool) -> Layer:
    """Axis 0 of an example in groups, each to mean 0 and variance 1 together with all other axes.

    `sizes` is [groups, channels]; weight and bias (channels). As many groups as channels is an instance norm.
    """
    groups, channels = sizes
    if channels % groups:
        raise Unreadable(f"the number of groups must divide the number of channels, got {sizes}")

    def apply(leaves: Leaves, x: Array) -> Array:
        y = x.reshape(groups, channels // groups, *x.shape[1:])
        y = _standard(y, tuple(range(1, y.ndim)), eps).reshape(x.shape)
        if affine:
            y = y * _along(leaves["weight"], 0, x.ndim) + _along(leaves["bias"], 0, x.ndim)
        return y

    return Layer(
        gives=lambda shape: axis_is(shape, 0, channels),
        forward=per_example(apply),
        takes=(channels,),
        parameters={"weight": Leaf((channels,), ones), "bias": Leaf((channels,), zeros)} if affine else {},
        keeps_shape=True,
    )


def _standard(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """x with mean 0 and (biased) variance 1 along `axes`."""
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + eps)


def _trailing(block: Shape, apply: Callable[[Leaves, Array], Array], parameters: dict[str, Leaf]) -> Layer:
    def gives(shape: Shape) -> Shape:
        if len(shape) < len(block) or not all_fit(block, shape[-len(block) :]):
            raise DoesNotFit(f"takes {show((*shape[: -len(block)], *block))}")
        return (*shape[: -len(block)], *block)

    return Layer(
        gives=gives,
        forward=per_example(apply, rank=len(block)),
        takes=block,
        parameters=parameters,
        keeps_shape=True,
    )


def _along(vector: Array, axis: int, rank: int) -> Array:
    """`vector` laid along `axis` of an array of the given rank."""
    return vector.reshape(tuple(-1 if each == axis else 1 for each in range(rank)))


def _check_batch(call: Call, count: int) -> None:
    if call.batch_axes == 0:
        raise Refusal(
            "shape_mismatch",
            f"{call.path} (batchnorm) in train mode takes the statistics of a batch, but got one example "
            'without a batch axis; call the model with a batch, or use mode "eval".',
        )
    if count < 2:
        raise Refusal(
            "shape_mismatch",
            f"{call.path} (batchnorm) in train mode needs at least two values a channel, got {count}; "
            'send a larger batch, or use mode "eval".',
        )
