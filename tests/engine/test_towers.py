"""Derivatives of one value computed together, against nested `jax.grad` written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ask import ENGINE, MODELS, agree, agree_tree, by_jax, evaluate, gradient, host, rng

from nablad.messages import GradientRequest
from nablad.problems import Refusal
from nablad_service.engine.derivatives.tower import boxes
from nablad_service.engine.merged import without_repetition
from nablad_service.requests.validation import gradient_query

TOGETHER = ("tower",)
POINTS = 6
SIZES = [2, 7, 6, 2]

Derivatives = Callable[[str], Any]
# Each as a program writes it and by hand; D("xt") is the derivative in x, then in t.
RESIDUALS: dict[str, tuple[str, Callable[[Derivatives], Any]]] = {
    "u_x": ("d(u, x)", lambda D: D("x")),
    "u_t and u_x": ("d(u, t)**2 + a * d(u, x)", lambda D: D("t") ** 2 + D("a") * D("x")),
    "u_xx": ("d(u, x, x)", lambda D: D("xx")),
    "u_xt": ("d(u, x, t)", lambda D: D("xt")),
    "u_xxx": ("d(u, x, x, x)", lambda D: D("xxx")),
    "u_xxxx": ("d(u, x, x, x, x)", lambda D: D("xxxx")),
    "Burgers": (
        "d(u, t) + u * d(u, x) - c * d(u, x, x)",
        lambda D: D("t") + D("") * D("x") - D("c") * D("xx"),
    ),
    "Korteweg-de Vries": (
        "d(u, t) + 6 * u * d(u, x) + d(u, x, x, x)",
        lambda D: D("t") + 6 * D("") * D("x") + D("xxx"),
    ),
    "Kuramoto-Sivashinsky": (
        "d(u, t) + u * d(u, x) + d(u, x, x) + c * d(u, x, x, x, x)",
        lambda D: D("t") + D("") * D("x") + D("xx") + D("c") * D("xxxx"),
    ),
    "biharmonic": (
        "d(u, x, x, x, x) + 2 * d(u, x, x, t, t) + d(u, t, t, t, t)",
        lambda D: D("xxxx") + 2 * D("xxtt") + D("tttt"),
    ),
    "all up to second order": (
        "d(u, x) * d(u, t) + sin(d(u, x, x)) * d(u, t, x) + d(u, x, t) * d(u, t, t)",
        lambda D: D("x") * D("t") + jnp.sin(D("xx")) * D("xt") + D("xt") * D("tt"),
    ),
    "two outputs": (
        "d(u, t) + u * d(u, x) + v * d(u, x, x) + d(v, x, x, x) - d(v, t)",
        lambda D: D("t") + D("") * D("x") + D("v") * D("xx") + D("vxxx") - D("vt"),
    ),
}
UV = "u = c * out[{0}0] + sin(a) * x**2 * t\n{1}v = out[{0}1] * x\n{1}w = u"
LAYOUTS = {
    "def of a point": (
        "def f(t, x, a):\n    out = model(stack([t, x]))\n    "
        + UV.format("", "    ")
        + "\n    return {residual}\nmean(vmap(f)(t, x, a)**2)"
    ),
    "batches": (
        "out = model(stack([t, x], axis=1))\n" + UV.format(":, ", "") + "\nr = {residual}\nmean(r**2)"
    ),
    "columns": (
        "t = p[:, 0]\nx = p[:, 1]\nout = model(stack([t, x], axis=1))\n"
        + UV.format(":, ", "")
        + "\nr = {residual}\nmean(r**2)"
    ),
}


@cache
def hosted(dtype: str = "float64") -> dict[str, Any]:
    layers = [{"dense": [n, m], "activation": "tanh"} for n, m in pairwise(SIZES[:-1])]
    host(f"towers_{dtype}", {"layers": [*layers, {"dense": SIZES[-2:]}]}, dtype, seed=3)
    return dict(MODELS.get(f"towers_{dtype}").params)


def network(params: Any, z: Any) -> Any:
    for layer in (1, 2):
        z = jnp.tanh(params[f"layer_{layer}.weight"] @ z + params[f"layer_{layer}.bias"])
    return params["layer_3.weight"] @ z + params["layer_3.bias"]


def by_hand(residual: Callable[[Derivatives], Any]) -> Callable[..., Any]:
    """The loss of (params, t, x, a, c), every derivative by nested `jax.grad` of a function of one point."""

    def u(params: Any, t: Any, x: Any, a: Any, c: Any) -> Any:
        return c * network(params, jnp.stack([t, x]))[0] + jnp.sin(a) * x**2 * t

    def v(params: Any, t: Any, x: Any, a: Any, c: Any) -> Any:
        return network(params, jnp.stack([t, x]))[1] * x

    def at_point(*at: Any) -> Any:
        def derivative(which: str) -> Any:
            if which in ("a", "c"):
                return at["ptxac".index(which)]
            function = v if which.startswith("v") else u
            for variable in which.removeprefix("v"):
                function = jax.grad(function, "ptxac".index(variable))
            return function(*at)

        return residual(derivative)

    def loss(params: Any, t: Any, x: Any, a: Any, c: Any) -> Any:
        return jnp.mean(jax.vmap(at_point, in_axes=(None, 0, 0, 0, None))(params, t, x, a, c) ** 2)

    return loss


def data(dtype: str = "float64") -> dict[str, Any]:
    t, x, a = (0.8 * rng(POINTS, seed=seed).astype(dtype) for seed in (1, 2, 3))
    return {"t": t, "x": x, "a": a, "c": np.asarray(0.7, dtype)}


@cache
def truth(name: str, dtype: str = "float64") -> Any:
    """Value and gradients in float64, at values of `dtype`."""
    given = {key: value.astype("float64") for key, value in data(dtype).items()}
    params = {key: np.asarray(leaf, "float64") for key, leaf in hosted(dtype).items()}
    return by_jax(by_hand(RESIDUALS[name][1]), (0, 1, 2, 3, 4))(params, *given.values())


def asked(name: str, layout: str, dtype: str = "float64", **more: Any) -> dict[str, Any]:
    """The answer of the engine, the columns of points taken apart again."""
    hosted(dtype)
    given = data(dtype)
    if layout == "columns":
        given = {"p": np.stack([given.pop("t"), given.pop("x")], axis=1), **given}
    text = LAYOUTS[layout].format(residual=RESIDUALS[name][0])
    answer = gradient(text, given, model=f"towers_{dtype}", wrt=["params", *given], **more)
    if layout == "columns":
        points = answer["gradients"].pop("p")
        answer["gradients"] |= {"t": points[:, 0], "x": points[:, 1]}
    return answer


def agree_all(answer: dict[str, Any], expected: Any, tolerance: float) -> None:
    value, (params, *rest) = expected
    agree(answer["value"], value, tolerance)
    agree_tree(answer["gradients"]["params"], params, tolerance)
    for key, one in zip("txac", rest, strict=True):
        agree(answer["gradients"][key], one, tolerance)


@pytest.mark.parametrize("strategy", TOGETHER)
@pytest.mark.parametrize("name", RESIDUALS)
def test_gradients_are_those_of_nested_grad(name: str, strategy: str) -> None:
    answer = asked(name, "def of a point", strategies={"d": strategy})
    assert {one.strategy for one in answer["plan"].derivatives} == {strategy}
    agree_all(answer, truth(name), 1e-12)


@pytest.mark.parametrize("layout", ["batches", "columns"])
@pytest.mark.parametrize("name", ["u_xt", "Korteweg-de Vries", "two outputs"])
def test_batches_give_the_same(name: str, layout: str) -> None:
    agree_all(asked(name, layout, strategies={"d": "tower"}), truth(name), 1e-12)


@pytest.mark.parametrize("strategy", TOGETHER)
@pytest.mark.parametrize("name", ["u_xxxx", "Korteweg-de Vries", "biharmonic"])
def test_single_precision_stays_close_to_the_truth(name: str, strategy: str) -> None:
    answer = asked(name, "def of a point", "float32", strategies={"d": strategy})
    assert answer["value"].dtype == np.float32
    agree_all(answer, truth(name, "float32"), 5e-6)


NETS: dict[str, tuple[dict[str, Any], str]] = {
    "deep, softplus and relu": (
        {
            "layers": [
                {"dense": [2, 6], "activation": "softplus"},
                *[{"dense": [6, 6], "activation": one} for one in ("silu", "tanh", "relu", "gelu")],
                {"dense": [6, 1]},
            ]
        },
        "u = model(stack([t, x]))[0]",
    ),
    "convolution": (
        {
            "layers": [
                {"conv": [1, 2, 3], "padding": "same", "activation": "gelu"},
                {"flatten": True},
                {"dense": [8, 1]},
            ]
        },
        "u = model(reshape(stack([t, x, t * x, sin(x)]), (1, 2, 2)))[0]",
    ),
    "attention": (
        {
            "input": [None, 3],
            "layers": [
                {"dense": [3, 4], "activation": "tanh"},
                {"attention": {"heads": 2, "size": 4}},
                {"dense": [4, 1]},
            ],
        },
        "u = sum(model(stack([stack([t, x, t * x]), stack([x, t, 1 + x])])))",
    ),
    "a loop": (
        {"layers": [{"dense": [2, 2], "activation": "tanh"}]},
        "def body(i, h):\n        return h + 0.1 * model(h) * stack([x, x])\n    "
        "u = sum(fori(3, body, stack([t, x]))**2)",
    ),
}


@pytest.mark.parametrize("strategy", TOGETHER)
@pytest.mark.parametrize("net", NETS)
def test_other_networks_agree_with_nested_jvp(net: str, strategy: str) -> None:
    architecture, line = NETS[net]
    host("towers_other", architecture, seed=5)
    text = f"def f(t, x):\n    {line}\n    return d(u, t) + u * d(u, x) - d(u, x, x, x)\n"
    text += "mean(vmap(f)(t, x)**2)"
    given = {key: data()[key] for key in "tx"}
    expected, answer = (
        gradient(text, given, model="towers_other", wrt=["params", "t", "x"], strategies={"d": one})
        for one in ("forward", strategy)
    )
    agree(answer["value"], expected["value"], 1e-12)
    agree_tree(answer["gradients"]["params"], expected["gradients"]["params"], 1e-12)
    for key in "tx":
        agree(answer["gradients"][key], expected["gradients"][key], 1e-12)


# Programs of an input z with a value that is known in closed form, and the gradients of their loss.
SHAPES: dict[str, tuple[str, Callable[[Any], Any], list[str]]] = {
    "a stream function": (
        "def f(x, y):\n    psi = sin(x) * exp(2 * y)\n    u = d(psi, y)\n    v = -d(psi, x)\n"
        "    return d(u, x, x) + d(v, y) + d(u, x)\nsum(vmap(f)(z, 0.3 * z)**2)",
        # u = 2 sin x e^2y, v = -cos x e^2y: u_x and v_y cancel
        lambda z: jnp.sum((2 * jnp.sin(z)) ** 2 * jnp.exp(1.2 * z)),
        ["tower", "forward"],
    ),
    "a derivative with a name": (
        "u = sin(z)**2\nuz = d(u, z)\nuzz = d(uz, z)\nsum(uz * uzz + u)",
        lambda z: jnp.sum(jnp.sin(2 * z) * 2 * jnp.cos(2 * z) + jnp.sin(z) ** 2),
        ["tower"],
    ),
    "the same derivative twice": (
        "u = z**4\nsum(d(u, z, z) * d(u, z, z) + d(u, z))",
        lambda z: jnp.sum(144 * z**4 + 4 * z**3),
        ["tower"],
    ),
    "a variable computed from another": (
        "s = z**2\nu = s * z\nsum(d(u, z, z) + d(u, s) * d(u, s, z))",
        # u = z**3 in z; u_s = z, and then u_sz = 1
        lambda z: jnp.sum(6 * z + z),
        ["tower", "forward"],
    ),
    "an intermediate": (
        "s = sin(z)\nu = s**3 * z\nsum(d(u, s, s) * z)",
        lambda z: jnp.sum(6 * jnp.sin(z) * z**2),
        ["tower"],
    ),
    "a coefficient between two derivatives": (
        "u = sin(z)\nuz = d(u, z)\nflux = exp(z) * uz\nsum(d(flux, z) * d(u, z, z))",
        lambda z: jnp.sum(jnp.exp(z) * (jnp.cos(z) - jnp.sin(z)) * -jnp.sin(z)),
        ["tower", "forward"],
    ),
    "inside another derivative": (
        "def f(z):\n    u = z**5\n    g = d(u, z, z)\n    return grad(g, z) + d(u, z, z)\nsum(vmap(f)(z))",
        lambda z: jnp.sum(60 * z**2 + 20 * z**3),
        ["tower", "forward"],
    ),
    "inside a loop": (
        "def body(i, h):\n    u = sin(h) * z\n    return 0.5 * h + d(u, h, h) + d(u, h)\n"
        "sum(fori(3, body, z))",
        lambda z: jnp.sum(_three(lambda h: 0.5 * h + z * (jnp.cos(h) - jnp.sin(h)), z)),
        ["tower"],
    ),
    "inside a map in a loop": (
        "def body(i, h):\n    def g(s):\n        u = s**3\n        return 0.1 * d(u, s, s) - d(u, s)\n"
        "    return h + 0.1 * vmap(g)(h)\nsum(fori(3, body, z))",
        lambda z: jnp.sum(_three(lambda h: h + 0.1 * (0.6 * h - 3 * h**2), z)),
        ["tower"],
    ),
    "a value that is not used": (
        "u = z**3\nunused = d(u, z, z, z)\nsum(d(u, z, z))",
        lambda z: jnp.sum(6 * z),
        ["tower"],
    ),
}


def _three(step: Callable[[Any], Any], z: Any) -> Any:
    for _ in range(3):
        z = step(z)
    return z


@pytest.mark.parametrize("case", SHAPES)
def test_groups_of_every_shape_give_the_closed_form(case: str) -> None:
    text, closed_form, strategies = SHAPES[case]
    z = 0.5 + 0.3 * rng(5, seed=6)
    value, gradients = by_jax(closed_form)(z)
    for pin in ({}, {"strategies": {"d": "forward"}}):
        answer = gradient(text, {"z": z}, wrt=["z"], **pin)
        if not pin:
            found = {one.strategy for one in answer["plan"].derivatives if one.operator == "d"}
            assert found == set(strategies)
        agree(answer["value"], value, 1e-12)
        agree(answer["gradients"]["z"], gradients, 1e-12)


def test_a_value_is_taken_with_the_smallest_box_that_holds_it() -> None:
    wanted = [(0, (1, 0)), (0, (0, 1)), (0, (0, 3)), (0, (2, 2)), (1, (0, 2))]
    assert boxes(wanted) == {
        (0, 3): [(0, (0, 1)), (0, (0, 3)), (1, (0, 2))],
        (2, 2): [(0, (1, 0)), (0, (2, 2))],
    }


def test_a_group_has_one_strategy_that_the_planner_moves_as_a_whole() -> None:
    hosted()
    text = LAYOUTS["def of a point"].format(residual=RESIDUALS["Korteweg-de Vries"][0])
    request = GradientRequest(loss=text, inputs=data(), models={"model": "towers_float64"})
    query = gradient_query(request, MODELS.get)
    plain = ENGINE.trace(query).plan
    assert [one.text for one in plain.derivatives] == ["d(u, t)", "d(u, x)", "d(u, x, x, x)"]
    leader, *others = plain.derivatives
    assert set(leader.alternatives) == {"forward", "reverse"}
    assert plain.alternatives() == {leader.node: leader.alternatives}
    assert all(one.alternatives == leader.alternatives for one in others)
    found = ENGINE.variants(query)
    assert len(found) == 3
    for variant in found[1:]:
        (choice,) = variant.choices
        moved = ENGINE.trace(query, dict(variant.choices)).plan
        strategies = {one.node: one.strategy for one in moved.derivatives}
        assert {strategies[one.node] for one in plain.derivatives} == {choice[1]}


REASONS = {
    "it stands in another derivative": ("u = z**3\ng = d(u, z)\nsum(grad(sum(g), z))", "forward"),
    "first order": ("sum(d(z**3, z)**2)", "forward"),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_tower_is_not_the_static_rule_where_it_gains_nothing(case: str) -> None:
    text, strategy = REASONS[case]
    plan = gradient(text, {"z": rng(3)}, wrt=["z"])["plan"]
    assert {one.strategy for one in plan.derivatives if one.operator == "d"} == {strategy}


def test_a_tower_is_refused_where_variables_depend_on_one_another() -> None:
    text = "s = z**2\nu = s * z\nsum(d(u, s, z))"
    with pytest.raises(Refusal, match="'tower' of d does not apply: one of its variables is computed"):
        gradient(text, {"z": rng(3)}, wrt=["z"], strategies={"d": "tower"})


def test_an_evaluation_pulls_nothing_back() -> None:
    z = rng(4)
    agree(evaluate("d(z**4, z, z)", {"z": z}, strategies={"d": "tower"}), 12 * z**2)


def test_a_refusal_points_at_the_member_that_it_is_about() -> None:
    text = "def f(t, x):\n    u = t * sum(x**2)\n    a = d(u, t)\n    return a + d(u, x)\nf(s, z)"
    with pytest.raises(Refusal, match="one shape") as refused:
        gradient(text, {"s": np.array(0.3), "z": rng(3)}, wrt=["z"])
    assert refused.value.where is not None
    assert refused.value.where.text == "d(u, x)"


def test_equal_steps_are_merged_and_rules_of_their_own_kept() -> None:
    @jax.custom_jvp
    def tripled(x: Any) -> Any:
        return jnp.sin(x)

    @tripled.defjvp
    def _rule(x: Any, v: Any) -> Any:
        return tripled(x[0]), 3 * v[0]

    def twice(x: Any) -> Any:
        return jax.jit(jnp.cos)(x) * jnp.cos(x) + tripled(x)

    x = rng(3)
    for differentiable in (True, False):
        function = without_repetition(twice, differentiable=differentiable)
        agree(function(x), np.cos(x) ** 2 + np.sin(x), 1e-15)
        assert str(jax.make_jaxpr(function)(x)).count("= cos ") == 1
    kept = jax.grad(lambda x: jnp.sum(without_repetition(twice, differentiable=True)(x)))(x)
    agree(kept, -np.sin(2 * x) + 3, 1e-14)
