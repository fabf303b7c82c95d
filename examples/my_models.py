"""Models for `nablad serve --models examples/my_models.py`: whatever is in MODELS is hosted under its name.

The file runs on the server with the server's rights, as any module that is imported. It is never uploaded.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from nablad_models import Model, from_equinox, from_flax, from_functions


class Field(eqx.Module):
    """A scalar field on the plane, u(x), written for one point: batch axes are mapped."""

    frequencies: jax.Array
    layers: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        one, other = jax.random.split(key)
        self.frequencies = jax.random.normal(one, (16, 2), jnp.float32)
        self.layers = eqx.nn.MLP(32, "scalar", 32, 2, activation=jnp.tanh, dtype=jnp.float32, key=other)

    def __call__(self, x: jax.Array) -> jax.Array:
        angles = self.frequencies @ x
        return self.layers(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]))


def oscillator_params(key: jax.Array) -> dict[str, Any]:
    """First parameters of a damped oscillator; any tree of arrays will do."""
    del key
    return {"damping": jnp.asarray(0.1, jnp.float32), "frequency": jnp.asarray(2 * math.pi, jnp.float32)}


def oscillator(params: dict[str, Any], t: jax.Array, start: jax.Array) -> dict[str, jax.Array]:
    """Its closed form at times t, from a deflection: whole batches, answers by name."""
    envelope = start * jnp.exp(-params["damping"] * t)
    return {"deflection": envelope * jnp.cos(params["frequency"] * t), "envelope": envelope}


MODELS: dict[str, Model] = {
    "field": from_equinox(Field(jax.random.key(0)), example=jnp.zeros(2)),
    "oscillator": from_functions(oscillator_params, oscillator, inputs={"t": (), "start": ()}),
}

try:
    import flax.linen as nn
except ImportError:  # pip install flax
    pass
else:

    class Classifier(nn.Module):
        """Two classes, with running statistics and dropout; Flax writes for batches."""

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
            x = nn.Dropout(0.1, deterministic=not train)(nn.tanh(x))
            return nn.Dense(2)(x)

    MODELS["classifier"] = from_flax(Classifier(), example=jnp.zeros(4))
