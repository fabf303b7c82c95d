"""Layers one after another, each under its name: again a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jax import Array

from nablad_models.layer import Call, Layer
from nablad_models.leaves import Leaf, Leaves
from nablad_models.shapes import DoesNotFit, Shape, show


@dataclass(frozen=True)
class Step:
    """A layer with the name that its leaves carry and the words that messages use for it."""

    name: str
    label: str
    layer: Layer

    def __str__(self) -> str:
        return f"{self.name} ({self.label})"


class DoesNotChain(Exception):
    """Two neighbours in a chain do not fit; the message names both and shows both sizes."""


def chain(steps: Sequence[Step]) -> Layer:
    """The steps one after another.

    The leaves of step `layer_1` are named `layer_1.weight` and so on; `gives` raises `DoesNotChain` with both
    neighbours named.
    """

    def gives(shape: Shape) -> Shape:
        before = "the input"
        for step in steps:
            try:
                after = step.layer.gives(shape)
            except DoesNotFit as problem:
                raise DoesNotChain(f"{step} {problem}, but {before} gives {show(shape)}") from problem
            except DoesNotChain as problem:
                raise DoesNotChain(f"in {step}, {problem}") from problem
            shape, before = after, str(step)
        return shape

    def forward(params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
        new_state: dict[str, Array] = {}
        for step in steps:
            x, new = run(step, params, state, x, call.into(step.name))
            new_state |= new
        return x, new_state

    return Layer(
        gives=gives,
        forward=forward,
        takes=_first_shape(steps),
        parameters=joined(steps, "parameters"),
        state=joined(steps, "state"),
        keeps_shape=all(step.layer.keeps_shape for step in steps),
    )


def run(step: Step, params: Leaves, state: Leaves, x: Array, call: Call) -> tuple[Array, dict[str, Array]]:
    """One step, on its own leaves among all of them."""
    own_params = _below(step.name, params, step.layer.parameters)
    own_state = _below(step.name, state, step.layer.state)
    y, new_state = step.layer.forward(own_params, own_state, x, call)
    return y, {f"{step.name}.{name}": leaf for name, leaf in new_state.items()}


def joined(steps: Sequence[Step], which: Literal["parameters", "state"]) -> dict[str, Leaf]:
    """What the steps declare, under their names."""
    return {
        f"{step.name}.{name}": leaf for step in steps for name, leaf in getattr(step.layer, which).items()
    }


def _below(name: str, leaves: Leaves, declared: Mapping[str, Leaf]) -> dict[str, Array]:
    return {leaf: leaves[f"{name}.{leaf}"] for leaf in declared}


def _first_shape(steps: Sequence[Step]) -> Shape | None:
    """The example shape that the first layers ask for.

    A layer that keeps the shape knows less than one that does not (batchnorm before a convolution knows the
    channels but not the rank), so it is asked last.
    """
    fallback = None
    for step in steps:
        if not step.layer.keeps_shape:
            return step.layer.takes or fallback
        fallback = fallback or step.layer.takes
    return fallback
