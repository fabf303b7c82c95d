"""What every layer is: the arrays it owns, the shapes it joins, and a pure function."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import jax
from jax import Array

from nablad_models.leaves import Leaf, Leaves
from nablad_models.shapes import Shape


@dataclass(frozen=True)
class Call:
    """How a layer is called, beside its arrays: mode, randomness, and which axes of x are batch axes."""

    train: bool
    batch_axes: int
    key: Array | None
    path: str = ""
    """Dotted name of the layer, for messages."""

    def into(self, name: str) -> Call:
        """The call as the layer `name` inside receives it, with randomness of its own."""
        path = f"{self.path}.{name}".lstrip(".")
        key = None if self.key is None else jax.random.fold_in(self.key, zlib.crc32(name.encode()))
        return replace(self, path=path, key=key)


class Forward(Protocol):
    """Parameters, state and a whole batch to the answer and the new state; batch axes come first in both."""

    def __call__(
        self, params: Leaves, state: Leaves, x: Array, call: Call, /
    ) -> tuple[Array, dict[str, Array]]: ...


@dataclass(frozen=True)
class Join:
    """What makes one value of several: on shapes of one example, and on arrays with equally many batch axes.

    `gives` raises `DoesNotFit`. The sizes of the batch axes broadcast.
    """

    gives: Callable[[Sequence[Shape]], Shape]
    forward: Callable[[Sequence[Array], int], Array]


@dataclass(frozen=True)
class Layer:
    """One layer, or a block of them.

    `gives` maps the shape of one example to the shape of the answer to it, and raises `DoesNotFit`. `takes`
    is the example shape that the layer asks for when it comes first, or None where any will do. `keeps_shape`
    says that the answer has the shape of the example. `joins` comes before all, in a layer that takes several
    answers.
    """

    gives: Callable[[Shape], Shape]
    forward: Forward
    takes: Shape | None = None
    parameters: Mapping[str, Leaf] = field(default_factory=dict)
    state: Mapping[str, Leaf] = field(default_factory=dict)
    keeps_shape: bool = False
    joins: Join | None = None


def per_example(function: Callable[[Leaves, Array], Array], rank: int | None = None) -> Forward:
    """A stateless layer written for one example, lifted to any number of batch axes.

    `function` maps the layer's leaves (parameters and constant state together) and one example to its answer.
    `rank` is the rank that `function` works on, where that is less than an example's: a dense layer of rank 1
    acts on each vector of a sequence. This is the one place where models are batched.
    """

    def forward(params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        leaves = {**params, **state}

        def mapped(x: Array) -> Array:
            return function(leaves, x)

        # Nested maps rather than one reshape: the traced computation shows which axis is which.
        for _ in range(call.batch_axes if rank is None else x.ndim - rank):
            mapped = jax.vmap(mapped)
        return mapped(x), dict(state)

    return forward


def followed_by(layer: Layer, function: Callable[[Array], Array]) -> Layer:
    """`layer`, then `function` of its answer, where `function` maps one example and keeps its shape."""
    after = per_example(lambda _, x: function(x))

    def forward(params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        y, new_state = layer.forward(params, state, x, call)
        return after({}, {}, y, call)[0], new_state

    return replace(layer, forward=forward)
