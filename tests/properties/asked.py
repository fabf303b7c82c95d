"""A drawn program, its data and its models, asked of the engine and computed by hand."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ask import gradient, host
from by_hand import loss_by_hand
from drawing import INPUTS, reached
from hypothesis import HealthCheck, settings
from program_tree import Program

LONG = float(os.environ.get("NABLAD_PROPERTIES", "0"))
"""How many times as many examples, drawn anew each time; 0 is the short form, the same every time."""

BOUND = {"field": "properties_field", "net": "properties_net"}
LAYERS = {
    "properties_field": [{"dense": [2, 3], "activation": "tanh"}, {"dense": [3, 2]}],
    "properties_net": [{"dense": [2, 3], "activation": "softplus"}, {"dense": [3, 1]}],
}
Known = dict[str, Any]


def examples(count: int) -> settings:
    """Settings for so many examples in the short form."""
    return settings(
        max_examples=max(int(count * LONG), 1) if LONG else count,
        derandomize=not LONG,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


@functools.cache
def parameters() -> dict[str, dict[str, Any]]:
    return {
        name: OrderedDict(host(hosted, {"layers": LAYERS[hosted]}, seed=number))
        for number, (name, hosted) in enumerate(BOUND.items())
    }


def _two_layers(inside: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(p: Any, x: Any) -> Any:
        h = inside(x @ p["layer_1.weight"].T + p["layer_1.bias"])
        return h @ p["layer_2.weight"].T + p["layer_2.bias"]

    return apply


MODELS = {"field": _two_layers(jnp.tanh), "net": _two_layers(jax.nn.softplus)}


def data(seed: int) -> Known:
    """An array for each input a program may use."""
    numbers = np.random.default_rng(seed)
    return {name: numbers.uniform(-1.3, 1.3, shape) for name, shape in INPUTS.items()}


def inputs_of(program: Program, seed: int) -> Known:
    return {name: array for name, array in data(seed).items() if name in program.names}


def models_of(program: Program) -> dict[str, str]:
    parameters()
    return {name: hosted for name, hosted in BOUND.items() if f"{name}.params" in program.names}


def asked(
    program: Program,
    seed: int,
    nesting: str = "auto",
    text: str | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Any:
    """The engine's value and its gradients by name; of another text of the program, where one is given."""
    found = gradient(
        text or program.text,
        {**inputs_of(program, seed), **(constants or {})},
        models=models_of(program),
        wrt=reached(program),
        nesting=nesting,
    )
    return found["value"], found["gradients"]


def by_hand(program: Program, seed: int) -> Any:
    """Value and gradients, not by the engine."""
    known = {**inputs_of(program, seed)}
    known |= {f"{name}.params": parameters()[name] for name in models_of(program)}
    wrt = {name: known[name] for name in reached(program)}
    loss = loss_by_hand(program, MODELS)
    return jax.jit(jax.value_and_grad(lambda wrt: loss({**known, **wrt})))(wrt)


def largest(tree: Any) -> float:
    return max((float(np.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(tree)), default=0.0)


def agree(found: Any, expected: Any, tolerance: float) -> None:
    """Equal up to `tolerance` of the largest entry of all, or of one where all are small."""
    (value, gradients), (right_value, right) = found, expected
    scale = max(1.0, abs(float(right_value)), largest(right))
    assert abs(float(value) - float(right_value)) <= tolerance * scale, (value, right_value)
    assert set(gradients) == set(right)
    for name, one in right.items():
        _same(gradients[name], one, tolerance * scale, name)


def _same(found: Any, expected: Any, bound: float, name: str) -> None:
    if isinstance(expected, Mapping):
        assert list(found) == list(expected), name
        for leaf, one in expected.items():
            _same(found[leaf], one, bound, f"{name}[{leaf}]")
        return
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, name
    assert np.abs(found - expected).max() <= bound, (name, found, expected)
