"""The models of Lux.jl's own tests of nested differentiation, batch normalisation in train mode.

Dense, batchnorm, dense; and conv, batchnorm, conv, batchnorm, flatten, dense with gelu and same padding. Each
under the sum of squares of a derivative of the whole batch, which batchnorm makes one function of it:
against JAX written by hand, and against central differences of the engine's own value.

Reference: Lux.jl, test/autodiff/nested_autodiff_tests.jl.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import ENGINE, MODELS, agree, agree_tree, evaluate, gradient, host, rng

from nablad.messages import EvaluateRequest
from nablad.problems import Refusal
from nablad_service.requests.validation import evaluate_query

DENSE = {"layers": [{"dense": [2, 4]}, {"batchnorm": 4}, {"dense": [4, 2]}]}
CONV = {
    "layers": [
        {"conv": [2, 4, 3], "padding": "same", "activation": "gelu"},
        {"batchnorm": 4},
        {"conv": [4, 2, 3], "padding": "same", "activation": "gelu"},
        {"batchnorm": 2},
        {"flatten": True},
        {"dense": [18, 2]},
    ]
}
X = {"lux_dense": rng(4, 2, seed=1), "lux_conv": rng(2, 2, 3, 3, seed=2)}


def normalized(p: Any, layer: str, x: Any, mode: str) -> Any:
    """Over all axes but the channels', or by the running statistics as they begin."""
    each = (slice(None), *[None] * (x.ndim - 2))
    if mode == "train":
        axes = (0, *range(2, x.ndim))
        x = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
    else:
        x = x / np.sqrt(1 + 1e-5)
    return x * p[f"{layer}.scale"][each] + p[f"{layer}.bias"][each]


def convolved(p: Any, layer: str, x: Any) -> Any:
    y = jax.lax.conv_general_dilated(x, p[f"{layer}.weight"], (1, 1), "SAME")
    return jax.nn.gelu(y + p[f"{layer}.bias"][:, None, None], approximate=False)


def linear(p: Any, layer: str, x: Any) -> Any:
    return x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]


def dense_model(p: Any, x: Any, mode: str = "train") -> Any:
    return linear(p, "layer_3", normalized(p, "layer_2", linear(p, "layer_1", x), mode))


def conv_model(p: Any, x: Any, mode: str = "train") -> Any:
    x = normalized(p, "layer_2", convolved(p, "layer_1", x), mode)
    x = normalized(p, "layer_4", convolved(p, "layer_3", x), mode)
    return linear(p, "layer_6", x.reshape(len(x), -1))


BY_HAND = {"lux_dense": dense_model, "lux_conv": conv_model}


@cache
def hosted(name: str) -> dict[str, Any]:
    """Parameters; those of batchnorm moved away from one and zero, where mistakes would hide."""
    params = host(name, DENSE if name == "lux_dense" else CONV, seed=3)
    moved = {
        leaf: array + 0.3 * rng(*array.shape, seed=i)
        if leaf.split(".")[0] in ("layer_2", "layer_4")
        else array
        for i, (leaf, array) in enumerate(params.items())
    }
    MODELS.set_params(name, moved, None)
    return moved


def squares(tree: Any) -> Any:
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def direction(model: str) -> dict[str, Any]:
    return {leaf: np.cos(array) for leaf, array in hosted(model).items()}


Function = Callable[..., Any]
# Program, its further inputs, and the loss by hand of (f, p, x, u, v, w); `w` a direction in the parameters.
PROGRAMS: dict[str, tuple[str, str, Function]] = {
    "jacobian": (
        *("sum(jacobian(model(x), x)**2)", "x"),
        lambda f, p, x, u, v, w: squares(jax.jacrev(f, 1)(p, x)),
    ),
    "gradient": (
        *("g = grad(sum(model(x)**2), x)\nsum(g**2)", "x"),
        lambda f, p, x, u, v, w: squares(jax.grad(lambda x: jnp.sum(f(p, x) ** 2))(x)),
    ),
    "vjp": (
        *("sum(vjp(model(x), x, u)**2)", "xu"),
        lambda f, p, x, u, v, w: squares(jax.grad(lambda x: jnp.sum(u * f(p, x)))(x)),
    ),
    "jvp": (
        *("sum(jvp(model(x), x, v)**2)", "xv"),
        lambda f, p, x, u, v, w: squares(jnp.tensordot(jax.jacrev(f, 1)(p, x), v, v.ndim)),
    ),
    "gradient in the parameters": (
        *("sum(ravel(grad(sum(model(x)**2), model.params))**2)", "x"),
        lambda f, p, x, u, v, w: squares(jax.grad(lambda p: jnp.sum(f(p, x) ** 2))(p)),
    ),
    "vjp in the parameters": (
        *("sum(ravel(vjp(model(x), model.params, u))**2)", "xu"),
        lambda f, p, x, u, v, w: squares(jax.grad(lambda p: jnp.sum(u * f(p, x)))(p)),
    ),
    "jvp in the parameters": (
        *("sum(jvp(model(x), model.params, w)**2)", "xw"),
        lambda f, p, x, u, v, w: squares(jax.jvp(lambda p: f(p, x), (p,), (w,))[1]),
    ),
    "jacobian in the parameters": (
        *("sum(jacobian(model(x), model.params)**2)", "x"),
        lambda f, p, x, u, v, w: squares(jax.jacrev(f)(p, x)),
    ),
}
# The nesting has a say in some; what takes long to compile is asked once.
CASES = [
    (model, program, nesting)
    for model in X
    for program in PROGRAMS
    for nesting in ("auto", "reverse_over_reverse")
    if nesting == "auto" or program.split()[0] in ("gradient", "vjp")
    if model == "lux_dense"
    or "parameters" not in program
    or (program, nesting) == ("gradient in the parameters", "auto")
]


@cache
def inputs(model: str, names: str) -> dict[str, Any]:
    x = X[model]
    every = {"x": x, "u": rng(len(x), 2, seed=4), "v": rng(*x.shape, seed=5), "w": direction(model)}
    return {name: every[name] for name in names}


@cache
def by_hand(model: str, program: str) -> Any:
    loss = PROGRAMS[program][2]
    given = inputs(model, "xuvw")
    params, w = OrderedDict(hosted(model)), OrderedDict(given["w"])

    def of(p: Any, x: Any) -> Any:
        return loss(BY_HAND[model], p, x, given["u"], given["v"], w)

    return compiled_once(jax.value_and_grad(of, (0, 1)), params, given["x"])


def compiled_once(function: Function, *arguments: Any) -> Any:
    """Run once: what the compiler would spend on speed is lost."""
    lowered = jax.jit(function).lower(*arguments)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})(*arguments)


@cache
def answer(model: str, program: str, nesting: str) -> dict[str, Any]:
    text, names, _ = PROGRAMS[program]
    given = inputs(model, names)
    return gradient(text, given, model=model, mode="train", wrt=["params", "x"], nesting=nesting)


@pytest.mark.parametrize(("model", "program", "nesting"), CASES)
def test_train_mode_agrees_with_jax_by_hand(model: str, program: str, nesting: str) -> None:
    found = answer(model, program, nesting)
    value, (params, x) = by_hand(model, program)
    agree(found["value"], value, 1e-9)
    agree_tree(found["gradients"]["params"], params, 1e-9)
    agree(found["gradients"]["x"], x, 1e-9)


class Value:
    """A program's value at any parameters and inputs; compiled once."""

    def __init__(self, model: str, text: str, given: dict[str, Any]) -> None:
        self.model, self.text, self.given = model, text, given
        self.executable = ENGINE.compile(ENGINE.trace(self.query({})))

    def query(self, moved: dict[str, Any]) -> Any:
        params = {leaf: moved.get(leaf, array) for leaf, array in hosted(self.model).items()}
        bound = {"model": {"name": self.model, "mode": "train", "params": params}}
        given = {**self.given, "x": moved.get("x", self.given["x"])}
        return evaluate_query(EvaluateRequest(program=self.text, inputs=given, models=bound), MODELS.get)

    def at(self, moved: dict[str, Any]) -> float:
        return float(self.executable.run(self.query(moved))["outputs"]["result"])


def directions(point: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """Random ones, of length one over all arrays together."""
    for seed in range(count):
        drawn = {
            name: rng(*array.shape, seed=100 * seed + i) for i, (name, array) in enumerate(point.items())
        }
        length = np.sqrt(sum(np.sum(array**2) for array in drawn.values()))
        yield {name: array / length for name, array in drawn.items()}


def slope(value: Value, point: dict[str, Any], v: dict[str, Any], h: float = 1e-3) -> float:
    """The derivative along v, by central differences of fourth order."""
    f1, b1, f2, b2 = (
        value.at({name: point[name] + step * h * v[name] for name in point}) for step in (1, -1, 2, -2)
    )
    return (8 * (f1 - b1) - (f2 - b2)) / (12 * h)


@pytest.mark.parametrize("model", X)
@pytest.mark.parametrize("program", ["jacobian", "gradient", "vjp", "jvp"])
def test_train_mode_agrees_with_finite_differences(model: str, program: str) -> None:
    params = hosted(model)
    text, names, _ = PROGRAMS[program]
    given = inputs(model, names)
    found = answer(model, program, "auto")["gradients"]
    value = Value(model, text, given)
    for point, gradients in ((params, found["params"]), ({"x": given["x"]}, {"x": found["x"]})):
        largest = np.sqrt(sum(np.sum(array**2) for array in gradients.values()))
        for v in directions(point, 8):
            expected = sum(np.sum(v[name] * gradients[name]) for name in point)
            assert abs(slope(value, point, v) - expected) <= 1e-6 * largest


@pytest.mark.parametrize("model", X)
def test_batched_jacobian_is_refused_in_train_mode_where_examples_mix(model: str) -> None:
    hosted(model)
    with pytest.raises(Refusal) as caught:
        gradient("sum(batched_jacobian(model(x), x)**2)", inputs(model, "x"), model=model, mode="train")
    assert caught.value.code == "couples_examples"
    assert caught.value.where is not None
    assert caught.value.where.text == "batched_jacobian(model(x), x)"


@pytest.mark.parametrize("model", X)
def test_batched_jacobian_in_eval_mode_holds_the_blocks_of_the_jacobian(model: str) -> None:
    hosted(model)
    given = inputs(model, "x")
    text = "J = batched_jacobian(model(x), x)\nwhole = jacobian(model(x), x)\nsum(J**2)"
    found = gradient(text, given, model=model, wrt=["params", "x"], outputs=["J", "whole"])
    blocks, whole = found["outputs"]["J"], found["outputs"]["whole"]
    n = len(given["x"])
    expected = np.einsum("ikil->ikl", whole.reshape(n, 2, n, -1))
    agree(blocks, expected, 1e-13)
    assert np.abs(whole).sum() == pytest.approx(np.abs(blocks).sum(), rel=1e-12), "the others are zero"

    def loss(p: Any, x: Any) -> Any:
        return squares(jax.vmap(jax.jacrev(lambda x: BY_HAND[model](p, x[None], "eval")[0]))(x))

    value, (params, x) = compiled_once(jax.value_and_grad(loss, (0, 1)), hosted(model), given["x"])
    agree(found["value"], value, 1e-9)
    agree_tree(found["gradients"]["params"], params, 1e-9)
    agree(found["gradients"]["x"], x, 1e-9)


@pytest.mark.parametrize("model", X)
def test_the_model_itself_is_the_one_written_by_hand(model: str) -> None:
    params, given = hosted(model), inputs(model, "x")
    for mode in ("train", "eval"):
        agree(evaluate("model(x)", given, model=model, mode=mode), BY_HAND[model](params, given["x"], mode))
