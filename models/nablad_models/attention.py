"""Attention of a sequence to itself."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from nablad_models.initialisers import uniform, zeros
from nablad_models.layer import Layer, per_example
from nablad_models.leaves import Leaf, Leaves
from nablad_models.reading import REQUIRED, Option, Unreadable, flag, read_options, shown, size
from nablad_models.shapes import DoesNotFit, Shape, axis_is, show
from nablad_models.structure import filled

ATTENTION = {
    "heads": Option(REQUIRED, size),
    "size": Option(REQUIRED, size),
    "bias": Option(True, flag),
    "causal": Option(False, flag),
}
PROJECTIONS = ("query_proj", "key_proj", "value_proj")


def read_attention(value: Any) -> dict[str, Any]:
    """`{"heads": 4, "size": 32, "bias": true, "causal": false}`."""
    if not isinstance(value, dict):
        raise Unreadable(f'expected {{"heads": 4, "size": 32}}, got {shown(value)}')
    return read_options(ATTENTION, value)


def attention(options: dict[str, Any]) -> Layer:
    """Multi-head self-attention of (sequence, size); if `causal`, no place sees what comes after it.

    Parameters as in PyTorch's MultiheadAttention: in_proj_weight (3 size, size), in_proj_bias (3 size),
    out_proj.weight (size, size), out_proj.bias (size).
    """
    heads, width, causal = options["heads"], options["size"], options["causal"]
    if width % heads:
        raise Unreadable(f"the number of heads must divide the size, got {heads} and {width}")
    biases = dict.fromkeys(
        ("use_query_bias", "use_key_bias", "use_value_bias", "use_output_bias"), options["bias"]
    )
    parameters = {"in_proj_weight": Leaf((3 * width, width), uniform(math.sqrt(6 / (4 * width))))}
    if options["bias"]:
        parameters["in_proj_bias"] = Leaf((3 * width,), zeros)
    parameters["out_proj.weight"] = Leaf((width, width), uniform(1 / math.sqrt(width)))
    if options["bias"]:
        parameters["out_proj.bias"] = Leaf((width,), zeros)

    def apply(leaves: Leaves, x: Array) -> Array:
        parts = {
            f"output_proj.{name}": leaves[f"out_proj.{name}"]
            for name in ("weight", "bias")[: 1 + options["bias"]]
        }
        for name in ("weight", "bias")[: 1 + options["bias"]]:
            thirds = jnp.split(leaves[f"in_proj_{name}"], 3)
            parts |= {f"{place}.{name}": third for place, third in zip(PROJECTIONS, thirds, strict=True)}
        mask = jnp.tri(x.shape[0], dtype=bool) if causal else None
        return filled(eqx.nn.MultiheadAttention, parts, heads, width, **biases)(x, x, x, mask)

    def gives(shape: Shape) -> Shape:
        if len(shape) < 2:
            raise DoesNotFit(f"takes {show((None, width))}")
        return axis_is(shape, -1, width)

    return Layer(gives=gives, forward=per_example(apply, rank=2), takes=(None, width), parameters=parameters)
