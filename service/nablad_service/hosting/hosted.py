"""A model with its resident parameters, and how parameters are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nablad.arrays import Received, Undeclared
from nablad.content import version_of
from nablad.messages import ModelInfo, ModelSource, ParameterInfo
from nablad.problems import Refusal
from nablad_models import Model, check_params, check_state, from_torch, is_torch
from nablad_service.resident import Leaf, Leaves, Resident, aligned, residents

Arrays = Mapping[str, NDArray[Any]]
Given: TypeAlias = "Received | Resident"
"""A leaf as it was sent, or as it is kept from before."""


@dataclass(frozen=True)
class HostedModel:
    """A model with its parameters. Never changed: new parameters make a new value."""

    name: str
    source: ModelSource
    model: Model
    params: Arrays
    state: Arrays
    version: str
    """The digest of parameters and state."""

    @classmethod
    def of(cls, name: str, source: ModelSource, model: Model, params: Arrays, state: Arrays) -> HostedModel:
        """Checked parameters and state under a model, with the version that they have."""
        return cls(name, source, model, _kept(params), _kept(state), version_of(params, state))

    def with_params(self, params: Arrays, state: Arrays) -> HostedModel:
        """The same model with other parameters, checked already."""
        version = version_of(params, state)
        return replace(self, params=_kept(params), state=_kept(state), version=version)

    @cached_property
    def resident_params(self) -> Mapping[str, Resident]:
        """The parameters as queries take them: moved to the device once."""
        return residents(self.params)

    @cached_property
    def resident_state(self) -> Mapping[str, Resident]:
        """The state, likewise."""
        return residents(self.state)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and state."""
        return sum(leaf.nbytes for leaf in (*self.params.values(), *self.state.values()))

    def info(self) -> ModelInfo:
        """The description that `GET /v1/models/{name}` gives."""
        return ModelInfo(
            name=self.name,
            source=self.source,
            architecture=self.model.source.get("architecture"),
            inputs={
                name: None if shape is None else list(shape)
                for name, shape in self.model.input_shapes.items()
            },
            parameters={name: _info(leaf) for name, leaf in self.params.items()},
            state={name: _info(leaf) for name, leaf in self.state.items()},
            parameter_count=sum(leaf.size for leaf in self.params.values()),
            derivative_order=self.model.derivative_order,
            version=self.version,
            loaded=True,
        )


def _kept(tree: Arrays) -> Arrays:
    """Leaves that hold on to nothing but themselves, and need no copy on their way to the device."""
    return {name: aligned(leaf) for name, leaf in tree.items()}


def _info(leaf: NDArray[Any]) -> ParameterInfo:
    return ParameterInfo(shape=list(leaf.shape), dtype=leaf.dtype.name)


def own_tensors(
    model: Model, params: Mapping[str, Given] | None, state: Mapping[str, Given] | None
) -> tuple[dict[str, Leaf] | None, dict[str, Leaf] | None]:
    """Parameters and state checked against the model, in its declared order; None where none were given.

    Parameters may have the names of a PyTorch `state_dict`, which holds the state too.
    """
    own = None if params is None else {name: declared(leaf) for name, leaf in params.items()}
    kept: Mapping[str, Given] | None = state
    if own and is_torch(model, own):
        own, buffers = from_torch(model, own)
        kept = state if state is not None else buffers
    return (
        None if own is None else own_params(model, own),
        None if kept is None else own_state(model, kept),
    )


def own_arrays(
    model: Model, params: Mapping[str, Given] | None, state: Mapping[str, Given] | None
) -> tuple[dict[str, NDArray[Any]] | None, dict[str, NDArray[Any]] | None]:
    """The same as arrays, for keeping."""
    own, kept = own_tensors(model, params, state)
    return _arrays_of(own), _arrays_of(kept)


def _arrays_of(leaves: Leaves | None) -> dict[str, NDArray[Any]] | None:
    return None if leaves is None else {name: np.asarray(leaf) for name, leaf in leaves.items()}


def own_params(model: Model, given: Mapping[str, Given]) -> dict[str, Leaf]:
    """Parameters checked against the model, in its declared order."""
    params = {name: declared(leaf) for name, leaf in given.items()}
    check_params(model, params)
    return _floats({name: params[name] for name in model.parameter_shapes}, "invalid_params", "parameter")


def own_state(model: Model, given: Mapping[str, Given]) -> dict[str, Leaf]:
    """State checked against the model, in its declared order."""
    state = {name: declared(leaf) for name, leaf in given.items()}
    check_state(model, state)
    return _floats({name: state[name] for name in model.state_shapes}, "invalid_state", "state")


def _floats(leaves: dict[str, Leaf], code: str, what: str) -> dict[str, Leaf]:
    for name, leaf in leaves.items():
        if leaf.dtype.kind != "f":
            raise Refusal(code, f"the {what} '{name}' holds {leaf.dtype}; send floats")
    return leaves


def declared(leaf: Given) -> Leaf:
    """Parameters without a dtype are float32: what the models draw themselves."""
    return leaf.array.astype(np.float32) if isinstance(leaf, Undeclared) else leaf


def drawn(model: Model, seed: int, dtype: str | None = None) -> dict[str, NDArray[Any]]:
    """The model's first parameters as NumPy arrays in its declared order.

    Raises:
        Refusal: `invalid_params` where the model declares other shapes than it draws.
    """
    params = _arrays_of(own_params(model, _arrays(model.initial_params(seed), dtype)))
    assert params is not None
    return params


def first_state(model: Model, dtype: str | None = None) -> dict[str, NDArray[Any]]:
    """The model's first state, likewise; it may hold whole numbers, counters say."""
    state = _arrays(model.initial_state(), dtype)
    check_state(model, state)
    return {name: state[name] for name in model.state_shapes}


def _arrays(leaves: Mapping[str, Any], dtype: str | None) -> dict[str, NDArray[Any]]:
    arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    return {
        name: leaf.astype(dtype) if dtype is not None and leaf.dtype.kind == "f" else leaf
        for name, leaf in arrays.items()
    }
