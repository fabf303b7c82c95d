"""The cost of a traced computation is counted after equal steps are merged and unused ones dropped."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from ask import ENGINE

from nablad_service.engine.costs import DEAR, Cost, cost

assert ENGINE  # 64-bit types are on
A, B = jnp.ones((4, 5), jnp.float32), jnp.ones((5, 6), jnp.float32)


def of(function: Any, *arguments: Any) -> Cost:
    return cost(jax.make_jaxpr(function)(*arguments))


def test_a_matrix_product_is_two_operations_an_entry_and_term() -> None:
    assert of(lambda a, b: a @ b, A, B) == Cost(2 * 4 * 5 * 6, 4 * (20 + 30 + 24))


def test_equal_subexpressions_are_counted_once() -> None:
    assert of(lambda a, b: (a @ b) + jnp.tanh(a @ b), A, B).flops == 240 + 24 * (1 + DEAR)


def test_what_nobody_reads_is_not_counted() -> None:
    def function(a: Any, b: Any) -> Any:
        _ = a @ b
        return jnp.sum(a)

    assert of(function, A, B).flops == 20


def test_calls_are_looked_into_and_merged() -> None:
    product = jax.jit(lambda a, b: a @ b)
    assert of(lambda a, b: product(a, b) + product(a, b), A, B).flops == 240 + 24


def test_a_loop_costs_its_length_times_its_body_and_keeps_its_body_s_memory() -> None:
    square = jnp.ones((8, 8), jnp.float32)

    def function(a: Any) -> Any:
        return jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=10)[0]

    found = of(function, square)
    assert found.flops == 10 * 2 * 8**3
    # Outside the matrix and the result; inside the carry before and after.
    assert found.peak_bytes == 2 * 256 + 2 * 256


def test_memory_is_freed_after_the_last_use() -> None:
    x = jnp.ones(1000, jnp.float32)

    def chain(x: Any) -> Any:
        for _ in range(20):
            x = jnp.sin(x)
        return x

    assert of(chain, x).peak_bytes == 3 * 4000
    assert of(jax.grad(lambda x: jnp.sum(chain(x))), x).peak_bytes > 20 * 4000


@pytest.mark.as_served
@pytest.mark.parametrize("width", [8, 64])
def test_nestings_of_one_gradient_penalty_cost_about_the_same_once_merged(width: int) -> None:
    w1, w2 = jnp.ones((width, width)), jnp.ones((width, 1))
    x = jnp.ones((16, width))

    def u(w: Any, x: Any) -> Any:
        return jnp.sum(jnp.tanh(x @ w[0]) @ w[1])

    def penalty(w: Any) -> Any:
        return jnp.sum(jax.grad(u, 1)(w, x) ** 2)

    def forward_over_reverse(w: Any) -> Any:
        g = jax.grad(u, 1)(w, x)
        return jax.jvp(lambda x: jax.grad(u, 0)(w, x), (x,), (2 * g,))[1]

    plain, other = of(jax.grad(penalty), (w1, w2)), of(forward_over_reverse, (w1, w2))
    assert 0.7 < other.flops / plain.flops < 1.3
    compiled = jax.jit(jax.grad(penalty)).lower((w1, w2)).compile().cost_analysis()
    assert 0.5 < plain.flops / compiled["flops"] < 2


def test_a_convolution_counts_its_kernel() -> None:
    x, k = jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 3, 3))
    assert of(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), x, k).flops == 2 * (2 * 5 * 64) * 27
