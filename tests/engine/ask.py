"""Ask the engine in process: for tests that are about derivatives, not about HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nablad.messages import EvaluateRequest, GradientRequest
from nablad_service.engine.engine import Engine
from nablad_service.hosting import ModelStore
from nablad_service.requests.validation import evaluate_query, gradient_query

ENGINE = Engine.start()
MODELS = ModelStore(max_models=1000)


def host(name: str, architecture: Mapping[str, Any], dtype: str = "float64", seed: int = 0) -> dict[str, Any]:
    """Host a model; gives its parameters in `dtype`."""
    hosted = MODELS.put(name, architecture, None, None, seed)
    params = {leaf: array.astype(dtype) for leaf, array in hosted.params.items()}
    MODELS.set_params(name, params, None)
    return params


def gradient(loss: str, inputs: Mapping[str, Any], **asked: Any) -> dict[str, Any]:
    """The answer's arrays, and its plan."""
    request = GradientRequest(loss=loss, inputs=dict(inputs), **_bound(asked))
    return _run(gradient_query(request, MODELS.get))


def evaluate(program: str, inputs: Mapping[str, Any], **asked: Any) -> Any:
    """The value of the last expression, or all outputs asked for."""
    request = EvaluateRequest(program=program, inputs=dict(inputs), **_bound(asked))
    outputs = _run(evaluate_query(request, MODELS.get))["outputs"]
    return outputs if request.outputs else outputs["result"]


def _bound(asked: dict[str, Any]) -> dict[str, Any]:
    if "model" in asked:
        asked["models"] = {"model": {"name": asked.pop("model"), "mode": asked.pop("mode", "eval")}}
    return asked


def _run(query: Any) -> dict[str, Any]:
    executable = ENGINE.compile(ENGINE.trace(query))
    return {**executable.run(query), "plan": executable.plan}


def agree(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Equal up to `tolerance` of the largest entry, and of one shape."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    largest = max(np.abs(expected).max(initial=0.0), 1e-300)
    assert np.abs(found - expected).max(initial=0.0) <= tolerance * largest


def agree_tree(found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 1e-12) -> None:
    """Leaf by leaf, measured against the largest entry of the whole tree."""
    assert set(found) == set(expected)
    scale = max(float(np.abs(leaf).max(initial=0.0)) for leaf in expected.values())
    for name, leaf in expected.items():
        assert np.shape(found[name]) == np.shape(leaf), name
        assert np.abs(found[name] - leaf).max(initial=0.0) <= tolerance * scale, name


def by_jax(loss: Any, argnums: Any = 0) -> Any:
    """Value and gradients of a loss written by hand; compiled, since op by op takes many times as long."""
    return jax.jit(jax.value_and_grad(loss, argnums))


def rng(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Reproducible float64 data."""
    return np.random.default_rng(seed).standard_normal(shape)


NESTINGS: Sequence[str] = ("auto", "reverse_over_reverse", "forward_over_reverse")
