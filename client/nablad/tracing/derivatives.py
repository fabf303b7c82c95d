"""The operators that differentiate: of a value, with respect to a name."""

from collections.abc import Mapping
from typing import Any, NamedTuple, overload

from nablad.tracing.errors import TraceError
from nablad.tracing.expressions import call
from nablad.tracing.graph import Expression, Part, Variable
from nablad.tracing.models import Model
from nablad.tracing.operands import operand, option
from nablad.tracing.recorder import current, part_of
from nablad.tracing.symbols import Symbol, record, record_together


class Estimate(NamedTuple):
    """A stochastic estimate and its standard error: traced values, or arrays that a client received."""

    value: Any
    standard_error: Any


class AdaptiveEstimate(NamedTuple):
    """An estimate that went on until it was accurate, its standard error, and how many probes it took."""

    value: Any
    standard_error: Any
    probes: Any


def grad(y: Any, x: Any) -> Symbol:
    """dy/dx of a scalar `y`, everything else fixed; shaped like `x`, a tree for `model.params`."""
    return _derivative("grad", y, x)


def jacobian(y: Any, x: Any) -> Symbol:
    """Every entry of dy/dx: `y.shape + x.shape`, for `model.params` `(y.size, number of parameters)`."""
    return _derivative("jacobian", y, x)


def batched_jacobian(y: Any, x: Any) -> Symbol:
    """One Jacobian per example of the leading axis, shape `(batch, y size, x size)`."""
    return _derivative("batched_jacobian", y, x)


def d(u: Any, *xs: Any) -> Symbol:
    """The partial derivative of `u` by each of `xs` in turn: `d(u, x, x)` is u_xx.

    Of scalars, or elementwise over batches of one shape.

    Raises:
        TraceError: no variable, or one that is no name.
    """
    if not xs:
        raise TraceError("d(u, x) needs at least one variable to differentiate by")
    return record(_expression("d", u, xs, ()))


def jvp(y: Any, x: Any, v: Any) -> Symbol:
    """J v for J = dy/dx: `v` is shaped like `x`, the result like `y`."""
    return _derivative("jvp", y, x, v)


def vjp(y: Any, x: Any, u: Any) -> Symbol:
    """J' u for J = dy/dx: `u` is shaped like `y`, the result like `x`."""
    return _derivative("vjp", y, x, u)


def jacobian_vector_product(y: Any, x: Any, v: Any) -> Symbol:
    """The long name of `jvp`."""
    return _derivative("jacobian_vector_product", y, x, v)


def vector_jacobian_product(y: Any, x: Any, u: Any) -> Symbol:
    """The long name of `vjp`."""
    return _derivative("vector_jacobian_product", y, x, u)


def hvp(y: Any, x: Any, v: Any) -> Symbol:
    """H v for the Hessian H of a scalar `y`; shaped like `x`."""
    return _derivative("hvp", y, x, v)


def hessian(y: Any, x: Any) -> Symbol:
    """The Hessian of a scalar `y`, shape `x.shape + x.shape`."""
    return _derivative("hessian", y, x)


def laplacian(u: Any, x: Any) -> Symbol:
    """The exact trace of the Hessian; per example where `u.shape` is a leading part of `x.shape`."""
    return _derivative("laplacian", u, x)


def divergence(f: Any, x: Any) -> Symbol:
    """The exact trace of df/dx over the last axis, one per example."""
    return _derivative("divergence", f, x)


def hutchinson_trace(
    f: Any, x: Any, v: Any = None, *, probes: Any = None, kind: str = "rademacher", seed: Any = 0
) -> Symbol:
    """The mean over probes of v' J v, estimating `divergence`; `v` like `x`, or one more leading axis.

    Without `v` it draws `probes` of a `kind`, "rademacher", "normal", "sphere" or "orthogonal", by `seed`.
    The kind "hutch++" is for one matrix whose spectrum decays fast, the Hessian of a loss in its parameters
    above all: `probes` products, of which a third find its range.
    """
    return record(_estimate("hutchinson_trace", f, x, v, probes, None, kind, seed))


@overload
def hutchinson(f: Any, x: Any, v: Any) -> Estimate: ...


@overload
def hutchinson(f: Any, x: Any, *, probes: Any, kind: str = ..., seed: Any = ...) -> Estimate: ...


@overload
def hutchinson(
    f: Any, x: Any, *, until: Any, probes: Any = ..., kind: str = ..., seed: Any = ...
) -> AdaptiveEstimate: ...


def hutchinson(
    f: Any,
    x: Any,
    v: Any = None,
    *,
    probes: Any = None,
    until: Any = None,
    kind: str = "rademacher",
    seed: Any = 0,
) -> Estimate | AdaptiveEstimate:
    """`hutchinson_trace` together with its standard error.

    With `until` probes are drawn until the standard error of every example is at most that, at most `probes`
    of them (64); the number that it took is a third value.
    """
    expression = _estimate("hutchinson", f, x, v, probes, until, kind, seed)
    if until is not None:
        return AdaptiveEstimate(*record_together(expression, 3))
    return Estimate(*record_together(expression, 2))


def _estimate(name: str, f: Any, x: Any, v: Any, probes: Any, until: Any, kind: str, seed: Any) -> Expression:
    if v is not None:
        if probes is not None or until is not None:
            raise TraceError(f"{name} takes the probes v, or probes= and until= to draw its own, not both")
        return _expression(name, f, (x,), (v,))
    if probes is None and until is None:
        raise TraceError(f"{name} lacks probes: give v, or say how many it draws, probes=16")
    drawing = {
        "probes": None if probes is None else operand(probes),
        "until": None if until is None else operand(until),
        "kind": None if kind == "rademacher" else option(kind),
        "seed": None if isinstance(seed, int) and seed == 0 else operand(seed),
    }
    said = {keyword: part for keyword, part in drawing.items() if part is not None}
    return _expression(name, f, (x,), (), said)


def _derivative(name: str, y: Any, x: Any, *vectors: Any) -> Symbol:
    return record(_expression(name, y, (x,), vectors))


def _expression(
    name: str,
    y: Any,
    xs: tuple[Any, ...],
    vectors: tuple[Any, ...],
    keywords: Mapping[str, Part] | None = None,
) -> Expression:
    current(f"nablad.{name}")
    if not isinstance(y, Symbol):
        raise TraceError(
            f"the first argument of {name} is a traced value, not a value of type {type(y).__name__}"
        )
    for x in xs:
        _require_name(name, y, x)
    arguments = [operand(argument) for argument in (y, *xs, *vectors)]
    return call(name, arguments, keywords, named=slice(1, 1 + len(xs)))


def _require_name(name: str, y: Symbol, x: Any) -> None:
    rule = f"{name} differentiates with respect to an input, model.params, or a value the function has used"
    if isinstance(x, Model):
        raise TraceError(f"{rule}: write model.params for the parameters of a model")
    if not isinstance(x, Symbol):
        raise TraceError(
            f"{rule}, not a value of type {type(x).__name__}: give it to the loss function as an input"
        )
    part = part_of(x)
    made_here = isinstance(part, Variable) and (part.expression is not None or part.whole is not None)
    if made_here and part not in current(name).read and part is not y._part:
        raise TraceError(
            f"{rule}; this one was made on the spot, so nothing depends on it: name it first (t = p[0]), "
            f"compute with the name, and differentiate with respect to the name"
        )
