"""From a request to a query: names resolved, arrays in their dtypes, all checked but the text."""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from nablad.arrays import Received, Undeclared
from nablad.messages import Binding, EvaluateRequest, GradientRequest, Question, decode_arrays, decode_inputs
from nablad.problems import Refusal
from nablad_models import Model
from nablad_service.hosting import own_tensors
from nablad_service.language.places import nearest
from nablad_service.query import ModelSignature, Query, Signature, Variable, float_type
from nablad_service.resident import Leaf, Leaves, Resident
from nablad_service.specs import ArraySpec, tree_spec

LEAF = re.compile(r"(?P<model>[^\W\d]\w*)\.params(?:\[(?P<leaf>[^\]]+)\])?")
Given: TypeAlias = "Received | Resident"


class Bindable(Protocol):
    """A model with the parameters and the state that a binding has unless it brings its own."""

    @property
    def model(self) -> Model: ...

    @property
    def resident_params(self) -> Leaves: ...

    @property
    def resident_state(self) -> Leaves: ...


Lookup = Callable[[str, str | None], Bindable]
"""A hosted model by its name, with the resident parameters of a version, or the current ones."""


def gradient_query(request: GradientRequest, lookup: Lookup, *, dtype: str | None = None) -> Query:
    """The query of `POST /v1/gradient`; `dtype` forces a float type, as `/v1/check` does."""
    weights = request.terms if isinstance(request.terms, dict) else {}
    return _query(
        request,
        lookup,
        dtype,
        kind="gradient",
        text=request.loss,
        wrt=tuple(request.wrt),
        term_gradients=request.term_gradients,
        terms=tuple(request.terms),
        weights=weights,
        outputs=tuple(request.outputs),
    )


def evaluate_query(request: EvaluateRequest, lookup: Lookup) -> Query:
    """The query of `POST /v1/evaluate`."""
    outputs = tuple(request.outputs) if request.outputs is not None else ("result",)
    return _query(
        request,
        lookup,
        None,
        kind="evaluate",
        text=request.program,
        wrt=(),
        terms=(),
        weights={},
        outputs=outputs,
    )


def _query(
    request: Question,
    lookup: Lookup,
    dtype: str | None,
    *,
    kind: Any,
    text: str,
    wrt: tuple[str, ...],
    terms: tuple[str, ...],
    weights: Mapping[str, float],
    outputs: tuple[str, ...],
    term_gradients: Any = "none",
) -> Query:
    if term_gradients != "none" and not terms:
        raise Refusal("invalid_request", "term_gradients needs terms: name the values to differentiate")
    received = decode_inputs(request.inputs, "")
    for name in (*request.inputs, *request.models):
        if not usable(name):
            raise Refusal("invalid_request", f"'{name}' is not a name that a program can use")
    bindings = {name: binding_of(bound) for name, bound in request.models.items()}
    hosted = {name: lookup(binding.name, binding.version) for name, binding in bindings.items()}
    tensors = {name: tensors_of(hosted[name], binding) for name, binding in bindings.items()}
    params = {name: own for name, (own, _) in tensors.items()}
    state = {name: own for name, (_, own) in tensors.items()}
    given: list[Leaf] = [leaf for tree in params.values() for leaf in tree.values()]
    given += [leaf for leaf in _leaves(received) if not isinstance(leaf, Undeclared)]
    dtype = dtype or float_type(given)
    variables = tuple(_variable(key, request, hosted) for key in wrt)
    if kind == "gradient" and not variables:
        raise Refusal("invalid_request", "wrt is empty: name what to differentiate, or call /v1/evaluate")
    wanted = {variable.name for variable in variables if variable.kind == "input"}
    inputs = {
        name: _settle(value, name, dtype, differentiated=name in wanted, models=hosted)
        for name, value in received.items()
    }
    signature = Signature(
        kind=kind,
        text=text,
        models=tuple(
            ModelSignature(
                name, hosted[name].model.digest, binding.mode, tree_spec(params[name]), tree_spec(state[name])
            )
            for name, binding in bindings.items()
        ),
        inputs=tuple((name, _spec(value)) for name, value in inputs.items()),
        wrt=variables,
        terms=terms,
        weighted=bool(weights),
        outputs=outputs,
        nesting=request.nesting,
        strategies=tuple(sorted(request.strategies.items())),
        examples_at_once=request.examples_at_once,
        memory_limit=request.memory_limit,
        dtype=dtype,
        term_gradients=term_gradients,
        buckets=tuple(sorted(set(request.buckets))),
    )
    models = {name: one.model for name, one in hosted.items()}
    return Query.of(
        signature,
        models,
        inputs=inputs,
        params=params,
        state=state,
        weights=weights,
        seed=request.seed,
        deadline_ms=request.deadline_ms,
        tune=request.tune,
        batch=request.batch,
    )


def usable(name: str) -> bool:
    """Whether the text can hold `name`; the parser reads names in normal form KC."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def binding_of(bound: Binding | str) -> Binding:
    """The binding that a bare name stands for."""
    return Binding(name=bound) if isinstance(bound, str) else bound


def tensors_of(hosted: Bindable, binding: Binding) -> tuple[Leaves, Leaves]:
    """Parameters and state of a binding: the ones sent, else the resident ones."""
    params, state = (
        None if given is None else decode_arrays(given, f"{binding.name}.{what}.")
        for what, given in (("params", binding.params), ("state", binding.state))
    )
    own, own_state = own_tensors(hosted.model, params, state)
    return (
        own if own is not None else hosted.resident_params,
        own_state if own_state is not None else hosted.resident_state,
    )


def _leaves(received: Mapping[str, Given | Mapping[str, Given]]) -> list[Given]:
    found: list[Given] = []
    for value in received.values():
        found.extend(value.values() if isinstance(value, Mapping) else [value])
    return found


def _settle(
    value: Given | Mapping[str, Given],
    name: str,
    dtype: str,
    *,
    differentiated: bool,
    models: Mapping[str, Bindable],
) -> Leaf | dict[str, Leaf]:
    """Numbers without a dtype take the program's float type; whole ones stay whole unless differentiated."""
    if isinstance(value, Mapping):
        tree = {
            leaf: _settle(one, f"{name}.{leaf}", dtype, differentiated=differentiated, models={})
            for leaf, one in value.items()
        }
        for hosted in models.values():  # a tree shaped like a model's parameters has their order
            if set(tree) == set(hosted.model.parameter_shapes):
                return {leaf: tree[leaf] for leaf in hosted.model.parameter_shapes}  # type: ignore[misc] # leaves of a tree are no trees
        return tree  # type: ignore[return-value] # likewise
    if isinstance(value, Undeclared):
        whole = value.array.dtype.kind in "iub"
        if whole and not differentiated:
            return value.array
        return value.array.astype(dtype)
    if differentiated and value.dtype.kind != "f":
        detail = f"wrt asks for '{name}', which holds {value.dtype}; send floats"
        raise Refusal("wrong_dtype", detail)
    return value


def _spec(value: Leaf | Leaves) -> Any:
    if isinstance(value, Mapping):
        return tree_spec(value)
    return value.spec if isinstance(value, Resident) else ArraySpec.of(value)


def _variable(key: str, request: Question, hosted: Mapping[str, Bindable]) -> Variable:
    """One entry of `wrt`: an input first, since inputs may be called anything."""
    if key in request.inputs:
        return Variable(key, "input", key)
    if key == "params":
        if not hosted:
            inputs = ", ".join(f'"{name}"' for name in request.inputs) or "none"
            detail = f"wrt asks for params, but no model is bound; the inputs are {inputs}"
            raise Refusal("invalid_request", detail)
        return Variable(key, "params")
    match = LEAF.fullmatch(key)
    if match and match["model"] in hosted:
        leaf = match["leaf"]
        if leaf is None:
            return Variable(key, "params", match["model"])
        known = hosted[match["model"]].model.parameter_shapes
        if leaf in known:
            return Variable(key, "leaf", match["model"], leaf)
        detail = f"'{match['model']}' has no parameter '{leaf}'{nearest(leaf, known)}"
        raise Refusal("invalid_request", f"{detail}; it has {', '.join(known)}")
    choices = ["params", *request.inputs, *(f"{name}.params" for name in hosted)]
    detail = f"wrt asks for '{key}'{nearest(key, choices)}; it may name {', '.join(choices)}"
    raise Refusal("invalid_request", detail)
