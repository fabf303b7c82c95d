"""What is trained and with which loss: a caller's arguments as the members of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from nablad.calls import weights_of
from nablad.question import Encode, Inputs, Loss, Models, Question, Terms, Tree, sent, written

Optimiser: TypeAlias = "Mapping[str, Any]"
"""`{"name": "adam", "learning_rate": 1e-3}`; a schedule is a mapping too."""


def settings_of(optimiser: Optimiser) -> dict[str, Any]:
    """An optimiser's travelling form.

    Raises:
        ValueError: it is a name alone, say.
    """
    if not isinstance(optimiser, Mapping):
        like = '{"name": "adam", "learning_rate": 1e-3}'
        raise ValueError(f"an optimiser is a name with its settings, {like}, not {optimiser!r}")
    return dict(optimiser)


@dataclass(frozen=True)
class Subject:
    """Models and inputs that are trained, with their start values."""

    model: str | None = None
    models: Models | None = None
    params: Tree | Mapping[str, Tree] | None = None
    state: Tree | Mapping[str, Tree] | None = None
    mode: str | None = None
    trained: Inputs = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names by which programs call the models."""
        return list(self.models if self.models is not None else ["model"] if self.model else [])

    def members(self, encode: Encode) -> dict[str, Any]:
        """The members of the request."""
        question = Question({}, self.model, self.models, self.params, self.state, self.mode)
        trained = {name: sent(f"trained.{name}", value, encode) for name, value in self.trained.items()}
        return {"models": question.bindings(encode), "trained": trained}


@dataclass(frozen=True)
class Computation:
    """A loss and how to compute it."""

    loss: Loss
    inputs: Inputs = field(default_factory=dict)
    terms: Terms | None = None
    nesting: str = "auto"
    strategies: Mapping[str, str] | None = None
    examples_at_once: int | None = None
    memory_limit: int | None = None

    def members(
        self, models: Sequence[str], encode: Encode, beside: Inputs = MappingProxyType({})
    ) -> dict[str, Any]:
        """The members of the request; `beside` are inputs that are trained, or drawn on the server."""
        text, inputs = written(self.loss, self.inputs, models, beside)
        return {
            "loss": text,
            "inputs": {name: sent(f"inputs.{name}", value, encode) for name, value in inputs.items()},
            "terms": weights_of(self.terms),
            "nesting": self.nesting,
            "strategies": dict(self.strategies or {}),
            "examples_at_once": self.examples_at_once,
            "memory_limit": self.memory_limit,
        }


def gradient_members(
    computation: Computation,
    subject: Subject,
    encode: Encode,
    *,
    term_gradients: str,
    outputs: Sequence[str],
    gradients: bool,
    weight: float,
    seed: int | None,
    step: bool | Mapping[str, Any],
) -> dict[str, Any]:
    """The members of a session's `gradient`, its number aside."""
    settings = {} if step is True else step
    return {
        **computation.members(subject.names, encode, subject.trained),
        "term_gradients": term_gradients,
        "outputs": list(outputs),
        "gradients": gradients,
        "weight": weight,
        "seed": seed,
        "step": None if settings is False else dict(settings),
    }


def step_members(
    learning_rate: float | None,
    clip_norm: float | None,
    weight_decay: float | None,
    frozen: Sequence[str] | None,
) -> dict[str, Any]:
    """The members of a session's `step`, its number aside."""
    return {
        "learning_rate": learning_rate,
        "clip_norm": clip_norm,
        "weight_decay": weight_decay,
        "frozen": None if frozen is None else list(frozen),
    }


def sampler(name: str, given: Mapping[str, Any], encode: Encode) -> dict[str, Any]:
    """A sampler's travelling form; only batches hold data."""
    if "data" not in given:
        return dict(given)
    return {**given, "data": sent(f"samplers.{name}.data", given["data"], encode)}


def drawn(samplers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Stand-ins for what samplers draw, for tracing a Python function: shapes count, values do not.

    What a sampler lacks the server tells.
    """
    inputs: dict[str, Any] = {}
    for name, given in samplers.items():
        n = given.get("n", 1)
        if "data" in given:
            for member, data in given["data"].items():
                inputs[member] = _zeros((n, *np.shape(data)[1:]))
        elif given.get("names"):
            inputs |= dict.fromkeys(given["names"], _zeros((n,)))
        else:
            inputs[name] = _zeros((n, len(given.get("low", ()))))
    return inputs


def _zeros(shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(np.zeros((), np.float32), shape)
