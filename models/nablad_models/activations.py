"""Elementwise functions by name, for `"activation": "tanh"` and `"activation": {"sin": 30.0}`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from nablad_models.layer import Layer, per_example
from nablad_models.reading import Unreadable, number, shown, unknown

Activation = Callable[[Array], Array]

# Names and meanings as in PyTorch (gelu is the exact one).
ACTIVATIONS: dict[str, Activation] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_swish": jax.nn.hard_swish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "selu": jax.nn.selu,
    "mish": jax.nn.mish,
    "softsign": jax.nn.soft_sign,
    "tanh_shrink": lambda x: x - jnp.tanh(x),
    "exp": jnp.exp,
    "square": jnp.square,
    "gaussian": lambda x: jnp.exp(-x * x),
    # An example may be a single number, which has no last axis.
    "softmax": lambda x: jax.nn.softmax(jnp.atleast_1d(x)).reshape(x.shape),
    "log_softmax": lambda x: jax.nn.log_softmax(jnp.atleast_1d(x)).reshape(x.shape),
}

# Those with one number, and what it is when nothing is said.
SCALED: dict[str, tuple[Callable[[Array, float], Array], float]] = {
    "sin": (lambda x, frequency: jnp.sin(frequency * x), 1.0),
    "cos": (lambda x, frequency: jnp.cos(frequency * x), 1.0),
    "swish": (lambda x, steepness: x * jax.nn.sigmoid(steepness * x), 1.0),
    "softplus": (lambda x, steepness: jax.nn.softplus(steepness * x) / steepness, 1.0),
    "elu": (jax.nn.elu, 1.0),
    "celu": (jax.nn.celu, 1.0),
    "leaky_relu": (jax.nn.leaky_relu, 0.01),
}


def read_activation(value: Any) -> Any:
    """The JSON of an activation in normal form: a name, or `{name: number}` for an unusual number.

    Raises `Unreadable`.
    """
    name, scale = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (value, None)
    if not isinstance(name, str):
        raise Unreadable(f"an activation is a name or {{name: number}}, got {shown(value)}")
    if name not in ACTIVATIONS and name not in SCALED:
        raise Unreadable(unknown("activation", name, [*ACTIVATIONS, *SCALED]))
    if scale is None:
        return name
    if name not in SCALED:
        raise Unreadable(f"the activation {name!r} takes no number; those that do are {', '.join(SCALED)}")
    scale = number(scale)
    if scale == 0:
        raise Unreadable(f"the number of the activation {name!r} may not be 0")
    return name if scale == SCALED[name][1] else {name: scale}


def activation_function(normal: Any) -> Activation:
    """The function that an activation in normal form names."""
    if isinstance(normal, str) and normal in ACTIVATIONS:
        return ACTIVATIONS[normal]
    name, scale = (normal, SCALED[normal][1]) if isinstance(normal, str) else next(iter(normal.items()))
    function = SCALED[name][0]
    return lambda x: function(x, scale)


def activation(normal: Any) -> Layer:
    """The function on its own as a layer; softmax and log_softmax act along the last axis of an example."""
    function = activation_function(normal)
    return Layer(
        gives=lambda shape: shape,
        forward=per_example(lambda _, x: function(x)),
        keeps_shape=True,
    )
