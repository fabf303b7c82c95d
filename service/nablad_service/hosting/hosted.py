"""A model with its resident parameters, and how parameters are checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nablad.arrays import Received, Undeclared
from nablad.messages import ModelInfo, ModelSource, ParameterInfo
from nablad.problems import Refusal
from nablad_models import Model, check_params, check_state, from_torch, is_torch

Arrays = Mapping[str, NDArray[Any]]


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
        return cls(name, source, model, params, state, version_of(params, state))

    def with_params(self, params: Arrays, state: Arrays) -> HostedModel:
        """The same model with other parameters, checked already."""
        return replace(self, params=params, state=state, version=version_of(params, state))

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


def _info(leaf: NDArray[Any]) -> ParameterInfo:
    return ParameterInfo(shape=list(leaf.shape), dtype=leaf.dtype.name)


def own_tensors(
    model: Model, params: Mapping[str, Received] | None, state: Mapping[str, Received] | None
) -> tuple[dict[str, NDArray[Any]] | None, dict[str, NDArray[Any]] | None]:
    """Parameters and state checked against the model, in its declared order; None where none were given.

    Parameters may have the names of a PyTorch `state_dict`, which holds the state too.
    """
    own = None if params is None else {name: declared(leaf) for name, leaf in params.items()}
    kept: Mapping[str, Received] | None = state
    if own and is_torch(model, own):
        own, buffers = from_torch(model, own)
        kept = state if state is not None else buffers
    return (
        None if own is None else own_params(model, own),
        None if kept is None else own_state(model, kept),
    )


def own_params(model: Model, given: Mapping[str, Received]) -> dict[str, NDArray[Any]]:
    """Parameters checked against the model, in its declared order."""
    params = {name: declared(leaf) for name, leaf in given.items()}
    check_params(model, params)
    return _floats({name: params[name] for name in model.parameter_shapes}, "invalid_params", "parameter")


def own_state(model: Model, given: Mapping[str, Received]) -> dict[str, NDArray[Any]]:
    """State checked against the model, in its declared order."""
    state = {name: declared(leaf) for name, leaf in given.items()}
    check_state(model, state)
    return _floats({name: state[name] for name in model.state_shapes}, "invalid_state", "state")


def _floats(leaves: dict[str, NDArray[Any]], code: str, what: str) -> dict[str, NDArray[Any]]:
    for name, leaf in leaves.items():
        if leaf.dtype.kind != "f":
            raise Refusal(code, f"the {what} '{name}' holds {leaf.dtype}; send floats")
    return leaves


def declared(leaf: Received) -> NDArray[Any]:
    """Parameters without a dtype are float32: what the models draw themselves."""
    return leaf.array.astype(np.float32) if isinstance(leaf, Undeclared) else leaf


def drawn(model: Model, seed: int, dtype: str | None = None) -> dict[str, NDArray[Any]]:
    """The model's first parameters as NumPy arrays in its declared order.

    Raises:
        Refusal: `invalid_params` where the model declares other shapes than it draws.
    """
    return own_params(model, _arrays(model.initial_params(seed), dtype))


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


def version_of(params: Arrays, state: Arrays) -> str:
    """A digest of names, dtypes, shapes and bytes: equal content, equal version."""
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in (*params.items(), *state.items()):
        digest.update(f"{name}:{leaf.dtype.str}:{leaf.shape};".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
