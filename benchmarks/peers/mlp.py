"""The loss that everybody computes: a multilayer perceptron with tanh, its mean square error.

Imported by the benchmarks and, in their own environment, by the peers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PROGRAM = "mean((model(x) - y)**2)"
"""The same for nablad, with the preset `mlp`."""


def sizes() -> tuple[int, ...]:
    """Widths of the layers, inputs and outputs included, from the environment: `MLP_SIZES=4,16,8,1`."""
    return tuple(map(int, os.environ["MLP_SIZES"].split(",")))


def shapes(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by name."""
    found: dict[str, tuple[int, ...]] = {}
    for number, (inner, outer) in enumerate(pairwise(widths), 1):
        found[f"layer_{number}.weight"] = (outer, inner)
        found[f"layer_{number}.bias"] = (outer,)
    return found


def drawn(widths: Sequence[int], examples: int) -> tuple[dict[str, Any], Any, Any]:
    """Parameters, x and y in float32."""
    rng = np.random.default_rng(0)
    params = {
        name: (rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1])))
        for name, shape in shapes(widths).items()
    }
    x, y = (rng.standard_normal((examples, width), dtype=np.float32) for width in (widths[0], widths[-1]))
    return params, x, y


def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
    """The mean square error."""
    layers = len(params) // 2
    for number in range(1, layers + 1):
        weight, bias = params[f"layer_{number}.weight"], params[f"layer_{number}.bias"]
        # With `weight.T`, XLA for CPUs copies the weights to transpose their gradient: twice the time.
        x = jnp.einsum("bi,oi->bo", x, weight) + bias
        x = jnp.tanh(x) if number < layers else x
    return jnp.mean((x - y) ** 2)


def flat(params: dict[str, Any]) -> Any:
    """All parameters as one vector, which is the least that a peer can be sent."""
    return np.concatenate([leaf.ravel() for leaf in params.values()])


def flat_gradient(widths: Sequence[int]) -> Any:
    """The gradient of the loss in a vector of parameters, compiled; x and y may be vectors too."""

    def of_vector(vector: Any, x: Any, y: Any) -> Any:
        params, start = {}, 0
        for name, shape in shapes(widths).items():
            size = int(np.prod(shape))
            params[name] = vector[start : start + size].reshape(shape)
            start += size
        return loss(params, x.reshape(-1, widths[0]), y.reshape(-1, widths[-1]))

    return jax.jit(jax.grad(of_vector))
