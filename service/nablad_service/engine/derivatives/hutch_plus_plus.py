"""Probes for one trace that decays fast: the range of the matrix first, exactly, and random signs beside it.

With Q an orthonormal basis of a part of the range, tr J = tr Q'JQ + tr (I - QQ')J(I - QQ'). The first is
one product for each column of Q. The second is estimated by signs that are projected, and is small where J is
nearly of low rank. Of K products K // 3 find the basis, as many take the trace on it, the rest are probes.

The basis is that of J'S for random signs S, and tr J' = tr J: products from the left exist wherever a loss
has a gradient. No derivative goes through Q, which the probes of the rest know nothing of: for every Q the
mean of the estimate is tr J, so that the gradient with Q held fixed is an unbiased estimate of the gradient
of tr J. Finite differences of the estimate are another one, since Q moves in them.

References: R. A. Meyer, C. Musco, C. Musco and D. P. Woodruff, Hutch++: Optimal Stochastic Trace Estimation,
SOSA 2021, algorithm 1; L. Giraud, J. Langou, M. Rozložník and J. van den Eshof, Rounding error analysis of
the classical Gram-Schmidt orthogonalization process, Numerische Mathematik 101 (2005): twice is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad_service.engine import values
from nablad_service.engine.derivatives.averaging import Samples
from nablad_service.engine.derivatives.row import Differentiation

KIND = "hutch++"
"""How the text asks for it."""


def parts(problem: Differentiation, samples: Samples, *, in_turn: bool) -> tuple[jax.Array, jax.Array]:
    """The trace on the basis, and what projected probes say of the rest: one number each, to be averaged.

    `in_turn` says whether the products that find the basis are made one after the other. With as many
    products as coordinates or more, the coordinates are the basis: the trace itself, and nothing beside it.
    """
    drawn, x = problem.drawn, problem.x
    assert drawn is not None
    if drawn.most >= x.size:
        return jnp.sum(samples(jnp.eye(x.size, dtype=x.dtype))), jnp.zeros(2, x.dtype)
    size = drawn.most // 3
    signs = drawn.draw(drawn.most - size)
    Q = orthonormal(_products(problem, signs[:size], in_turn=in_turn))
    G = signs[size:]
    G = G - (G @ Q.T) @ Q
    found = samples(jnp.concatenate([Q, G]))
    return jnp.sum(found[:size]), found[size:]


def _products(problem: Differentiation, S: jax.Array, *, in_turn: bool) -> jax.Array:
    """The rows s'J, as numbers that no derivative goes through."""
    x, captured = jax.tree.map(_fixed, (problem.x, problem.captured))
    _, pull = jax.vjp(lambda x: problem.function(x, captured), x)
    along: Callable[[Any], Any] = lambda s: pull(s)[0]  # noqa: E731
    return _fixed(jax.lax.map(along, S) if in_turn else jax.vmap(along)(S))


def _fixed(value: Any) -> Any:
    # Numbers of the text stay what they are: known while tracing.
    return jax.lax.stop_gradient(value) if values.is_float(value) else value


def orthonormal(Y: jax.Array) -> jax.Array:
    """Orthonormal rows that span those of Y; a row that adds nothing to those before it becomes zeros.

    Gram-Schmidt, each row twice, in a loop: a batched QR decomposition can hang on CPU, and requests that are
    computed together make batches.
    """
    largest = jnp.max(jnp.abs(Y), axis=1, keepdims=True)
    Y = Y / jnp.where(largest > 0, largest, 1.0)  # squares neither overflow nor vanish
    nothing = 10 * jnp.finfo(Y.dtype).eps

    def step(row: Any, Q: jax.Array) -> jax.Array:
        y = Y[row]
        beside = y - (Q @ y) @ Q
        beside = beside - (Q @ beside) @ Q
        length = jnp.linalg.norm(beside)
        new = length > nothing * jnp.linalg.norm(y)
        return Q.at[row].set(jnp.where(new, beside / jnp.where(new, length, 1.0), 0.0))

    return jax.lax.fori_loop(0, len(Y), step, jnp.zeros_like(Y))
