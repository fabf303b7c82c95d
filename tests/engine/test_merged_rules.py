"""Equal steps with derivatives of their own: merged where they are JAX's, and never where they may differ."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nablad_service.engine.jaxprs import equations
from nablad_service.engine.merged import without_repetition

X = jnp.linspace(-2.0, 2.0, 7)


def calls(function: Any) -> int:
    """How many functions with rules of their own are called."""
    jaxpr = jax.make_jaxpr(without_repetition(function, differentiable=True))(X)
    return sum(one.primitive.name == "custom_jvp_call" for one in equations(jaxpr))


def test_a_value_and_its_derivative_call_a_function_of_jax_once() -> None:
    """The rule of softplus computes softplus once more."""

    def function(x: Any) -> Any:
        value, pull = jax.vjp(jax.nn.softplus, x)
        return jax.nn.softplus(x) + value * pull(jnp.ones_like(x))[0]

    assert calls(function) == 1
    found = jax.grad(lambda x: jnp.sum(without_repetition(function, differentiable=True)(x)))(X)
    logistic = 1 / (1 + np.exp(-np.asarray(X)))
    softplus = np.log1p(np.exp(np.asarray(X)))
    expected = logistic + logistic**2 + softplus * logistic * (1 - logistic)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def scaled_backwards(scale: float) -> Any:
    """The identity, with a derivative that is not its own."""

    @jax.custom_jvp
    def same(x: Any) -> Any:
        return 1.0 * x

    @same.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        return same(*primals), scale * tangents[0]

    return same


def test_functions_of_equal_values_and_other_rules_stay_apart() -> None:
    one, other = scaled_backwards(2.0), scaled_backwards(-5.0)

    def function(x: Any) -> Any:
        return one(x) + other(x)

    assert calls(function) == 2
    found = jax.grad(lambda x: jnp.sum(without_repetition(function, differentiable=True)(x)))(X)
    np.testing.assert_array_equal(found, np.full(7, -3.0))
