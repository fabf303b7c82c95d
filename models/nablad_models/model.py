"""What the service needs of a model, wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jax import Array
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad_models.shapes import Shape, show

Output = Array | Mapping[str, Array]
"""An answer: one array, or arrays by name."""


class Model(Protocol):
    """A pure function of parameters, state and inputs, with the names and shapes of all of them.

    Parameters and state are flat mappings of dotted names to arrays, in the order of `parameter_shapes` and
    `state_shapes`. Two models of one digest are the same function.
    """

    @property
    def digest(self) -> str:
        """The identity for caches."""
        ...

    @property
    def source(self) -> dict[str, Any]:
        """Where the model comes from, as its card shows it: `{"architecture": {...}}` for layers in JSON."""
        ...

    @property
    def input_shapes(self) -> Mapping[str, Shape | None]:
        """Shapes of one example of each input, in the order in which a call gives them.

        A size is None where any will do, a shape is None where the model does not say.
        """
        ...

    @property
    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the parameters, in declared order."""
        ...

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the state (running statistics, fixed buffers) in declared order; empty when stateless."""
        ...

    @property
    def derivative_order(self) -> int | None:
        """Most derivatives of the model that can be taken, None where there is no bound."""
        ...

    def initial_params(self, seed: int = 0) -> Mapping[str, NDArray[Any]]:
        """First parameters, the same for a seed."""
        ...

    def initial_state(self) -> Mapping[str, NDArray[Any]]:
        """First state."""
        ...

    def apply(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        *inputs: Array,
        train: bool,
        key: Array | None = None,
    ) -> tuple[Output, dict[str, Array]]:
        """The answer to the inputs, with any batch axes first, and the new state (the same in eval mode).

        Pure and traceable. `key` feeds randomness in train mode. `params` and `state` are taken as checked.

        Raises `Refusal("shape_mismatch")` when an input does not fit.
        """
        ...


def check_params(model: Model, params: Mapping[str, Any]) -> None:
    """Raise `Refusal("invalid_params")` that lists every missing, extra and misshapen leaf."""
    _check("invalid_params", "parameters", model.parameter_shapes, params)


def check_state(model: Model, state: Mapping[str, Any]) -> None:
    """Raise `Refusal("invalid_state")` that lists every missing, extra and misshapen leaf."""
    _check("invalid_state", "state", model.state_shapes, state)


def _check(code: str, what: str, declared: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> None:
    wrong = [f"{name} {show(shape)} is missing" for name, shape in declared.items() if name not in given]
    wrong += [f"{name} is not one of the model's" for name in given if name not in declared]
    for name, shape in declared.items():
        if name in given and tuple(np.shape(given[name])) != shape:
            wrong.append(f"{name} has shape {show(np.shape(given[name]))} where {show(shape)} is expected")
    if wrong:
        raise Refusal(code, f"the {what} do not fit the model: {'; '.join(wrong)}.")
