"""From the requests of a session to what it begins with, and to the queries of its programs."""

from __future__ import annotations

import ast
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nablad.arrays import Undeclared, decode_array, is_array_form
from nablad.content import handle_in
from nablad.messages import Binding, GradientRequest, Mode, Question
from nablad.problems import Refusal
from nablad.training.messages import SessionGradient, Trained
from nablad_models import Model
from nablad_service.language import Limits
from nablad_service.language.parsing import module_of
from nablad_service.query import Query, float_type
from nablad_service.requests.handles import Take, with_values
from nablad_service.requests.recalling import Lookups
from nablad_service.requests.validation import binding_of, gradient_query, tensors_of, usable
from nablad_service.resident import Leaf, Resident
from nablad_service.specs import tree_spec
from nablad_service.training.labels import parameter_label

MOST_KNOWN = 64
"""Programs of a session that are read once."""
READ = (
    "loss",
    "outputs",
    "term_gradients",
    "nesting",
    "strategies",
    "examples_at_once",
    "memory_limit",
)
"""Members of a call that its program depends on, beside its terms and the shapes of its inputs."""


@dataclass(frozen=True)
class Trainee:
    """A model of a session as queries bind it: shapes and dtypes stand for what the session holds."""

    hosted: str
    """Its name on the server."""
    model: Model
    mode: Mode
    resident_params: Mapping[str, NDArray[Any]]
    resident_state: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Start:
    """What a session begins with, in one float type."""

    models: Mapping[str, Trainee]
    """By the programs' names."""
    inputs: Mapping[str, NDArray[Any]]
    """Those that are trained, as stand-ins."""
    params: Mapping[str, NDArray[Any]]
    """All that is trained, by label."""
    state: Mapping[str, Mapping[str, NDArray[Any]]]
    """Of the models."""


def start_of(request: Trained, lookups: Lookups) -> Start:
    """The start values of what a request trains, and the models around them.

    Raises:
        Refusal: for whatever cannot be trained.
    """
    if not request.models and not request.trained:
        detail = "nothing is trained; name models in 'models', or inputs in 'trained'"
        raise Refusal("invalid_request", detail)
    for name in (*request.models, *request.trained):
        if not usable(name):
            raise Refusal("invalid_request", f"'{name}' is not a name that a program can use")
        if name in request.models and name in request.trained:
            raise Refusal("invalid_request", f"'{name}' stands in 'models' and in 'trained'; rename one")
    asked = with_values(Question(models=request.models, inputs=request.trained), lookups.take)
    bindings = {name: binding_of(bound) for name, bound in asked.models.items()}
    hosted = {name: lookups.model(one.name, one.version) for name, one in bindings.items()}
    tensors = {name: tensors_of(hosted[name], one) for name, one in bindings.items()}
    inputs = {name: _input(value, name) for name, value in asked.inputs.items()}
    given = [np.asarray(leaf) for params, _ in tensors.values() for leaf in params.values()]
    dtype = float_type([*given, *(one for one in inputs.values() if not isinstance(one, Undeclared))])
    # Copies: what stays must not lie in a request's body, or in its sender's memory.
    own = {name: np.array(_array(value), dtype) for name, value in inputs.items()}
    params = {
        parameter_label(name, leaf): np.array(one, dtype)
        for name, (tree, _) in tensors.items()
        for leaf, one in tree.items()
    }
    state = {
        name: {leaf: np.asarray(one) for leaf, one in tree.items()} for name, (_, tree) in tensors.items()
    }
    trainees = {
        name: Trainee(
            bindings[name].name,
            hosted[name].model,
            bindings[name].mode,
            {leaf: stand_in(one.shape, dtype) for leaf, one in tree.items()},
            {leaf: stand_in(one.shape, one.dtype) for leaf, one in state[name].items()},
        )
        for name, (tree, _) in tensors.items()
    }
    if not params and not own:
        raise Refusal("invalid_request", "nothing is trained; the models have no parameters")
    stand_ins = {name: stand_in(one.shape, dtype) for name, one in own.items()}
    return Start(trainees, stand_ins, {**params, **own}, state)


def session_query(
    request: SessionGradient,
    models: Mapping[str, Trainee],
    inputs: Mapping[str, NDArray[Any]],
    take: Take,
    limits: Limits,
) -> Query:
    """The query of a gradient's call, with stand-ins for what the session holds.

    Args:
        request: the call.
        models: of the session; those that the loss does not name are left aside.
        inputs: likewise, those that are trained.
        take: of handles.
        limits: on programs.

    Raises:
        Refusal: whatever is wrong with the request, but for its program.
    """
    for name in request.inputs:
        if name in models or name in inputs:
            detail = f"the session holds '{name}' itself: it trains it; leave it out of 'inputs'"
            raise Refusal("invalid_request", detail)
    named = _names_in(request.loss, limits)
    used = {name: one for name, one in models.items() if named is None or name in named}
    own = {name: one for name, one in inputs.items() if named is None or name in named}
    wrt = [*(f"{name}.params" for name, one in used.items() if one.resident_params), *own]
    if not wrt:
        trained = ", ".join([*models, *inputs])
        detail = f"the loss names nothing that the session trains, which is {trained}"
        raise Refusal("independent", detail)
    asked = GradientRequest.model_construct(
        loss=request.loss,
        models={name: Binding.model_construct(name=name, mode=one.mode) for name, one in used.items()},
        inputs={**request.inputs, **own},
        wrt=wrt,
        terms=request.terms,
        outputs=request.outputs,
        term_gradients=request.term_gradients,
        nesting=request.nesting,
        strategies=request.strategies,
        examples_at_once=request.examples_at_once,
        memory_limit=request.memory_limit,
    )
    return gradient_query(with_values(asked, take), lambda name, version: used[name])


class Questions:
    """Reads the calls of one session; those that differ in numbers alone are read once.

    Used by several threads: what one writes, another may write once more.
    """

    def __init__(
        self, models: Mapping[str, Trainee], inputs: Mapping[str, NDArray[Any]], limits: Limits
    ) -> None:
        self._models = models
        self._inputs = inputs
        self._limits = limits
        self._known: dict[Hashable, Query] = {}

    def query(self, request: SessionGradient, take: Take) -> Query:
        """As `session_query`."""
        arrays = _arrays(request.inputs, take)
        if arrays is None:
            return session_query(request, self._models, self._inputs, take, self._limits)
        specs = tree_spec(arrays)
        rest = tuple(getattr(request, member) for member in READ)
        key = (specs, tuple(request.terms), isinstance(request.terms, dict), repr(rest))
        known = self._known.get(key)
        if known is not None:
            own = {name: self._inputs[name] for name in known.inputs if name in self._inputs}
            weights = request.terms if isinstance(request.terms, dict) else {}
            return replace(known, inputs={**arrays, **own}, weights=weights)
        query = session_query(request, self._models, self._inputs, take, self._limits)
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        stand_ins = {name: stand_in(one.shape, one.dtype) for name, one in arrays.items()}
        self._known[key] = replace(query, inputs={**query.inputs, **stand_ins})
        return query


def _arrays(inputs: Mapping[str, Any], take: Take) -> dict[str, Leaf] | None:
    """Inputs that are arrays with a dtype, or handles of arrays; None where one is anything else."""
    handles = {name: handle for name, value in inputs.items() if (handle := handle_in(value)) is not None}
    values = take(set(handles.values())) if handles else {}
    found: dict[str, Leaf] = {}
    for name, value in inputs.items():
        one = values[handles[name]] if name in handles else _declared(value, name)
        if not isinstance(one, np.ndarray | Resident):
            return None
        found[name] = one
    return found


def _declared(value: Any, name: str) -> NDArray[Any] | None:
    """An array that a request brings with its dtype; None for anything else."""
    if not isinstance(value, Mapping) or "data" not in value:
        return None
    array = decode_array(value, name) if is_array_form(value) else None
    return array if isinstance(array, np.ndarray) else None


def stand_in(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of a shape and a dtype that takes no room."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _names_in(text: str, limits: Limits) -> Collection[str] | None:
    """The names in a program's text; None where it cannot be parsed, which is told elsewhere."""
    if len(text) > limits.text_bytes:
        return None
    try:
        return {node.id for node in ast.walk(module_of(text)) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _input(value: Any, name: str) -> Any:
    if not is_array_form(value):
        raise Refusal("invalid_array", f"'{name}' is trained, and must be an array, not a tree")
    array = decode_array(value, name)
    if not isinstance(array, Undeclared) and array.dtype.kind != "f":
        raise Refusal("wrong_dtype", f"'{name}' is trained, and holds {array.dtype}; send floats")
    return array


def _array(value: Any) -> NDArray[Any]:
    return np.asarray(value.array if isinstance(value, Undeclared) else value)
