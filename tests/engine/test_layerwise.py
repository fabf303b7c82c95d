"""Norms and products of the rows of parameter Jacobians, layer by layer: the numbers of `jax.jacrev`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import ENGINE, agree, agree_tree, by_jax, rng
from test_strategies import NETS

from nablad.messages import GradientRequest
from nablad.problems import Refusal
from nablad_models import Model, from_equinox, from_functions
from nablad_service.engine.engine import Engine
from nablad_service.engine.executable import Traced
from nablad_service.engine.jaxprs import equations
from nablad_service.hosting import ModelStore
from nablad_service.hosting.python_models import PythonModels
from nablad_service.language import Limits
from nablad_service.query import Query, arguments
from nablad_service.requests.validation import gradient_query

TRANSFORMER = {
    "input": [None, 3],
    "layers": [
        {"dense": [3, 4]},
        {"position_embedding": [9, 4]},
        {"residual": [{"layernorm": 4}, {"attention": {"heads": 2, "size": 4, "causal": True}}]},
        {"residual": [{"rmsnorm": 4}, {"dense": [4, 8], "activation": "gelu"}, {"dense": [8, 4]}]},
        {"dense": [4, 1]},
    ],
}
CONVOLUTIONS = {
    "layers": [
        {"conv": [2, 4, 3], "stride": 2, "padding": 1, "groups": 2, "activation": "tanh"},
        {"groupnorm": [2, 4]},
        {"conv_transpose": [4, 2, 2], "dims": 2, "stride": 2, "groups": 2, "activation": "silu"},
        {"conv": [2, 3, [2, 1]], "dilation": 2, "padding": "same"},
        {"flatten": True},
        {"dense": [48, 2]},
    ]
}
ARCHITECTURES: dict[str, tuple[Mapping[str, Any], tuple[int, ...]]] = {
    **NETS,
    "scalar": ({"preset": "mlp", "sizes": [3, 5, 4, 1], "activation": "relu"}, (6, 3)),
    "transformer": (TRANSFORMER, (3, 5, 3)),
    # Few places and wide layers: pairs of places are taken, no row is formed.
    "wide attention": (
        {"input": [None, 16], "layers": [{"attention": {"heads": 2, "size": 16}}]},
        (2, 2, 16),
    ),
    "convolutions": (CONVOLUTIONS, (3, 2, 4, 4)),
    "batchnorm": (
        {"layers": [{"dense": [3, 4], "activation": "tanh"}, {"batchnorm": 4}, {"dense": [4, 2]}]},
        (5, 3),
    ),
    "wide batchnorm": ({"layers": [{"dense": [3, 9]}, {"batchnorm": 9}, {"dense": [9, 1]}]}, (5, 3)),
    "siren": ({"layers": [{"siren": [3, 4], "first": True}, {"dense": [4, 1]}]}, (5, 3)),
}


def tied(p: Any, x: Any) -> Any:
    """One weight twice, the second time transposed."""
    return jnp.tanh(x @ p["w"]) @ p["w"].T * p["scale"]


def recurrent(p: Any, x: Any) -> Any:
    """A weight in a loop."""

    def step(h: Any, _: None) -> tuple[Any, None]:
        return jnp.tanh(h @ p["w"] + p["b"]), None

    return jax.lax.scan(step, x, None, length=3)[0] @ p["out"]


def normalised(p: Any, x: Any) -> Any:
    """A weight that is a function of the parameters."""
    return jnp.tanh(x @ (p["v"] / jnp.linalg.norm(p["v"]) * jnp.exp(p["g"]))) @ p["out"]


def cut(p: Any, x: Any) -> Any:
    """Pieces of one array: the first lies apart from the second, which is used twice."""
    h = jnp.tanh(x @ p["w"][:, :3]) @ p["w"][:, 3:]
    return jnp.sin(h @ p["w"][:, 3:]) * p["unused"].shape[0]


def many_values(p: Any, x: Any) -> Any:
    """No axis of examples, (values,)."""
    return jnp.tanh(p["w"] @ jnp.tanh(p["v"] @ x.reshape(-1)) + p["b"])


OF_FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "tied": (tied, {"w": (3, 4), "scale": (1,)}, (5, 3)),
    "recurrent": (recurrent, {"w": (3, 3), "b": (3,), "out": (3, 8)}, (4, 3)),
    "normalised": (normalised, {"v": (3, 4), "g": (1,), "out": (4, 8)}, (5, 3)),
    "cut": (cut, {"w": (3, 6), "unused": (2,)}, (5, 3)),
    "many values": (many_values, {"v": (4, 6), "w": (5, 4), "b": (5,)}, (2, 3)),
}


class Gated(eqx.Module):
    """An Equinox module with a weight that the layers of nablad do not have."""

    inner: eqx.nn.MLP
    gate: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """One example."""
        return self.inner(x) * jax.nn.sigmoid(self.gate * x[0])


def gated() -> Model:
    key = jax.random.key(0)
    inner = eqx.nn.MLP(3, 2, 5, 2, activation=jnp.tanh, key=key)
    return from_equinox(Gated(inner, jnp.array([0.4, -1.0])), example=(3,))


def of_functions(name: str) -> Model:
    function, shapes, _ = OF_FUNCTIONS[name]
    zeros = {leaf: np.zeros(shape) for leaf, shape in shapes.items()}
    return from_functions(lambda key: zeros, function)


SHAPES = {
    **{name: shape for name, (_, shape) in ARCHITECTURES.items()},
    **{name: shape for name, (_, _, shape) in OF_FUNCTIONS.items()},
    "equinox": (5, 3),
}


@cache
def store() -> ModelStore:
    written = {**{name.replace(" ", "_"): of_functions(name) for name in OF_FUNCTIONS}, "equinox": gated()}
    found = ModelStore(100, python=PythonModels(models=dict(written), places=dict.fromkeys(written, "here")))
    for name, (architecture, _) in ARCHITECTURES.items():
        found.put(name.replace(" ", "_"), architecture, None, None, 3)
    return found


def asked(program: str, net: str, dtype: str = "float64", x: Any = None, **asks: Any) -> Query:
    """A request for value and gradients, its parameters drawn so that none is zero."""
    name = net.replace(" ", "_")
    shapes = store().get(name).model.parameter_shapes
    params = {
        leaf: (rng(*shape, seed=7 + place) / max(shape[-1:] or (1,)) ** 0.5).astype(dtype)
        for place, (leaf, shape) in enumerate(shapes.items())
    }
    given = (0.7 * rng(*SHAPES[net], seed=1)).astype(dtype) if x is None else x
    binding = {"name": name, "mode": asks.pop("mode", "eval"), "params": params}
    asks.setdefault("wrt", ["params", "x"])
    request = GradientRequest(loss=program, inputs={"x": given}, models={"model": binding}, **asks)
    return gradient_query(request, store().get)


def answer(query: Query, engine: Engine = ENGINE) -> dict[str, Any]:
    executable = engine.compile(engine.trace(query))
    return {**executable.run(query), "plan": executable.plan}


Function = Callable[..., Any]
EVERY = ("model(x)", lambda f, p, x: f(p, x))
SCALARS = (
    "sum(sin(reshape(model(x), (x.shape[0], -1))), axis=1)",
    lambda f, p, x: jnp.sum(jnp.sin(f(p, x).reshape(len(x), -1)), axis=1),
)
TWICE = ("model(model(x))", lambda f, p, x: f(p, f(p, x)))
CALLS = ("model(x) * model(sin(x))", lambda f, p, x: f(p, x) * f(p, jnp.sin(x)))


def by_hand(query: Query, value: Function, of: Function, train: bool = False) -> tuple[Any, Any]:
    """`of` the whole Jacobian of `value(f, p, x)` by `jax.jacrev`, with gradients in parameters and x."""
    model, state = query.models["model"], arguments(query)["state"].get("model", {})

    def f(p: Any, x: Any) -> Any:
        return model.apply(p, state, x, train=train)[0]

    def loss(p: Any, x: Any) -> Any:
        J = jax.jacrev(lambda p: value(f, p, x).reshape(-1))(p)
        return of(jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in J.values()], axis=1))

    return by_jax(loss, (0, 1))(dict(query.params["model"]), query.inputs["x"])


def compare(found: Mapping[str, Any], expected: tuple[Any, Any], tolerance: float = 1e-12) -> None:
    value, (params, x) = expected
    agree(found["value"], value, tolerance)
    agree_tree(found["gradients"]["params"], params, tolerance)
    agree(found["gradients"]["x"], x, tolerance)


NORMS = (
    "J = jacobian({}, model.params)\nsum(log(1 + sum(J**2, axis=1)))",
    lambda J: jnp.sum(jnp.log(1 + jnp.sum(J**2, 1))),
)
GRAM = ("J = jacobian({}, model.params)\nmean((J @ J.T)**2)", lambda J: jnp.mean((J @ J.T) ** 2))
FORMS = {
    "sum of all": ("sum(jacobian({}, model.params)**2)", lambda J: jnp.sum(J**2)),
    "mean of all": ("mean(jacobian({}, model.params)**2)", lambda J: jnp.mean(J**2)),
    "mean of rows": (
        "sum(mean(square(jacobian({}, model.params)), axis=-1)**2)",
        lambda J: jnp.sum(jnp.mean(J**2, 1) ** 2),
    ),
    "norm": ("norm(jacobian({}, model.params))", jnp.linalg.norm),
    "norm squared": ("norm(jacobian({}, model.params))**2", lambda J: jnp.sum(J**2)),
    "norms of rows": (
        "sum(norm(jacobian({}, model.params), axis=1, eps=0.3))",
        lambda J: jnp.sum(jnp.sqrt(jnp.sum(J**2, 1) + 0.09)),
    ),
    "norms of rows squared": (
        "n = norm(jacobian({}, model.params), axis=1)\nsum(n**2 * n**2)",
        lambda J: jnp.sum(jnp.sum(J**2, 1) ** 2),
    ),
    "product": ("J = jacobian({}, model.params)\nK = J\nsum(J * K)", lambda J: jnp.sum(J**2)),
    "two readers": (
        "J = jacobian({}, model.params)\nsum(J**2) + norm(J)",
        lambda J: jnp.sum(J**2) + jnp.linalg.norm(J),
    ),
    "transpose": (
        "J = jacobian({}, model.params)\nK = transpose(J)\nsum(cos(J @ K))",
        lambda J: jnp.sum(jnp.cos(J @ J.T)),
    ),
    "in a def": (
        "def size(J):\n    return sum(J**2)\nsize(jacobian({}, model.params))",
        lambda J: jnp.sum(J**2),
    ),
}
FORMED = ("recurrent", "normalised", "tied")
"""Parameters that act in a way which is not followed: their rows are formed, the others' are not."""
CASES = [
    *(
        (net, value, form)
        for net in SHAPES
        for value in (EVERY, SCALARS)
        for form in (NORMS, GRAM)
        if net not in ("many values", "wide batchnorm")
    ),
    ("many values", EVERY, NORMS),
    ("many values", EVERY, GRAM),
    *(("mlp", TWICE, form) for form in (NORMS, GRAM)),
    *(("mlp", CALLS, form) for form in (NORMS, GRAM)),
    *(("attention", CALLS, form) for form in (NORMS, GRAM)),
    *(("mlp", EVERY, form) for form in FORMS.values()),
]


@pytest.mark.parametrize(("net", "value", "form"), CASES)
def test_value_and_gradients_are_those_of_the_whole_jacobian(net: str, value: Any, form: Any) -> None:
    (text, function), (program, of) = value, form
    query = asked(program.format(text), net)
    found = answer(query)
    (planned,) = found["plan"].derivatives
    assert planned.operator != "jacobian"
    assert planned.strategy == "layerwise" or net in FORMED
    compare(found, by_hand(query, function, of))


@pytest.mark.parametrize("net", ["mlp", "conv", "attention", "wide attention", "convolutions"])
@pytest.mark.parametrize("form", [NORMS, GRAM], ids=["norms", "gram"])
def test_float32_is_as_good_as_it_gets(net: str, form: Any) -> None:
    program, of = form
    text, function = SCALARS
    found = answer(asked(program.format(text), net, "float32"))
    single = asked(program.format(text), net, "float32")
    double = {name: array.astype("float64") for name, array in single.params["model"].items()}
    query = asked(program.format(text), net, x=single.inputs["x"].astype("float64"))
    query.params["model"].update(double)  # type: ignore[attr-defined]
    compare(found, by_hand(query, function, of), 5e-6)


GRADIENTS = {
    "squared": ("norm(grad({}, model.params))**2", jnp.sum),
    "guarded": ("norm(grad({}, model.params), eps=0.2)", lambda s: jnp.sum(jnp.sqrt(s + 0.04))),
    "as a vector": ("sum(ravel(grad({}, model.params))**2)", jnp.sum),
    "of a vector": ("sum(ravel(grad({}, model.params)**2))", jnp.sum),
    "dot": ("g = grad({}, model.params)\n    return dot(g, g)", jnp.sum),
}


@pytest.mark.parametrize("case", GRADIENTS)
@pytest.mark.parametrize("net", ["mlp", "convolutions", "wide attention", "many values"])
def test_norms_of_gradients_of_each_example(net: str, case: str) -> None:
    text, of = GRADIENTS[case]
    line = text.format("sum(sin(model(p)))")
    program = "def f(p):\n    " + (line if "return" in line else f"return {line}") + "\nsum(vmap(f)(x))"
    x = (
        np.stack([0.7 * rng(*SHAPES[net], seed=1), 0.5 * rng(*SHAPES[net], seed=2)])
        if net == "many values"
        else None
    )
    query = asked(program, net, x=x)
    found = answer(query)
    (planned,) = found["plan"].derivatives
    assert (planned.operator, planned.strategy) == ("gradient_norm", "layerwise") or net == "convolutions"

    def scalars(f: Any, p: Any, x: Any) -> Any:
        return jax.vmap(lambda x: jnp.sum(jnp.sin(f(p, x))))(x)

    compare(found, by_hand(query, scalars, lambda J: of(jnp.sum(J**2, 1))))


@pytest.mark.parametrize("leaf", ["layer_1.weight", "layer_2.bias", "layer_3.weight"])
def test_one_leaf(leaf: str) -> None:
    query = asked(f'sum(sin(norm(jacobian(model(x), model.params["{leaf}"]))**2))', "mlp")
    found = answer(query)
    assert found["plan"].derivatives[0].strategy == "layerwise"
    model = query.models["model"]

    def loss(p: Any, x: Any) -> Any:
        J = jax.jacrev(lambda w: model.apply({**p, leaf: w}, {}, x, train=False)[0])(p[leaf])
        return jnp.sin(jnp.sum(J**2))

    compare(found, by_jax(loss, (0, 1))(dict(query.params["model"]), query.inputs["x"]))


def test_derivatives_of_higher_order_go_through() -> None:
    program = """
def size(p):
    return norm(grad(sum(sin(model(p))), model.params))**2

def f(p):
    s = size(p)
    return laplacian(s, p) + sum(grad(s, p)**2)
mean(vmap(f)(x))"""
    query = asked(program, "mlp")
    model = query.models["model"]

    def size(p: Any, x: Any) -> Any:
        g = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, {}, x, train=False)[0])))(p)
        return sum(jnp.sum(leaf**2) for leaf in g.values())

    def loss(p: Any, x: Any) -> Any:
        one = lambda x: jnp.trace(jax.hessian(size, 1)(p, x)) + jnp.sum(jax.grad(size, 1)(p, x) ** 2)  # noqa: E731
        return jnp.mean(jax.vmap(one)(x))

    compare(answer(query), by_jax(loss, (0, 1))(dict(query.params["model"]), query.inputs["x"]), 1e-11)


# -- when it applies


def strategies(query: Query) -> tuple[str, tuple[str, ...]]:
    (planned,) = ENGINE.trace(query).plan.derivatives
    return planned.strategy, planned.alternatives


SUM = "sum(jacobian(model(x), model.params)**2)"


def test_examples_that_mix_are_not_taken_apart() -> None:
    chosen, others = strategies(asked(SUM, "wide batchnorm", mode="train"))
    assert "layerwise" not in (chosen, *others)
    pinned = asked(SUM, "wide batchnorm", mode="train", strategies={"jacobian_norms": "layerwise"})
    with pytest.raises(Refusal, match=r"'layerwise' of jacobian_norms does not apply: .* mix"):
        ENGINE.trace(pinned)


def test_layers_behind_those_that_mix_are_taken_apart_and_the_others_are_formed() -> None:
    query = asked(SUM, "batchnorm", mode="train")
    assert strategies(query)[0] == "layerwise"
    compare(answer(query), by_hand(query, EVERY[1], lambda J: jnp.sum(J**2), train=True))


def test_the_gradient_of_many_examples_is_formed() -> None:
    program = "norm(grad(mean(model(x)**2), model.params))**2"
    chosen, others = strategies(asked(program, "mlp"))
    assert (chosen, "layerwise" in others) == ("forward_over_reverse", False)
    assert strategies(asked(program, "mlp", nesting="reverse_over_reverse"))[0] == "reverse_over_reverse"


def test_a_jacobian_that_is_not_made_may_be_as_large_as_it_likes() -> None:
    small = Engine(Limits(array_bytes=8_000))
    query = asked("sum(jacobian(model(x), model.params)**2)", "mlp")
    (planned,) = small.trace(query).plan.derivatives
    assert (planned.strategy, planned.alternatives) == ("layerwise", ("reverse_chunked",))
    pin = {"jacobian_norms": "reverse"}
    with pytest.raises(Refusal, match="does not apply: this makes an array of shape"):
        small.trace(asked("sum(jacobian(model(x), model.params)**2)", "mlp", strategies=pin))
    with pytest.raises(Refusal, match="the limit is") as refused:
        small.trace(asked("sum(sin(jacobian(model(x), model.params)))", "mlp"))
    assert refused.value.code == "limit"


def test_rows_are_summed_a_few_at_a_time_where_all_of_them_are_too_many() -> None:
    query = asked(SUM, "wide batchnorm", mode="train", x=rng(20, 3))
    assert strategies(query)[0] == "reverse"
    (planned,) = Engine(Limits(array_bytes=8_000)).trace(query).plan.derivatives
    assert (planned.strategy, planned.alternatives) == ("reverse_chunked", ())
    found = answer(query, Engine(Limits(array_bytes=8_000)))
    agree(found["value"], answer(query)["value"])


def test_no_array_of_the_size_of_the_jacobian_is_made() -> None:
    traced = ENGINE.trace(asked("sum(jacobian(model(x), model.params)**2)", "mlp"))
    whole = ENGINE.trace(
        asked("sum(jacobian(model(x), model.params)**2)", "mlp", strategies={"jacobian": "reverse"})
    )
    assert largest(traced) * 5 < largest(whole)


def largest(traced: Traced) -> int:
    return max(
        int(np.prod(var.aval.shape)) for one in equations(traced.computation.jaxpr) for var in one.outvars
    )  # type: ignore[attr-defined]
