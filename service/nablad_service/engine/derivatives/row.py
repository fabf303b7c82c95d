"""What a derivative operator is made of: a signature, checks, strategies, and a rule that picks one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from nablad.problems import Refusal
from nablad_service.engine.values import Value, map_tree, mismatch
from nablad_service.language.signatures import OperatorSignature

Captured: TypeAlias = dict[int, Value]


@dataclass(frozen=True)
class Shapes:
    """What a plan may know of a derivative: shapes and dtypes, never values."""

    x: Any
    """`jax.ShapeDtypeStruct` of the variable, or a tree of them."""
    y: Any
    """`jax.ShapeDtypeStruct` of the value, or a tree of them where the operator takes one."""
    vectors: tuple[Any, ...]

    @property
    def x_size(self) -> int:
        """Number of entries of the variable."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.x))

    @property
    def y_size(self) -> int:
        """Number of entries of the value."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.y))


@dataclass(frozen=True)
class Drawn:
    """Probes that an estimate draws for itself."""

    kind: str
    most: int
    until: Any | None
    """The standard error at which it stops; None where it takes all."""
    draw: Callable[..., jax.Array]
    """From a count, and for each batch its number, to probes shaped (count, *x.shape)."""
    beforehand: bool
    """Whether all are drawn before the estimate begins; if not, it draws what it takes."""


@dataclass(frozen=True)
class Differentiation:
    """One derivative about to be computed: `function(x, captured)` at `x`, where all it reads is explicit."""

    function: Callable[[Value, Captured], Any]
    x: Value
    captured: Captured
    vectors: tuple[Value, ...]
    shapes: Shapes
    differentiated: bool
    """Whether this is an outermost inner derivative of a loss that will be differentiated in reverse."""
    maps: int = 0
    """How many `vmap` are around it."""
    drawn: Drawn | None = None

    def at(self, x: Value) -> Any:
        """The value as a function of the variable alone."""
        return self.function(x, self.captured)


Orders: TypeAlias = tuple[int, ...]
"""A multi-index: how often each variable is differentiated in."""


@dataclass(frozen=True)
class Tower:
    """Derivatives about to be computed together, of the values of `function(xs, captured)`.

    All that it reads is explicit. Each variable is differentiated in along ones: it is a scalar, or its
    entries do not mix.
    """

    function: Callable[[tuple[Any, ...], Captured], tuple[Any, ...]]
    xs: tuple[Any, ...]
    captured: Captured
    wanted: tuple[tuple[int, Orders], ...]
    """(position of the value, multi-index), each once."""
    maps: int
    """How many `vmap` are around them."""


Strategy: TypeAlias = Callable[[Differentiation], Any]
Together: TypeAlias = Callable[[Tower], tuple[Any, ...]]
"""A strategy for all derivatives of a tower; gives them in the order of `wanted`."""
Obstacle: TypeAlias = Callable[[Shapes, ClosedJaxpr], str | None]
"""Why a strategy does not apply to a derivative, from its shapes and its traced value; None where it does."""


@dataclass(frozen=True)
class Choice:
    """A strategy by name, and why in half a sentence."""

    strategy: str
    reason: str
    others: tuple[str, ...] = ()
    """The other strategies that apply."""


@dataclass(frozen=True)
class DerivativeRow:
    """A derivative operator.

    `check` refuses shapes that make no sense. `choose` is the static rule: it picks a strategy from
    shapes. `obstacles` say when a strategy does not apply; one without obstacle always does, and so do
    `in_reverse` and all that `choose` may pick. `independent_axes` names the axes of the variable along which
    examples must not mix, by pairs (axis of x, axis of y); the engine proves it from the traced computation
    before it trusts the operator.
    """

    signature: OperatorSignature
    check: Callable[[Shapes], None]
    strategies: Mapping[str, Strategy]
    choose: Callable[[Shapes], Choice]
    in_reverse: str
    """The strategy that works without forward mode: what has a `custom_vjp` of its own knows no jvp."""
    independent_axes: Callable[[Shapes], tuple[tuple[int, int], ...]] = lambda shapes: ()
    result_shape: Callable[[Shapes], tuple[int, ...]] = lambda shapes: ()
    """Shape of results that can be much larger than what they come from."""
    obstacles: Mapping[str, Obstacle] = field(default_factory=dict)
    preferred: tuple[str, ...] = ()
    """Strategies that the static rule takes before `choose` is asked, the first that has no obstacle."""
    builds: Mapping[str, Callable[[Shapes], tuple[int, ...]]] = field(default_factory=dict)
    """Shape of an array larger than the result that a strategy makes on the way."""

    def obstacle(self, strategy: str, shapes: Shapes, value: ClosedJaxpr) -> str | None:
        """Why `strategy` does not apply; None where it does."""
        return self.obstacles[strategy](shapes, value) if strategy in self.obstacles else None

    together: Mapping[str, Together] = field(default_factory=dict)
    """Strategies for several derivatives at once: what `strategies` has by their names is for one alone."""
    choose_together: Callable[[int, bool], Choice] | None = None
    """The static rule for several, from their highest order and whether they are derivatives of others."""

    of_trees: bool = False
    """Whether the value may be a parameter tree: the gradient of a loss."""


def describe(spec: Any) -> str:
    """A shape, or a tree by its number of arrays."""
    return f"a tree of {len(spec)} arrays" if isinstance(spec, dict) else f"shape {tuple(spec.shape)}"


def need_array(spec: Any, operator: str, what: str = "the variable") -> None:
    """Refuse parameter trees where one array is needed."""
    if isinstance(spec, dict):
        raise Refusal("wrong_kind", f"{operator} needs an array as {what}, not {describe(spec)}")


def need_scalar(shapes: Shapes, operator: str) -> None:
    """Refuse values that are not scalars."""
    if shapes.y.shape != ():
        hint = "use sum or mean, index one entry, or take jacobian"
        detail = f"{operator} needs a scalar value, this one has shape {tuple(shapes.y.shape)}; {hint}"
        raise Refusal("not_scalar", detail, extra={"shapes": [list(shapes.y.shape)]})


def need_square(shapes: Shapes, operator: str) -> None:
    """Refuse values that are not shaped like the variable, with coordinates on a last axis."""
    need_array(shapes.x, operator)
    y, x = tuple(shapes.y.shape), tuple(shapes.x.shape)
    if y != x or not x:
        detail = f"{operator} needs a square Jacobian: value and variable of one shape, not {y} and {x}"
        raise mismatch(detail, y, x)


def need_same_shape(vector: Any, target: Any, operator: str, name: str, of: str) -> None:
    """Refuse a tangent or cotangent that is not shaped like what it belongs to."""
    if shapes_in(vector) != shapes_in(target):
        detail = f"{operator} needs {name} shaped like {of}, {describe(target)}, not {describe(vector)}"
        raise mismatch(detail, *(spec.shape for spec in (target, vector) if not isinstance(spec, dict)))


def shapes_in(spec: Any) -> Any:
    """The shape of an array, or the shapes of a tree's leaves by name, in no order."""
    if isinstance(spec, dict):
        return {name: tuple(leaf.shape) for name, leaf in spec.items()}
    return tuple(spec.shape)


def like(vector: Value, target: Value) -> Value:
    """`vector` with the dtypes and the order of leaves of `target`: jvp and vjp insist on both."""
    if isinstance(target, dict):
        return map_tree(lambda t, v: jnp.asarray(v).astype(t.dtype), target, vector)
    return jnp.asarray(vector).astype(target.dtype)


def inner(a: Value, b: Value) -> Any:
    """Sum of the products of all entries of two arrays or trees."""
    products = jax.tree.map(lambda left, right: jnp.sum(left * right), a, b)
    return sum(jax.tree.leaves(products))
