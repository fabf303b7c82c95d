"""Fixed features of coordinates: random Fourier features and exact periods."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from nablad_models.initialisers import normal
from nablad_models.layer import Layer, per_example
from nablad_models.leaves import Leaf, Leaves
from nablad_models.reading import (
    REQUIRED,
    Option,
    Unreadable,
    count,
    optional,
    positive,
    read_options,
    shown,
    size,
    whole,
)
from nablad_models.shapes import axis_is

FOURIER = {
    "in": Option(REQUIRED, size),
    "features": Option(REQUIRED, size),
    "scale": Option(1.0, positive),
    "seed": Option(0, whole),
}


def read_fourier(value: Any) -> dict[str, Any]:
    """`{"in": 2, "features": 64, "scale": 1.0, "seed": 0}`."""
    if not isinstance(value, dict):
        raise Unreadable(f'expected {{"in": 2, "features": 64}}, got {shown(value)}')
    return read_options(FOURIER, value)


def fourier(options: dict[str, Any]) -> Layer:
    """`[cos(2 pi B x), sin(2 pi B x)]`, 2 * features values, B (features, in) normal with deviation `scale`.

    Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions" (2020). B is drawn from
    `seed`, is not trained, and is part of the state as `frequencies`, so that it can be replaced and is saved
    with a model.
    """
    size_in, features = options["in"], options["features"]

    def initialise(_: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        own = np.random.Generator(np.random.PCG64(options["seed"]))
        return normal(options["scale"])(own, shape)

    def apply(leaves: Leaves, x: Array) -> Array:
        phase = 2 * math.pi * (leaves["frequencies"].astype(x.dtype) @ x)
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])

    return Layer(
        gives=lambda shape: (*axis_is(shape, -1, size_in)[:-1], 2 * features),
        forward=per_example(apply, rank=1),
        takes=(size_in,),
        state={"frequencies": Leaf((features, size_in), initialise)},
    )


PERIODIC = {"periods": Option(REQUIRED, lambda value: _periods(value)), "harmonics": Option(1, count)}


def read_periodic(value: Any) -> dict[str, Any]:
    """`{"periods": [2.0, null], "harmonics": 1}`."""
    if not isinstance(value, dict):
        raise Unreadable(f'expected {{"periods": [2.0, null]}}, got {shown(value)}')
    return read_options(PERIODIC, value)


def _periods(value: Any) -> list[float | None]:
    if not isinstance(value, list | tuple) or not value:
        raise Unreadable(f"expected a list with a period, or null, for each coordinate, got {shown(value)}")
    return [optional(positive)(each) for each in value]


def periodic(options: dict[str, Any]) -> Layer:
    """Coordinates with a period P as `cos(2 pi k x / P), sin(2 pi k x / P)`, k to `harmonics`; others as is.

    What follows is then exactly periodic, with all its derivatives.
    """
    periods, harmonics = options["periods"], options["harmonics"]

    def apply(_: Leaves, x: Array) -> Array:
        made: list[Array] = []
        for place, period in enumerate(periods):
            if period is None:
                made.append(x[place])
                continue
            waves = [2 * math.pi * k / period * x[place] for k in range(1, harmonics + 1)]
            made += [function(wave) for wave in waves for function in (jnp.cos, jnp.sin)]
        return jnp.stack(made)

    width = sum(1 if period is None else 2 * harmonics for period in periods)
    return Layer(
        gives=lambda shape: (*axis_is(shape, -1, len(periods))[:-1], width),
        forward=per_example(apply, rank=1),
        takes=(len(periods),),
    )
