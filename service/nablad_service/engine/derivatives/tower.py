"""Several partial derivatives of one value, computed and pulled back together.

A tower holds derivatives ∂ᵅu of values u(x, c) in directions that depend on nothing, each of a multi-index α.
The gradient of <r, ∂ᵅu> in the variables x and in all that is captured, c, is then ∂ᵅ of the gradient of
<r, u>: so one differentiates *one gradient* forward, in place of transposing nested forward derivatives. All
orders up to a box β are pulled back at once. With the cotangents rₐ and the polynomial

    w(ε) = Σₐ rₐ / C(β, α) · ε^(β - α) / (β - α)!,

Leibniz' rule gives

    ∂^β/∂ε^β ∇₍ₓ,꜀₎ <w(ε), u(x + ε, c)> at ε = 0  =  Σₐ ∂ᵅ ∇₍ₓ,꜀₎ <rₐ, u(x, c)>,

since ∂^(β-α) w(0) = rₐ / C(β, α). Several boxes, (1, 0) and (0, 3) for u_t and u_xxx, are summed; each
derivative goes with the smallest box that holds it.

Measured on two CPU cores, float32, three hidden layers of width 64 (tanh), the gradient in the parameters of
a residual's mean square, in a vmapped def of one point. Time against nested jvp differentiated in reverse as
written, in interleaved runs, ratio of medians and of minima, first of `tower`, then of the same jvp with
equal steps merged before, which is what `forward` has become (`objective.py`):

- 2048 points: u_xx 0.71, 0.67 and 1.00, 0.95; u_xxxx 0.35, 0.31 and 0.58, 0.47; Korteweg-de Vries 0.48,
  0.42 and 0.62, 0.62; biharmonic 0.35, 0.37 and 0.73, 0.76; two momentum equations 0.32, 0.30 and 0.36, 0.33
- their temporary memory: 0.71, 0.61, 0.57, 0.60, 0.45 and 1.00, 0.94, 0.93, 0.91, 0.76

The same mathematics on a network in plain JAX:

- 256 points: u_xx 0.77, 0.71 and 0.79, 0.78; u_xxxx 0.54, 0.56 and 0.61, 0.64; Korteweg-de Vries 0.54, 0.66
  and 0.46, 0.55; biharmonic 0.66, 0.60 and 0.58, 0.55
- 2048 points in a scan of 16 checkpointed chunks: u_xx 0.94, 0.95 and 0.76, 0.76; u_xxxx 0.35, 0.45 and
  0.28, 0.39; Korteweg-de Vries 0.56, 0.65 and 0.45, 0.52. Had equal steps not been merged, `tower` would
  lose there: 1.24, 1.05 and 0.76
- nested `jax.grad` under vmap, 2048 points: u_xx 3.3, 2.6; u_xxxx 13, 11; Korteweg-de Vries 4.3, 5.2;
  biharmonic 7.9, 8.7

First orders tie (0.97). A derivative of an expression of derivatives, d(exp(u) * d(u, x), x), does best by
merging, 0.60 where `tower` takes 0.96. The machine was shared: a figure may be off by a fifth.

Reference: A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 13, for the
propagation of several orders along a direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from nablad_service.engine.derivatives.explicit import Explicit
from nablad_service.engine.derivatives.lifting import Function, lifted
from nablad_service.engine.derivatives.row import Orders, Tower
from nablad_service.engine.merged import without_repetition

Variables: TypeAlias = tuple[Any, ...]
Steps: TypeAlias = tuple[Any, ...]
Wanted: TypeAlias = tuple[tuple[int, Orders], ...]


def pulled_back_together(tower: Tower) -> tuple[Any, ...]:
    """The derivatives, with the pullback of the module's docstring: to be differentiated once, in reverse."""
    explicit = Explicit.of(tower.captured)

    def values(xs: Variables, floats: list[Any], others: list[Any]) -> tuple[Any, ...]:
        return tower.function(xs, explicit.captured(floats, others))

    def over_examples(values: Function, in_axes: Any, size: int) -> Function:
        return jax.vmap(values, in_axes=in_axes, axis_size=size)

    rule = lifted(lambda values: _with_pullback(values, tower.wanted), values, tower.maps, over_examples)
    found: tuple[Any, ...] = rule(tower.xs, explicit.floats, explicit.others)
    return found


def _with_pullback(values: Function, wanted: Wanted) -> Function:
    """From xs, floats and others to the derivatives of `values` of them, with a pullback of their own."""

    def derivatives(xs: Variables, *rest: Any) -> tuple[Any, ...]:
        return _pushed_forward(lambda xs: values(xs, *rest), xs, wanted)

    def pullback(xs: Variables, floats: list[Any], others: list[Any], rs: tuple[Any, ...]) -> Any:
        cotangents = dict(zip(wanted, rs, strict=True))
        total = None
        for box, covered in boxes(wanted).items():

            def gradient(
                xs: Variables,
                steps: Steps,
                box: Orders = box,
                covered: list[tuple[int, Orders]] = covered,
            ) -> tuple[Any, Any]:
                w = _polynomials(cotangents, box, covered, steps)

                def scalar(xs: Variables, floats: list[Any]) -> Any:
                    u = values(xs, floats, others)
                    return sum(jnp.sum(w[position] * u[position]) for position in w)

                return jax.grad(scalar, argnums=(0, 1))(xs, floats)

            part = _highest(gradient, xs, list(enumerate(box)))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total

    forwards = without_repetition(derivatives, differentiable=False)
    backwards = without_repetition(pullback, differentiable=False)

    @jax.custom_vjp
    def of_everything(*arguments: Any) -> tuple[Any, ...]:
        found: tuple[Any, ...] = forwards(*arguments)
        return found

    def forward(*arguments: Any) -> tuple[Any, Any]:
        return of_everything(*arguments), arguments

    def backward(arguments: Any, rs: tuple[Any, ...]) -> tuple[Any, Any, None]:
        xs_bar, floats_bar = backwards(*arguments, rs)
        return xs_bar, floats_bar, None

    of_everything.defvjp(forward, backward)
    pulled_back: Function = of_everything
    return pulled_back


def boxes(wanted: Iterable[tuple[int, Orders]]) -> dict[Orders, list[tuple[int, Orders]]]:
    """The maximal multi-indices, each with those of `wanted` that go with it."""
    every = tuple(wanted)
    largest = [one for _, one in every if not any(one != other and _within(one, other) for _, other in every)]
    found: dict[Orders, list[tuple[int, Orders]]] = {}
    for position, orders in every:
        holding = [box for box in largest if _within(orders, box)]
        box = min(holding, key=lambda box: math.prod(order + 1 for order in box))
        found.setdefault(box, []).append((position, orders))
    return found


def _within(orders: Orders, box: Orders) -> bool:
    return all(one <= other for one, other in zip(orders, box, strict=True))


def _pushed_forward(
    values: Callable[[Variables], tuple[Any, ...]], xs: Variables, wanted: Wanted
) -> tuple[Any, ...]:
    """∂ᵅ of the values for all that is wanted: all orders of each box at once."""
    found = {}
    for box, covered in boxes(wanted).items():
        table = _all_orders(values, xs, list(enumerate(box)))
        for position, orders in covered:
            entry = table
            for order in orders:
                entry = entry[order]
            found[position, orders] = entry[position]
    return tuple(found[one] for one in wanted)


def _all_orders(values: Callable[[Variables], Any], xs: Variables, left: list[tuple[int, int]]) -> Any:
    """Nested lists: entry [i][j] is ∂ⁱ in the first variable of `left` and ∂ʲ in the second, of `values`.

    `left` holds variables, each with its highest order. No step is added to a variable: what is computed
    from it stays equal to what the program computes elsewhere, and is merged with that.
    """
    if not left:
        return values(xs)
    (position, most), *rest = left

    def up_to(order: int) -> Callable[[Any], list[Any]]:
        if order == 0:
            return lambda x: [_all_orders(values, _with(xs, position, x), rest)]
        lower = up_to(order - 1)

        def one_more(x: Any) -> list[Any]:
            found, slopes = jax.jvp(lower, (x,), (jnp.ones_like(x),))
            return [*found, slopes[-1]]

        return one_more

    return up_to(most)(xs[position])


def _highest(
    function: Callable[[Variables, Steps], Any], xs: Variables, left: list[tuple[int, int]], steps: Steps = ()
) -> Any:
    """The derivative of the highest order in each variable, moved together with its step ε from zero."""
    if not left:
        return function(xs, steps)
    (position, most), *rest = left

    def of(order: int) -> Callable[[Any, Any], Any]:
        if order == 0:
            return lambda x, step: _highest(function, _with(xs, position, x), rest, (*steps, step))
        lower = of(order - 1)

        def one_more(x: Any, step: Any) -> Any:
            return jax.jvp(lower, (x, step), (jnp.ones_like(x), jnp.ones_like(step)))[1]

        return one_more

    x = xs[position]
    return of(most)(x, jnp.zeros((), x.dtype))


def _with(xs: Variables, position: int, x: Any) -> Variables:
    return (*xs[:position], x, *xs[position + 1 :])


def _polynomials(
    rs: dict[tuple[int, Orders], Any], box: Orders, covered: list[tuple[int, Orders]], steps: Steps
) -> dict[int, Any]:
    """w(ε) for each value."""
    found: dict[int, Any] = {}
    for position, orders in covered:
        term = rs[position, orders]
        for order, most, step in zip(orders, box, steps, strict=True):
            if most > order:
                scale = math.comb(most, order) * math.factorial(most - order)
                term = term * (step ** (most - order) / scale)
        found[position] = found[position] + term if position in found else term
    return found
