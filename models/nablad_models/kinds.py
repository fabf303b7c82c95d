"""The table of layer kinds: how each is spelled in JSON and which function makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nablad_models import initialisers
from nablad_models.activations import activation, read_activation
from nablad_models.attention import attention, read_attention
from nablad_models.blocks import chain, parallel, residual
from nablad_models.convolution import conv, conv_transpose, read_sizes
from nablad_models.dense import dense, siren
from nablad_models.dropout import dropout
from nablad_models.embedding import embedding, position_embedding
from nablad_models.features import fourier, periodic, read_fourier, read_periodic
from nablad_models.joins import JOINS, join
from nablad_models.layer import Layer
from nablad_models.normalisation import batchnorm, groupnorm, layernorm, rmsnorm
from nablad_models.pooling import adaptive_avgpool, avgpool, maxpool, mean
from nablad_models.reading import (
    Nested,
    Option,
    Reader,
    axes,
    axis,
    below_one,
    choice,
    flag,
    fraction,
    one_or_more,
    optional,
    positive,
    present,
    size,
    sizes,
    sizes_or_none,
)
from nablad_models.reshaping import flatten, reshape, transpose
from nablad_models.shift import shift
from nablad_models.windows import read_counts, read_dims, read_padding, read_pads


@dataclass(frozen=True)
class Kind:
    """One kind of layer: a reader for the value beside its name, the function it goes to, and options."""

    read: Reader | Nested
    make: Callable[..., Layer]
    options: Mapping[str, Option] = field(default_factory=dict)


INIT = Option("uniform", choice("initialisation", list(initialisers.RULES)))
BIAS = Option(True, flag)
EPS = Option(1e-5, positive)
AFFINE = Option(True, flag)
ONE = Option(1, read_counts)
DIMS = Option(2, read_dims)
PADDING = Option(0, read_padding)
PADDING_MODE = Option("zeros", choice("padding mode", ["zeros", "reflect", "replicate", "circular"]))
JOIN = choice("join", list(JOINS))
AXIS = Option(0, axis)
POOL = {"dims": DIMS, "stride": Option(None, optional(read_counts)), "padding": Option(0, read_pads)}
CONV = {
    "dims": DIMS,
    "stride": ONE,
    "padding": PADDING,
    "dilation": ONE,
    "groups": Option(1, size),
    "bias": BIAS,
}

# A new kind of layer is a new row: {"name": value, "option": ...} becomes make(value, option=...).
# An "activation" beside any of them is applied to the answer.
KINDS: dict[str, Kind] = {
    "dense": Kind(sizes("in", "out"), dense, {"bias": BIAS, "init": INIT}),
    "siren": Kind(sizes("in", "out"), siren, {"omega": Option(30.0, positive), "first": Option(False, flag)}),
    "conv": Kind(read_sizes, conv, {**CONV, "padding_mode": PADDING_MODE, "init": INIT}),
    "conv_transpose": Kind(
        read_sizes, conv_transpose, {**CONV, "output_padding": Option(0, read_pads), "init": INIT}
    ),
    "maxpool": Kind(read_counts, maxpool, POOL),
    "avgpool": Kind(read_counts, avgpool, POOL),
    "adaptive_avgpool": Kind(read_counts, adaptive_avgpool, {"dims": DIMS}),
    "mean": Kind(axis, mean),
    "batchnorm": Kind(size, batchnorm, {"eps": EPS, "momentum": Option(0.1, fraction), "affine": AFFINE}),
    "layernorm": Kind(one_or_more, layernorm, {"eps": EPS, "affine": AFFINE}),
    "rmsnorm": Kind(one_or_more, rmsnorm, {"eps": EPS, "affine": AFFINE}),
    "groupnorm": Kind(sizes("groups", "channels"), groupnorm, {"eps": EPS, "affine": AFFINE}),
    "embedding": Kind(sizes("vocabulary", "size"), embedding),
    "position_embedding": Kind(sizes("length", "size"), position_embedding),
    "attention": Kind(read_attention, attention),
    "fourier": Kind(read_fourier, fourier),
    "periodic": Kind(read_periodic, periodic),
    "flatten": Kind(present, flatten),
    "reshape": Kind(sizes_or_none, reshape),
    "transpose": Kind(axes, transpose),
    "dropout": Kind(below_one, dropout),
    "activation": Kind(read_activation, activation),
    "shift": Kind(sizes_or_none, shift),
    "join": Kind(JOIN, join, {"axis": AXIS}),
    "chain": Kind(Nested(), chain),
    "residual": Kind(Nested(), residual, {"shortcut": Option(None, Nested())}),
    "parallel": Kind(
        Nested(branches=True),
        parallel,
        {"join": Option("concat", JOIN), "axis": AXIS},
    ),
}
