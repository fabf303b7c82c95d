"""A layer in its place: under a name, on its own leaves among all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jax import Array

from nablad_models.layer import Call, Layer
from nablad_models.leaves import Leaf, Leaves


@dataclass(frozen=True)
class Step:
    """A layer with the name that its leaves carry and the words that messages use for it."""

    name: str
    label: str
    layer: Layer
    called: str = ""
    """The name that the architecture gives it, if any, again for messages."""

    def __str__(self) -> str:
        return f'{self.name} "{self.called}" ({self.label})' if self.called else f"{self.name} ({self.label})"


class DoesNotChain(Exception):
    """A layer and what it takes do not fit; the message names all of them and shows their sizes."""


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
