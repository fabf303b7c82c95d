"""From a request to train to the query of its program, in one float type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nablad.arrays import Undeclared
from nablad.messages import GradientRequest
from nablad.problems import Refusal
from nablad.training.messages import Batches, Box, TrainRequest
from nablad_service.query import Query
from nablad_service.requests.handles import tree_of, with_values
from nablad_service.requests.recalling import Lookups
from nablad_service.requests.validation import gradient_query
from nablad_service.resident import Leaf, Leaves, Resident
from nablad_service.specs import ArraySpec, TreeSpec, tree_spec
from nablad_service.training.samplers import Examples, Sampler, samplers_of


def loop_query(request: TrainRequest, lookups: Lookups) -> tuple[Query, list[Sampler]]:
    """The query of a loop at its start, with the first points and examples drawn, and what draws them.

    Raises:
        Refusal: whatever is wrong with the request, but for its program and its optimisers.
    """
    samplers = samplers_of(_with_data(request.samplers, lookups), request.seed)
    _check_names(request, samplers)
    drawn = {name: value for sampler in samplers for name, value in _first(sampler).items()}
    terms: list[str] | dict[str, float] = request.terms
    if request.balance is not None:
        if len(terms) < 2:
            raise Refusal("invalid_request", "balance needs two terms at least: name them in 'terms'")
        terms = terms if isinstance(terms, dict) else dict.fromkeys(terms, 1.0)
    if request.accumulate > 1 and not samplers:
        detail = "accumulate takes the mean over several draws, but there are no samplers; leave it out"
        raise Refusal("invalid_request", detail)
    asked = GradientRequest(
        loss=request.loss,
        models=request.models,
        inputs={**request.inputs, **request.trained, **drawn},
        wrt=[*(f"{name}.params" for name in request.models), *request.trained],
        terms=terms,
        nesting=request.nesting,
        strategies=request.strategies,
        examples_at_once=request.examples_at_once,
        memory_limit=request.memory_limit,
    )
    query = gradient_query(with_values(asked, lookups.take), lookups.model)
    return in_dtype(query, query.signature.dtype), samplers


def in_dtype(query: Query, dtype: str) -> Query:
    """The query with all its floats of one type, which its program computes in."""

    def leaf(value: Leaf) -> Leaf:
        if value.dtype.kind != "f" or value.dtype == dtype:
            return value
        array = np.asarray(value).astype(dtype)
        return Resident(array) if isinstance(value, Resident) else array

    def tree(value: Leaf | Leaves) -> Leaf | Leaves:
        if isinstance(value, Mapping):
            return {name: leaf(one) for name, one in value.items()}
        return leaf(value)

    inputs = {name: tree(value) for name, value in query.inputs.items()}
    params, state = (
        {name: {key: leaf(one) for key, one in leaves.items()} for name, leaves in given.items()}
        for given in (query.params, query.state)
    )
    signature = replace(
        query.signature,
        dtype=dtype,
        inputs=tuple((name, _spec(value)) for name, value in inputs.items()),
        models=tuple(
            one._replace(params=tree_spec(params[one.name]), state=tree_spec(state[one.name]))
            for one in query.signature.models
        ),
    )
    return replace(query, signature=signature, inputs=inputs, params=params, state=state)


def _spec(value: Leaf | Leaves) -> ArraySpec | TreeSpec:
    if isinstance(value, Mapping):
        return tree_spec(value)
    return value.spec if isinstance(value, Resident) else ArraySpec.of(value)


def _with_data(given: Mapping[str, Box | Batches], lookups: Lookups) -> dict[str, Box | Batches]:
    """The samplers with resident values in place of handles."""
    found: dict[str, Box | Batches] = {}
    for name, one in given.items():
        if isinstance(one, Batches):
            data = tree_of(one.data, f"samplers.{name}.data", lookups.take)
            found[name] = one.model_copy(update={"data": data})
        else:
            found[name] = one
    return found


def _first(sampler: Sampler) -> dict[str, Any]:
    """The first draw, of no dtype where the sampler has none of its own."""
    drawn = sampler.draw(0)
    if not isinstance(sampler, Examples):
        return {name: Undeclared(array) for name, array in drawn.items()}
    return {
        name: Undeclared(array) if isinstance(sampler.data[name], Undeclared) else array
        for name, array in drawn.items()
    }


def _check_names(request: TrainRequest, samplers: Sequence[Sampler]) -> None:
    """Refuse names with two meanings, and a loop that trains nothing."""
    if not request.models and not request.trained:
        detail = "nothing is trained; name models in 'models', or inputs in 'trained'"
        raise Refusal("invalid_request", detail)
    sampled = {name: sampler.name for sampler in samplers for name in sampler.inputs}
    for name in sampled:
        given = [what for what in ("inputs", "trained", "models") if name in getattr(request, what)]
        if given:
            detail = f"'{name}' is drawn by the sampler '{sampled[name]}' and also stands in '{given[0]}'"
            raise Refusal("sampler", f"{detail}; leave it out of one")
    for name in request.trained:
        given = [what for what in ("inputs", "models") if name in getattr(request, what)]
        if given:
            detail = f"'{name}' stands in 'trained' and in '{given[0]}'; leave it out of one"
            raise Refusal("invalid_request", detail)
