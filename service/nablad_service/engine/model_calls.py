"""A model called in a program: which inputs it is given, its parameters, its state and its randomness."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax

from nablad.problems import Refusal
from nablad_models import Model
from nablad_service.engine import values
from nablad_service.engine.environment import Environment, Meaning
from nablad_service.engine.values import Tree, Value
from nablad_service.language import graph
from nablad_service.language.places import nearest

DROPOUT = 0x64726F70
"""Keeps the keys of dropout apart from those of the random operators."""


def model_call(meaning: Meaning, node: graph.ModelCall, environment: Environment) -> Value:
    """The answer of a model, an array or a tree of named ones.

    A call in train mode at the top level of a program leaves its new state in `environment`.
    """
    model = meaning.models[node.model]
    train = (node.mode or meaning.modes[node.model]) == "train"
    params = _params(node, model, environment)
    inputs = [_input(index, node, meaning, environment) for index in _in_order(node, model)]
    started = environment.state_before(node.model, node.index)
    key = _dropout_key(node, environment) if train else None
    output, state = model.apply(params, started, *inputs, train=train, key=key)
    if train and environment.outermost and not node.mapped:
        # Running statistics are kept, not differentiated.
        environment.states[node.model].append((node.index, jax.lax.stop_gradient(state)))
    answer = OrderedDict(output) if isinstance(output, Mapping) else output
    return values.in_float_type(meaning.dtype, answer)


def _params(node: graph.ModelCall, model: Model, environment: Environment) -> Tree:
    params = environment.values[node.params]
    if not isinstance(params, OrderedDict) or set(params) != set(model.parameter_shapes):
        raise Refusal("wrong_kind", f"params= takes a tree with the parameters of '{node.model}'")
    for name, shape in model.parameter_shapes.items():
        if params[name].shape != shape:
            detail = f"params= has {name} of shape {params[name].shape}, the model's is {shape}"
            raise Refusal("shape_mismatch", detail)
    return params


def _in_order(node: graph.ModelCall, model: Model) -> list[int]:
    """The nodes of the inputs, in the order in which the model declares them."""
    names = list(model.input_shapes)
    call = f"{node.model}({', '.join(names)})"
    given = dict(zip(names, node.arguments, strict=False))
    count = len(node.arguments) + len(node.named)
    takes = f"{call} takes {len(names)} input{'s' * (len(names) != 1)}"
    for name, index in node.named:
        if name not in names:
            detail = f"{takes}, params= and mode=, not '{name}'{nearest(name, names)}"
            raise Refusal("arity", detail)
        if name in given:
            raise Refusal("arity", f"{call} is given '{name}' twice")
        given[name] = index
    if count != len(names):
        raise Refusal("arity", f"{takes}, {count} {'is' if count == 1 else 'are'} given")
    return [given[name] for name in names]


def _input(index: int, node: graph.ModelCall, meaning: Meaning, environment: Environment) -> Any:
    x = values.array(environment.values[index], f"the input of '{node.model}'")
    x = values.in_float_type(meaning.dtype, x)
    return x.astype(meaning.dtype) if x.dtype == bool else x


def _dropout_key(node: graph.ModelCall, environment: Environment) -> Any:
    """One mask a call and run, the same wherever a derivative evaluates the call again."""
    key = jax.random.fold_in(environment.key, DROPOUT)
    for number in (node.index, *environment.runs):
        key = jax.random.fold_in(key, number)
    return key
