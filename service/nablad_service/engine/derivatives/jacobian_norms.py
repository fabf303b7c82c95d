"""`sum(jacobian(y, params)**2, axis=1)` and its kin: squared norms of rows, without the Jacobian.

No text calls these: where a program reads a Jacobian or a gradient in parameters only to square and sum it,
`nablad_service.engine.fusing` puts one of them in its place. Strategies: the identity of layers, the whole
Jacobian first, as the text says, or a few of its rows at a time.

Measured on two busy CPU cores, float32, value and gradient of a loss on an MLP of two hidden layers, times
that of `jax.jacrev` by hand: `layerwise` 0.15 to 0.0005 (width 64 and 32 examples to width 256 and 256
examples), its memory by count 0.06 to 0.008; `reverse_chunked` 0.7 to 1.2, its memory 0.6 to 0.07. The whole
table is in `docs/engine.md`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nablad_service.engine.derivatives import gradient, jacobian, layerwise
from nablad_service.engine.derivatives.in_turn import in_turn, one_group
from nablad_service.engine.derivatives.row import (
    DerivativeRow,
    Differentiation,
    Shapes,
    Strategy,
)
from nablad_service.language.signatures import OperatorSignature


def forward(problem: Differentiation) -> Any:
    """The whole Jacobian by columns, squared and summed."""
    return _of_rows(jacobian.forward(problem), problem)


def reverse(problem: Differentiation) -> Any:
    """The whole Jacobian by rows, squared and summed."""
    return _of_rows(jacobian.reverse(problem), problem)


def reverse_chunked(problem: Differentiation) -> Any:
    """Rows a few at a time, each squared and summed before the next are made.

    Measured with two convolutions as well: 4.1 times the time of `reverse`, 0.59 of its memory by count. The
    static rule takes it only where the whole Jacobian is more than the server allows.
    """
    x, unravel = ravel_pytree(problem.x)
    y, pull = jax.vjp(lambda x: problem.at(unravel(x)).reshape(-1), x)
    each = jnp.eye(y.size, dtype=y.dtype)
    return in_turn(lambda u: jnp.sum(pull(u)[0] ** 2), each, at_once=jacobian.CHUNK)


def _of_rows(entries: Any, problem: Differentiation) -> Any:
    return jnp.sum(entries.reshape(problem.shapes.y_size, -1) ** 2, axis=1)


def whole(shapes: Shapes) -> tuple[int, ...]:
    """The Jacobian that the plain strategies build."""
    return shapes.y_size, shapes.x_size


STRATEGIES: dict[str, Strategy] = {
    "layerwise": layerwise.norms,
    "forward": forward,
    "reverse": reverse,
    "reverse_chunked": reverse_chunked,
}


def mean(strategy: Strategy) -> Strategy:
    """The mean square of each row."""
    return lambda problem: strategy(problem) / problem.shapes.x_size


def of_gradient(strategy: Strategy) -> Strategy:
    """The squared norm of a gradient that is formed."""

    def norm(problem: Differentiation) -> Any:
        leaves = jax.tree.leaves(strategy(problem))
        return jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in leaves]))

    return norm


def _row(name: str, doc: str, strategies: dict[str, Strategy]) -> DerivativeRow:
    return DerivativeRow(
        OperatorSignature(name, f"{name}(y, x)", doc, "derivative", order=1),
        lambda shapes: None,
        strategies,
        jacobian.choose,
        "reverse",
        result_shape=lambda shapes: (shapes.y_size,),
        obstacles={
            "layerwise": layerwise.obstacle,
            "reverse_chunked": one_group(lambda shapes: shapes.y_size, jacobian.CHUNK),
        },
        preferred=("layerwise",),
        builds={"forward": whole, "reverse": whole},
    )


ROW = _row("jacobian_norms", "Squared norms of the rows of a Jacobian.", STRATEGIES)
MEAN = _row(
    "jacobian_mean_squares",
    "Mean squares of the rows of a Jacobian.",
    {name: mean(strategy) for name, strategy in STRATEGIES.items()},
)
GRADIENT = DerivativeRow(
    OperatorSignature(
        "gradient_norm", "gradient_norm(y, x)", "Squared norm of a gradient.", "derivative", order=1
    ),
    gradient.check,
    {
        "layerwise": lambda problem: layerwise.norms(problem).reshape(()),
        **{name: of_gradient(strategy) for name, strategy in gradient.ROW.strategies.items()},
    },
    gradient.choose,
    gradient.ROW.in_reverse,
    obstacles={"layerwise": layerwise.obstacle},
    preferred=("layerwise",),
    builds=dict.fromkeys(gradient.ROW.strategies, whole),
)
