"""Affine maps of the last axis."""

from __future__ import annotations

import math

import equinox as eqx
from jax import Array

from nablad_models import initialisers
from nablad_models.activations import activation_function
from nablad_models.initialisers import uniform
from nablad_models.layer import Layer, followed_by, per_example
from nablad_models.leaves import Leaf, Leaves
from nablad_models.shapes import axis_is
from nablad_models.structure import filled


def dense(sizes: list[int], *, bias: bool, init: str) -> Layer:
    """`weight @ x + bias` with weight (out, in) and bias (out), for x of shape (in,) or (..., in)."""
    size_in, size_out = sizes
    parameters = {"weight": Leaf((size_out, size_in), initialisers.RULES[init](size_in, size_out))}
    if bias:
        parameters["bias"] = Leaf((size_out,), initialisers.bias(init, size_in))
    return _affine(size_in, size_out, parameters)


def siren(sizes: list[int], *, omega: float, first: bool) -> Layer:
    """`sin(omega * (weight @ x + bias))`, initialised so that activations keep their spread at any depth.

    The weights of the first layer are uniform on ±1/in, of the others on ±sqrt(6/in)/omega: Sitzmann et al.,
    "Implicit Neural Representations with Periodic Activation Functions" (2020), section 3.2 and supplement
    1.5.
    """
    size_in, size_out = sizes
    bound = 1 / size_in if first else math.sqrt(6 / size_in) / omega
    parameters = {
        "weight": Leaf((size_out, size_in), uniform(bound)),
        "bias": Leaf((size_out,), uniform(1 / math.sqrt(size_in))),
    }
    return followed_by(_affine(size_in, size_out, parameters), activation_function({"sin": omega}))


def _affine(size_in: int, size_out: int, parameters: dict[str, Leaf]) -> Layer:
    def apply(leaves: Leaves, x: Array) -> Array:
        return filled(eqx.nn.Linear, leaves, size_in, size_out, use_bias="bias" in parameters)(x)

    return Layer(
        gives=lambda shape: (*axis_is(shape, -1, size_in)[:-1], size_out),
        forward=per_example(apply, rank=1),
        takes=(size_in,),
        parameters=parameters,
    )
