"""One loss, asked of the service and written by hand in JAX: what a case is, and when the two agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from zlib import crc32

import jax
import numpy as np

import nablad

Tree = Any
Answer = dict[str, Any]
"""`value`, the terms by name, and the gradients by entry of `wrt`."""

FLOAT32 = float(np.finfo(np.float32).eps)
NEIGHBOURS = 8
WAYS: list[dict[str, Any]] = [
    {"nesting": "default"},
    {"nesting": "reverse_over_reverse"},
    {"nesting": "forward_over_reverse"},
    {"examples_at_once": 2},
]
"""Plans that must give the same numbers as the server's own choice."""


@dataclass(frozen=True, eq=False)
class Case:
    """A program and the same loss by hand: `by_hand(params, **inputs)` gives the value and its terms.

    `params` is the tree of the one model, or the trees of several by the names that the program uses; without
    models it is left out.
    """

    name: str
    program: str
    by_hand: Callable[..., tuple[Any, dict[str, Any]]]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    wrt: Sequence[str] = ("params",)
    terms: Sequence[str] = ()
    mode: str = "eval"
    state: Mapping[str, Any] | None = None


def loss(program: str, **situation: Any) -> Callable[[Callable[..., Any]], Case]:
    """The function below it is the loss of `program`, by hand; together they are a case of that name."""
    return lambda by_hand: Case(by_hand.__name__, program.strip(), by_hand, **situation)


def check(client: nablad.Client, case: Case, dtype: str) -> None:
    """The service's value, terms and gradients are those of the loss by hand."""
    host(client, case)
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(by_service, client, case, dtype)
        reference = by_hand(client, case, "float64")
        allowed = in_float64(reference) if dtype == "float64" else in_float32(client, case, reference)
        others = [] if dtype == "float32" else other_ways(case)
        answers = [asked.result(), *(by_service(client, case, dtype, **way) for way in others)]
    for found, way in zip(answers, [{}, *others], strict=True):
        assert set(found) == set(reference), way
        for name, expected in reference.items():
            agree(f"{name} {way or ''}", found[name], expected, allowed[name], dtype)


def other_ways(case: Case) -> list[dict[str, Any]]:
    """How else the service is asked: one way a case, or all of them where `NABLAD_REFERENCE=all` says so."""
    ways = [way for way in WAYS if "examples_at_once" not in way or has_examples(case)]
    if os.environ.get("NABLAD_REFERENCE") == "all":
        return ways
    return [ways[crc32(case.name.encode()) % len(ways)]]


def has_examples(case: Case) -> bool:
    """Whether an input is an array of examples, of which some can be computed at a time."""
    arrays = [value for value in case.inputs.values() if not isinstance(value, Mapping)]
    return any(length > 1 for array in arrays for length in np.shape(array))


def in_float64(reference: Answer) -> dict[str, float]:
    """How far answers may be off: 1e-9 of a value or term, 1e-8 of the largest entry of a gradient."""
    return {
        name: (1e-8 if name.startswith("d/d") else 1e-9) * largest(expected)
        for name, expected in reference.items()
    }


def in_float32(client: nablad.Client, case: Case, reference: Answer) -> dict[str, float]:
    """How far answers may be off: four times what float32 costs here, and eight units in the last place.

    The cost is the most that plain JAX loses when it runs in float32: on this data and on neighbours whose
    numbers differ in the last place, since on one set of data a sum that cancels may come out right by luck.
    Four, since two orders of one sum differ by a small factor; the units are of the largest entry.
    """

    def lost(name: str, neighbour: int) -> float:
        plain, exact = (by_hand(client, case, dtype, neighbour)[name] for dtype in ("float32", "float64"))
        return apart(plain, exact)

    return {
        name: 4 * max(lost(name, each) for each in range(NEIGHBOURS)) + 8 * FLOAT32 * largest(expected)
        for name, expected in reference.items()
    }


def agree(name: str, found: Tree, expected: Tree, allowed: float, dtype: str) -> None:
    """Same tree, same shapes, the float type asked for, and no entry further off than `allowed`."""
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected), name
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found) if isinstance(leaf, np.ndarray)), name
    away = apart(found, expected)
    assert away <= allowed, f"{name} is {away:.3g} off, {allowed:.3g} allowed: {found} for {expected}"


def by_service(client: nablad.Client, case: Case, dtype: str, **way: Any) -> Answer:
    """What the service answers, over HTTP."""
    params, inputs = data(client, case, dtype)
    answer = client.gradient(
        case.program,
        models={name: hosted(case, name) for name in case.models},
        params=params or None,
        state=case.state,
        inputs=inputs,
        wrt=case.wrt,
        terms=case.terms,
        mode=case.mode if params else None,
        **way,
    )
    assert answer.plan.dtype == dtype
    gradients = {f"d/d {entry}": gradient for entry, gradient in answer.gradients.items()}
    return {"value": answer.value, **answer.terms, **gradients}


@cache
def by_hand(client: nablad.Client, case: Case, dtype: str, neighbour: int = 0) -> Answer:
    """What plain JAX makes of the loss by hand, in one float type throughout."""
    params, inputs = data(client, case, dtype, neighbour)
    variables = {entry: read(params, inputs, entry) for entry in case.wrt}
    (value, terms), gradients = jax.tree.map(np.asarray, compiled(case)(variables, params, inputs))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((value, terms)))
    assert set(terms) == set(case.terms)
    return {"value": value, **terms, **{f"d/d {entry}": each for entry, each in gradients.items()}}


@cache
def compiled(case: Case) -> Callable[..., Any]:
    """Value, terms and gradients of the loss by hand, in the variables that stand first."""

    def replaced(variables: Tree, params: Tree, inputs: Tree) -> tuple[Any, dict[str, Any]]:
        for entry, value in variables.items():
            params, inputs = write(params, inputs, entry, value)
        trees = [next(iter(params.values())) if len(params) == 1 else params] if params else []
        return case.by_hand(*trees, **inputs)

    return jax.jit(jax.value_and_grad(replaced, has_aux=True))


def read(params: Tree, inputs: Tree, entry: str) -> Tree:
    """What an entry of `wrt` names; parameters of a single model without their model's name."""
    if entry in inputs:
        return inputs[entry]
    if entry == "params":
        return next(iter(params.values())) if len(params) == 1 else params
    model, leaf = model_and_leaf(entry)
    return params[model][leaf] if leaf else params[model]


def write(params: Tree, inputs: Tree, entry: str, value: Tree) -> tuple[Tree, Tree]:
    """Parameters and inputs with `value` in the place that an entry of `wrt` names."""
    if entry in inputs:
        return params, {**inputs, entry: value}
    if entry == "params":
        return (dict.fromkeys(params, value) if len(params) == 1 else value), inputs
    model, leaf = model_and_leaf(entry)
    return {**params, model: {**params[model], leaf: value} if leaf else value}, inputs


def model_and_leaf(entry: str) -> tuple[str, str]:
    """`critic.params[layer_1.weight]` is the leaf `layer_1.weight` of `critic`; no leaf is all of them."""
    model, _, leaf = entry.partition(".params")
    return model, leaf.strip("[]")


@cache
def data(
    client: nablad.Client, case: Case, dtype: str, neighbour: int = 0
) -> tuple[dict[str, Tree], dict[str, Any]]:
    """Parameters and inputs: numbers of float32 in either float type, so that both answer one question.

    A `neighbour` other than 0 has numbers that differ in their last place.
    """
    draw = np.random.default_rng(neighbour)

    def convert(leaf: Any) -> Any:
        array = np.asarray(leaf)
        if array.dtype.kind != "f":
            return array
        moved = 1 + FLOAT32 * draw.uniform(-1, 1, array.shape) if neighbour else 1
        return np.asarray(array.astype(np.float32) * moved, np.float32).astype(dtype)

    return jax.tree.map(convert, (host(client, case), dict(case.inputs)))


@cache
def host(client: nablad.Client, case: Case) -> dict[str, Tree]:
    """Host the case's models; gives parameters, moved a little, so that no scale is one and no bias zero."""
    params = {}
    for seed, (name, architecture) in enumerate(case.models.items()):
        client.create_model(hosted(case, name), architecture, seed=seed)
        draw = np.random.default_rng(seed)
        initial = client.params(hosted(case, name)).params
        params[name] = {leaf: p + 0.1 * draw.standard_normal(p.shape) for leaf, p in initial.items()}
    return params


def hosted(case: Case, name: str) -> str:
    """The name under which the server hosts a case's model."""
    return f"{case.name}-{name}"


def flat(tree: Tree) -> Any:
    """All entries of a tree in one float64 vector."""
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def largest(tree: Tree) -> float:
    """The largest entry of a tree."""
    return float(np.abs(flat(tree)).max(initial=0.0))


def apart(one: Tree, other: Tree) -> float:
    """The largest difference of two trees."""
    return float(np.abs(flat(one) - flat(other)).max(initial=0.0))


def normal(*shape: int, seed: int = 0) -> Any:
    """Reproducible data, standard normal."""
    return np.random.default_rng(seed).standard_normal(shape)


def uniform(*shape: int, seed: int = 0) -> Any:
    """Reproducible data between 0 and 1."""
    return np.random.default_rng(seed).random(shape)
