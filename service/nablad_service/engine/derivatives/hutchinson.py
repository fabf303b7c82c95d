"""`hutchinson_trace(y, x, v)`: the mean over probes of v'Jv, an unbiased estimate of the trace of J.

Per example where x has a leading axis of examples: the last axis holds the coordinates. Probes v are shaped
like x, or have one more leading axis. With E[v v'] = I (Rademacher, standard normal) the mean is tr J.

Reference: M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines, Communications in Statistics 19 (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    like,
    need_array,
)
from nablad_service.engine.values import Value
from nablad_service.language.signatures import OperatorSignature


def _over_probes(problem: Differentiation, one: Callable[[Any], Any]) -> Value:
    v = like(problem.vectors[0], problem.x)
    if v.ndim == problem.x.ndim:
        return one(v)
    return jnp.mean(jax.vmap(one)(v), axis=0)


def forward(problem: Differentiation) -> Value:
    """v'(J v) by jvp."""
    _, push = jax.linearize(problem.at, problem.x)
    return _over_probes(problem, lambda v: jnp.sum(v * push(v), axis=-1))


def reverse(problem: Differentiation) -> Value:
    """(v'J) v by vjp."""
    _, pull = jax.vjp(problem.at, problem.x)
    return _over_probes(problem, lambda v: jnp.sum(v * pull(v)[0], axis=-1))


def check(shapes: Shapes) -> None:
    """y and x of one shape with coordinates last; v like x, or with one more leading axis."""
    need_array(shapes.x, "hutchinson_trace")
    need_array(shapes.vectors[0], "hutchinson_trace", "the probes")
    x, y, v = tuple(shapes.x.shape), tuple(shapes.y.shape), tuple(shapes.vectors[0].shape)
    if x != y or not x:
        detail = f"hutchinson_trace needs a square Jacobian: value and variable of one shape, not {y} and {x}"
        raise Refusal("shape_mismatch", detail, extra={"shapes": [list(y), list(x)]})
    if x not in (v, v[1:]):
        detail = f"hutchinson_trace needs probes shaped {x} or (count, *{x}), not {v}"
        raise Refusal("shape_mismatch", detail, extra={"shapes": [list(x), list(v)]})


def independent_axes(shapes: Shapes) -> tuple[tuple[int, int], ...]:
    """All axes but the last, which holds the coordinates."""
    return tuple((axis, axis) for axis, length in enumerate(shapes.x.shape[:-1]) if length > 1)


ROW = DerivativeRow(
    OperatorSignature(
        "hutchinson_trace",
        "hutchinson_trace(y, x, v)",
        "Mean over probes v of v'Jv, per example: an estimate of the trace of the Jacobian.",
        "derivative",
        order=1,
    ),
    check,
    {"forward": forward, "reverse": reverse},
    lambda shapes, nesting: Choice("forward", "jvp and vjp tie, jvp needs less memory"),
    independent_axes,
)
