"""`grad(y, x)`: the gradient of a scalar, and the seed idea of nablad.

Inside a loss that is differentiated again, a gradient g(x, c) = ∇ₓ f(x, c) needs a pullback: for a cotangent
v on g, the sum of v'∂g over everything f depends on. Because second derivatives commute,

    ∇₍ₓ,꜀₎ <v, ∇ₓ f(x, c)>  =  d/dε ∇₍ₓ,꜀₎ f(x + εv, c) at ε = 0,

so one directional derivative (jvp) of the gradient with respect to *everything at once*, x and all that is
captured, gives the whole pullback: forward over reverse. The plain way, reverse over reverse, differentiates
the backward pass of f once more. They agree to rounding; which is cheaper depends on f.

The rule is installed on the outermost inner derivative only, where reverse mode is certain to meet it: a
`custom_vjp` has no jvp, so beneath it everything stays plain JAX and nests to any order. What f captures is
made explicit, so no gradient is dropped, neither the parameters' nor a probe's.

Reference: A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 5;
the single-jvp rule is Lux.jl's (manual, "Nested Automatic Differentiation").
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives.explicit import Explicit
from nablad_service.engine.derivatives.lifting import Function, lifted
from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Shapes,
    need_scalar,
)
from nablad_service.engine.values import Value
from nablad_service.language.signatures import OperatorSignature


def reverse_over_reverse(problem: Differentiation) -> Value:
    """Plain `jax.grad`; an outer gradient differentiates its backward pass."""
    return jax.grad(problem.at)(problem.x)


def forward_over_reverse(problem: Differentiation) -> Value:
    """`jax.grad` whose pullback is one jvp of the gradient with respect to everything."""
    if not problem.differentiated:
        return jax.grad(problem.at)(problem.x)
    return _pulled_back_by_jvp(problem)


def forward_over_reverse_barrier(problem: Differentiation) -> Value:
    """As `forward_over_reverse`, its pullback never merged with what was computed before.

    XLA merges equal computations: the pullback evaluates f at the same point again, and then shares its
    intermediates, which stay in memory meanwhile. Behind a barrier they are computed anew, a third more
    operations. Measured on two CPU cores, time against `forward_over_reverse`: 0.73 for eight layers of
    width 64 and 4096 examples (memory 0.77), 0.95 to 1.08 for smaller networks, 1.14 for six convolutions.
    """
    if not problem.differentiated:
        return jax.grad(problem.at)(problem.x)
    return _pulled_back_by_jvp(problem, barrier=True)


def remat(problem: Differentiation) -> Value:
    """As `reverse_over_reverse`, the forward pass computed again for the backward pass (`jax.checkpoint`).

    Measured as above: 0.80 (memory 0.80), 0.94 to 1.16, and 1.11.
    """
    return jax.grad(jax.checkpoint(problem.at))(problem.x)


def _pulled_back_by_jvp(problem: Differentiation, barrier: bool = False) -> Value:
    """∇ₓ f(x, c), with the pullback of the module's docstring."""
    explicit = Explicit.of(problem.captured)

    def scalar(x: Value, floats: list[Any], others: list[Any]) -> Any:
        return problem.function(x, explicit.captured(floats, others))

    rule = lifted(lambda scalar: _with_pullback(scalar, barrier), scalar, problem.maps, _summed)
    return rule(problem.x, explicit.floats, explicit.others)


def _summed(scalar: Function, in_axes: Any, size: int) -> Function | None:
    """The sum over examples has each example's gradient as its own, where each has a variable of its own."""
    if not all(axis == 0 for axis in jax.tree.leaves(in_axes[0], is_leaf=lambda axis: axis is None)):
        return None
    examples = jax.vmap(scalar, in_axes=in_axes, axis_size=size)
    return lambda *arguments: jnp.sum(examples(*arguments))


def _with_pullback(scalar: Function, barrier: bool) -> Function:
    """From x, floats and others to the gradient of `scalar` in x, with a pullback of its own."""

    @jax.custom_vjp
    def gradient(x: Value, floats: list[Any], others: list[Any]) -> Value:
        return jax.grad(scalar)(x, floats, others)

    def forward(x: Value, floats: list[Any], others: list[Any]) -> tuple[Value, Any]:
        return gradient(x, floats, others), (x, floats, others)

    def backward(residuals: Any, v: Value) -> tuple[Value, Value, None]:
        x, floats, others = jax.lax.optimization_barrier(residuals) if barrier else residuals
        of_everything = jax.grad(scalar, argnums=(0, 1))
        _, (x_bar, floats_bar) = jax.jvp(lambda x: of_everything(x, floats, others), (x,), (v,))
        return x_bar, floats_bar, None

    gradient.defvjp(forward, backward)
    pulled_back: Function = gradient
    return pulled_back


def check(shapes: Shapes) -> None:
    """The value must be a scalar."""
    need_scalar(shapes, "grad")


def choose(shapes: Shapes) -> Choice:
    """Forward over reverse: at most as dear in most measurements."""
    del shapes
    return Choice("forward_over_reverse", "one jvp over the gradient pulls it back")


ROW = DerivativeRow(
    OperatorSignature(
        "grad",
        "grad(y, x)",
        "Gradient of the scalar y with respect to the name x; shape of x, a tree for parameters.",
        "derivative",
        order=1,
    ),
    check,
    {
        "forward_over_reverse": forward_over_reverse,
        "reverse_over_reverse": reverse_over_reverse,
        "forward_over_reverse_barrier": forward_over_reverse_barrier,
        "remat": remat,
    },
    choose,
    "reverse_over_reverse",
)
