"""`hutchinson_trace`, `hutchinson`: the mean over probes of v'Jv, an unbiased estimate of the trace of J.

Per example where x has a leading axis of examples: the last axis holds the coordinates. Probes v are shaped
like x, or have one more leading axis. With E[v v'] = I (Rademacher, standard normal, sphere, orthogonal) the
mean is tr J.

Reference: M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines, Communications in Statistics 19 (1990).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives import hutch_plus_plus
from nablad_service.engine.derivatives.averaging import (
    Samples,
    standard_error,
    standard_error_of_blocks,
    until_small,
)
from nablad_service.engine.derivatives.in_turn import in_turn, one_group
from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    Strategy,
    like,
    need_array,
    need_square,
)
from nablad_service.engine.values import Value, mismatch
from nablad_service.language.signatures import OperatorSignature

MANY_EXAMPLES = 128
"""From so many on, one probe or coordinate keeps a CPU busy, and they are sent through in turn.

Measured in a loss differentiated in its parameters, two hidden layers of width 64, 2 to 16 probes: with 256
and 2048 examples one after the other takes 0.58-0.90 and 0.22-0.34 of the time of all at once, with 32
examples 1.06-1.41.
"""
Sampling: TypeAlias = Callable[[Differentiation], Samples]


def _forward_product(problem: Differentiation) -> Callable[[jax.Array], Any]:
    """v -> v'(J v), by jvp."""
    _, push = jax.linearize(problem.at, problem.x)
    return lambda v: jnp.sum(v * push(v), axis=-1)


def forward(problem: Differentiation) -> Samples:
    """v'(J v) by jvp, for all probes at once.

    A single probe has no axis of its own: mapped over one, XLA fuses less. Measured on two CPU cores,
    float32, in a loss differentiated in its parameters, width 64, 16 coordinates, 256 and 2048 examples,
    against jvp mapped over examples: 0.99 and 0.98 without that axis, 1.40 with it.
    """
    if number_of_probes(problem.shapes) == 1:
        return lambda v: jnp.sum(v * jax.jvp(problem.at, (problem.x,), (v[0],))[1], axis=-1)
    product = _forward_product(problem)
    return lambda v: jax.vmap(product)(v)


def reverse(problem: Differentiation) -> Samples:
    """(v'J) v by vjp, for all probes at once."""
    _, pull = jax.vjp(problem.at, problem.x)
    if number_of_probes(problem.shapes) == 1:
        return lambda v: jnp.sum(v * pull(v[0])[0], axis=-1)
    return lambda v: jax.vmap(lambda v: jnp.sum(v * pull(v)[0], axis=-1))(v)


def forward_scan(problem: Differentiation) -> Samples:
    """v'(J v) by jvp, one probe after the other; what a probe needs is made again when it is pulled back.

    Measured on two CPU cores, float32, in a loss differentiated in its parameters, width 64, against all at
    once, time and temporary memory: 16 probes, 64 coordinates and 256 examples 0.58 and 0.11, 64 probes 0.29
    and 0.03, 64 probes for 32 examples 1.46 and 0.04. Groups of 4, 8 and 16 probes at a time were never
    clearly faster (0.9 for 256 probes and 256 examples), and up to 5 times slower.
    """
    product = _forward_product(problem)
    return lambda v: in_turn(product, v)


def _all_samples(problem: Differentiation, sampling: Sampling) -> jax.Array:
    """One for each probe that is given or drawn beforehand."""
    v = like(problem.vectors[0], problem.x)
    return sampling(problem)(v[None] if v.ndim == problem.x.ndim else v)


def mean(sampling: Sampling) -> Strategy:
    """The estimate alone."""

    def strategy(problem: Differentiation) -> Value:
        if _range_first(problem):
            on_basis, beside = _by_range(problem, sampling)
            return on_basis + jnp.mean(beside)
        return jnp.mean(_all_samples(problem, sampling), axis=0)

    return strategy


def _range_first(problem: Differentiation) -> bool:
    return problem.drawn is not None and problem.drawn.kind == hutch_plus_plus.KIND


def _by_range(problem: Differentiation, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    return hutch_plus_plus.parts(problem, sampling(problem), in_turn=sampling is forward_scan)


def mean_and_standard_error(sampling: Sampling) -> Strategy:
    """The estimate and its standard error, from the spread of the probes; with `until` also how many.

    Probes that are given count as independent, s / √K: for orthogonal ones, which do not say that they are,
    that is too much. Those drawn here are known to be. With `until` each batch has signs of its own, and
    s / √K is kept: too much for orthogonal ones, never too little.
    """

    def strategy(problem: Differentiation) -> Value:
        drawn = problem.drawn
        if _range_first(problem):
            on_basis, beside = _by_range(problem, sampling)
            return on_basis + jnp.mean(beside), standard_error(beside)
        if drawn is not None and drawn.until is not None:
            limit = drawn.until.astype(problem.x.dtype)
            found = until_small(sampling(problem), drawn.draw, drawn.most, limit)
            return found.mean, found.standard_error, found.used
        samples = _all_samples(problem, sampling)
        if drawn is not None and drawn.kind == "orthogonal":
            error = standard_error_of_blocks(samples, problem.x.shape[-1])
        else:
            error = standard_error(samples)
        return jnp.mean(samples, axis=0), error

    return strategy


def check(shapes: Shapes, operator: str = "hutchinson_trace") -> None:
    """y and x of one shape with coordinates last; v like x, or with one more leading axis."""
    need_square(shapes, operator)
    need_array(shapes.vectors[0], operator, "the probes")
    x, v = tuple(shapes.x.shape), tuple(shapes.vectors[0].shape)
    if x not in (v, v[1:]):
        raise mismatch(f"{operator} needs probes shaped {x} or {several(x)}, not {v}", x, v)


def several(shape: tuple[int, ...]) -> str:
    """The shape of several probes, in words."""
    return f"({', '.join(['count', *map(str, shape)])})"


def independent_axes(shapes: Shapes) -> tuple[tuple[int, int], ...]:
    """All axes but the last, which holds the coordinates."""
    return tuple((axis, axis) for axis, length in enumerate(shapes.x.shape[:-1]) if length > 1)


def number_of_probes(shapes: Shapes) -> int:
    """Along their leading axis; 1 without one."""
    v = shapes.vectors[0].shape
    return int(v[0]) if len(v) > len(shapes.x.shape) else 1


def check_several(shapes: Shapes) -> None:
    """As above, with a leading axis of at least two probes: one alone says nothing about its error."""
    check(shapes, "hutchinson")
    x, v = tuple(shapes.x.shape), tuple(shapes.vectors[0].shape)
    if len(v) == len(x) or v[0] < 2:
        detail = f"hutchinson needs two probes or more, {several(x)}, not {v}; hutchinson_trace takes one"
        raise mismatch(detail, x, v)


def many_examples(shapes: Shapes) -> bool:
    """Whether one probe or coordinate, for all examples, is work enough."""
    return shapes.x_size // max(shapes.x.shape[-1], 1) >= MANY_EXAMPLES


def choose(shapes: Shapes) -> Choice:
    """Forward, in turn where one probe is work enough: jvp and vjp tie, and jvp needs less memory."""
    if number_of_probes(shapes) > 1 and many_examples(shapes):
        return Choice("forward_scan", "one probe after the other, each for many examples")
    return Choice("forward", "jvp and vjp tie, jvp needs less memory")


SAMPLINGS: dict[str, Sampling] = {
    "forward": forward,
    "reverse": reverse,
    "forward_scan": forward_scan,
}
OBSTACLES = {
    "forward_scan": one_group(number_of_probes),
}

ROW = DerivativeRow(
    OperatorSignature(
        "hutchinson_trace",
        "hutchinson_trace(y, x, v=None, probes=None, kind='rademacher', seed=0)",
        "Mean of v'Jv over probes, given or drawn, per example: an estimate of the trace of the Jacobian.",
        "derivative",
        order=1,
    ),
    check,
    {name: mean(sampling) for name, sampling in SAMPLINGS.items()},
    choose,
    "reverse",
    independent_axes,
    obstacles=OBSTACLES,
)

WITH_ERROR = DerivativeRow(
    OperatorSignature(
        "hutchinson",
        "hutchinson(y, x, v=None, probes=None, until=None, kind='rademacher', seed=0)",
        "(estimate, standard error) of the trace of the Jacobian, per example, from two probes or more; "
        "until=0.01 draws no more than it takes, and gives how many as a third value.",
        "derivative",
        order=1,
    ),
    check_several,
    {name: mean_and_standard_error(sampling) for name, sampling in SAMPLINGS.items()},
    choose,
    "reverse",
    independent_axes,
    obstacles=OBSTACLES,
)
