"""The models that are hosted, with their resident parameters."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nablad.arrays import Received, Undeclared
from nablad.messages import ModelInfo, ParameterInfo
from nablad.problems import Refusal
from nablad_models import Model, build, check_params, check_state
from nablad_service.language.places import nearest

Arrays = Mapping[str, NDArray[Any]]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class HostedModel:
    """A model with its parameters. Never changed: new parameters make a new value."""

    name: str
    model: Model
    params: Arrays
    state: Arrays
    version: str

    def info(self) -> ModelInfo:
        """The description that `GET /v1/models/{name}` gives."""
        return ModelInfo(
            name=self.name,
            architecture=self.model.source["architecture"],
            parameters={name: _info(leaf) for name, leaf in self.params.items()},
            state={name: _info(leaf) for name, leaf in self.state.items()},
            parameter_count=sum(leaf.size for leaf in self.params.values()),
            version=self.version,
        )


def _info(leaf: NDArray[Any]) -> ParameterInfo:
    return ParameterInfo(shape=list(leaf.shape), dtype=leaf.dtype.name)


class ModelStore:
    """Hosted models by name; safe to use from several threads."""

    def __init__(self, max_models: int) -> None:
        self._models: dict[str, HostedModel] = {}
        self._lock = threading.Lock()
        self._max_models = max_models

    def names(self) -> list[str]:
        """Names of the hosted models, sorted."""
        return sorted(self._models)

    def get(self, name: str) -> HostedModel:
        """The model called `name`.

        Raises:
            Refusal: `unknown_model`, with the nearest name.
        """
        hosted = self._models.get(name)
        if hosted is None:
            names = self.names()
            known = f"hosted are {', '.join(names[:20])}" if names else "none is hosted; PUT one first"
            raise Refusal(
                "unknown_model", f"no model is called '{name}'{nearest(name, names) or f'; {known}'}"
            )
        return hosted

    def put(
        self,
        name: str,
        architecture: Mapping[str, Any],
        params: Mapping[str, Received] | None,
        state: Mapping[str, Received] | None,
        seed: int,
    ) -> HostedModel:
        """Host an architecture, in place of one of the same name.

        Raises:
            Refusal: for a bad name, architecture, parameters or state.
        """
        if not NAME.fullmatch(name):
            detail = f"'{name}' cannot name a model: letters, digits, '.', '_' and '-', at most 128"
            raise Refusal("invalid_name", detail)
        model = build(architecture)
        hosted = HostedModel(
            name,
            model,
            own_params(model, params) if params is not None else model.initial_params(seed),
            own_state(model, state) if state is not None else model.initial_state(),
            "",
        )
        hosted = replace(hosted, version=version_of(hosted.params, hosted.state))
        with self._lock:
            if name not in self._models and len(self._models) >= self._max_models:
                raise Refusal("limit", f"{self._max_models} models are hosted already; delete one first")
            self._models[name] = hosted
        return hosted

    def set_params(
        self, name: str, params: Mapping[str, Received], state: Mapping[str, Received] | None
    ) -> HostedModel:
        """Replace the resident parameters, and the state where one is given."""
        with self._lock:
            hosted = self.get(name)
            new_params = own_params(hosted.model, params)
            new_state = own_state(hosted.model, state) if state is not None else hosted.state
            hosted = replace(
                hosted, params=new_params, state=new_state, version=version_of(new_params, new_state)
            )
            self._models[name] = hosted
        return hosted

    def delete(self, name: str) -> None:
        """Stop hosting `name`."""
        with self._lock:
            self.get(name)
            del self._models[name]


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
        if not np.issubdtype(leaf.dtype, np.floating):
            raise Refusal(code, f"the {what} '{name}' holds {leaf.dtype}; send floats")
    return leaves


def declared(leaf: Received) -> NDArray[Any]:
    """Parameters without a dtype are float32: what the models draw themselves."""
    return leaf.array.astype(np.float32) if isinstance(leaf, Undeclared) else leaf


def version_of(params: Arrays, state: Arrays) -> str:
    """A digest of names, dtypes, shapes and bytes: equal content, equal version."""
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in (*params.items(), *state.items()):
        digest.update(f"{name}:{leaf.dtype.str}:{leaf.shape};".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
