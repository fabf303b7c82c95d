"""Every strategy of every operator, pinned: value and gradients of the default, whatever is around it."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from ask import MODELS, agree, agree_tree, evaluate, gradient, host, rng

from nablad.messages import EvaluateRequest
from nablad.problems import Refusal
from nablad_service.engine.derivatives import TABLE, forward_laplacian
from nablad_service.engine.engine import Engine
from nablad_service.requests.validation import evaluate_query

NETS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": (
        {
            "layers": [
                {"dense": [3, 5], "activation": "tanh"},
                {"dense": [5, 4], "activation": "softplus"},
                {"dense": [4, 3]},
            ]
        },
        (7, 3),
    ),
    "conv": (
        {
            "layers": [
                {"conv": [1, 2, 3], "padding": "same", "activation": "gelu"},
                {"flatten": True},
                {"dense": [40, 18]},
            ]
        },
        (2, 1, 4, 5),
    ),
    "attention": (
        {
            "input": [None, 3],
            "layers": [
                {"dense": [3, 4], "activation": "tanh"},
                {"attention": {"heads": 2, "size": 4}},
                {"dense": [4, 3]},
            ],
        },
        (2, 6, 3),
    ),
}
"""With the shape of x: as large as it takes for all strategies to apply."""

Y = "y = c * model(x)\n"
# What each operator makes of a network, and the networks that it fits; c is captured, and has a gradient.
QUANTITIES = {
    "grad": (Y + "q = grad(sum(y**2), x)", ("mlp", "conv", "attention")),
    "jacobian": (Y + "q = jacobian(y, x)", ("mlp", "conv", "attention")),
    "batched_jacobian": (Y + "q = batched_jacobian(y, x)", ("mlp", "conv", "attention")),
    "d": (
        "t = x[:, 0]\nu = c * model(stack([t, t**2, sin(t)], axis=1))[:, 0]\nq = d(u, t, t)",
        ("mlp",),
    ),
    "jvp": (Y + "q = jvp(y, x, cos(x))", ("mlp", "conv")),
    "vjp": (Y + "q = vjp(y, x, sin(y))", ("mlp", "conv")),
    "hvp": (Y + "q = hvp(sum(y**2), x, cos(x))", ("mlp", "conv")),
    "hessian": (Y + "q = hessian(sum(y**2), x)", ("mlp", "conv")),
    "laplacian": (
        Y + "u = sum(reshape(y, (x.shape[0], -1))[:, :2], axis=1)\nq = laplacian(u, x)",
        ("mlp", "conv", "attention"),
    ),
    "divergence": (Y + "q = divergence(y, x)", ("mlp",)),
    "hutchinson_trace": (Y + "q = hutchinson_trace(y, x, v)", ("mlp",)),
    "hutchinson": (Y + "q = stack(hutchinson(y, x, v))", ("mlp",)),
    "jacobian_norms": (Y + "q = sum(jacobian(y, model.params)**2, axis=1)", ("mlp", "conv", "attention")),
    "jacobian_mean_squares": (Y + "q = mean(jacobian(y, model.params)**2, axis=1)", ("mlp",)),
    "jacobian_gram": (Y + "J = jacobian(y, model.params)\nq = J @ J.T", ("mlp",)),
    "gradient_norm": ("y = c * model(x[0])\nq = norm(grad(sum(y**2), model.params))**2", ("mlp",)),
}
SITUATIONS = {
    "alone": "{lines}\nsum(q**2)",
    "in vmap": "def f(x):\n{body}\n    return sum(q**2)\nmean(vmap(f)(stack([x, 2 * x])))",
    # Pushed forward and pulled back before the loss itself is differentiated.
    "nested in vmap": """def f(x):
{body}
    s = sum(q**2)
    return jvp(s, x, sin(x))**2 + sum(grad(s, x)**2)
mean(vmap(f)(stack([x, 2 * x])))""",
}
CASES = [
    (operator, strategy, net, situation)
    for operator, (_, nets) in QUANTITIES.items()
    for strategy in TABLE[operator].strategies
    for net in nets
    for situation in (["in vmap", "nested in vmap"] if net == "mlp" else ["alone"])
]


def program(operator: str, situation: str) -> str:
    """The loss of one case: lines that make `q`, inside the situation."""
    lines, _ = QUANTITIES[operator]
    body = "\n".join(f"    {line}" for line in lines.splitlines())
    return SITUATIONS[situation].format(lines=lines, body=body)


def computed(operator: str, net: str, situation: str, **asked: Any) -> dict[str, Any]:
    _, shape = NETS[net]
    dtype = asked.pop("dtype", "float64")
    # Numbers of float32 in either float type, so that both answer one question.
    inputs: dict[str, Any] = {"x": (0.7 * rng(*shape, seed=1)).astype("float32"), "c": np.float32(1.3)}
    if operator.startswith("hutchinson"):
        inputs["v"] = np.sign(rng(4, *shape, seed=2))
    inputs = {name: np.asarray(array, dtype) for name, array in inputs.items()}
    text = program(operator, situation)
    return gradient(text, inputs, model=hosted(net, dtype), wrt=["params", *inputs], **asked)


@cache
def hosted(net: str, dtype: str) -> str:
    host(f"strategies_{net}_{dtype}", NETS[net][0], dtype, seed=4)
    return f"strategies_{net}_{dtype}"


@cache
def by_default(operator: str, net: str, situation: str) -> dict[str, Any]:
    return computed(operator, net, situation, nesting="default")


def test_every_operator_is_here() -> None:
    assert set(QUANTITIES) == set(TABLE)


@pytest.mark.parametrize(("operator", "strategy", "net", "situation"), CASES)
def test_every_strategy_agrees_with_the_default(
    operator: str, strategy: str, net: str, situation: str
) -> None:
    expected = by_default(operator, net, situation)
    chosen = next(one for one in expected["plan"].derivatives if one.operator == operator)
    if strategy == chosen.strategy:
        return  # it is the default
    pin = {"strategies": {operator: strategy}}
    if strategy not in chosen.alternatives:
        if strategy in TABLE[operator].together:
            assert situation == "nested in vmap", "nothing pulls it back by itself there"
            plan = computed(operator, net, situation, **pin)["plan"]
            assert {one.strategy for one in plan.derivatives if one.operator == operator} == {chosen.strategy}
            return
        assert strategy == "folx", "all others apply here"
        assert net == "conv" or not forward_laplacian.INSTALLED
        with pytest.raises(
            Refusal, match=f"'folx' of laplacian does not apply: .*; these do: {chosen.strategy}"
        ):
            computed(operator, net, situation, **pin)
        return
    found = computed(operator, net, situation, **pin)
    assert {one.strategy for one in found["plan"].derivatives if one.operator == operator} == {strategy}
    agree(found["value"], expected["value"], 1e-12)
    assert expected["value"] != 0
    agree_tree(found["gradients"].pop("params"), expected["gradients"]["params"], 1e-12)
    for name, array in found["gradients"].items():
        agree(array, expected["gradients"][name], 1e-12)


@pytest.mark.parametrize(
    ("operator", "strategy", "net", "situation"), [case for case in CASES if case[3] != "nested in vmap"]
)
def test_every_strategy_keeps_the_digits_of_float32(
    operator: str, strategy: str, net: str, situation: str
) -> None:
    exact = by_default(operator, net, situation)
    chosen = next(one for one in exact["plan"].derivatives if one.operator == operator)
    if strategy not in (chosen.strategy, *chosen.alternatives):
        return  # refused, see above
    found = computed(operator, net, situation, dtype="float32", strategies={operator: strategy})
    assert found["value"].dtype == "float32"
    agree(found["value"], exact["value"], 5e-6)
    agree_tree(found["gradients"].pop("params"), exact["gradients"]["params"], 5e-6)
    for name, array in found["gradients"].items():
        agree(array, exact["gradients"][name], 5e-6)


REFUSED = {
    "one tangent": ("batched_jacobian", "forward_scan", "sum(batched_jacobian(x**2, x)**2)", (5, 1)),
    "few tangents": ("jacobian", "forward_chunked", "sum(jacobian(x**2, x)**2)", (16,)),
    "one probe": ("hutchinson_trace", "forward_scan", "sum(hutchinson_trace(x**2, x, x))", (5, 3)),
    "one coordinate": ("laplacian", "forward_over_forward_scan", "sum(laplacian(x[:, 0]**2, x))", (5, 1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_strategy_that_would_gain_nothing_is_neither_offered_nor_taken(case: str) -> None:
    operator, strategy, text, shape = REFUSED[case]
    (planned,) = gradient(text, {"x": rng(*shape)}, wrt=["x"])["plan"].derivatives
    assert strategy not in planned.alternatives
    assert "reverse" in " ".join(planned.alternatives)
    with pytest.raises(Refusal, match=f"'{strategy}' of {operator} does not apply") as refused:
        gradient(text, {"x": rng(*shape)}, wrt=["x"], strategies={operator: strategy})
    assert refused.value.code == "strategy"


needs_folx = pytest.mark.skipif(not forward_laplacian.INSTALLED, reason="needs the extra nablad[folx]")
PIN: dict[str, Any] = {"strategies": {"laplacian": "folx"}}


@needs_folx
def test_folx_gives_zero_where_the_value_is_piecewise_constant() -> None:
    agree(evaluate("laplacian(sum(floor(x)), x)", {"x": rng(3)}, **PIN), 0.0)


@needs_folx
def test_folx_keeps_captured_arrays_that_have_an_axis_of_examples() -> None:
    x, a = rng(5, 3), rng(5, seed=1)
    found = evaluate("laplacian(a * sum(x**2, axis=1) / x.shape[0], x)", {"x": x, "a": a}, **PIN)
    agree(found, 6 * a / 5)


@needs_folx
def test_folx_is_not_offered_where_it_has_no_rule() -> None:
    text = "def body(i, h):\n    return sin(h)\nlaplacian(sum(fori(3, body, x)), x)"
    with pytest.raises(Refusal, match="folx has no rule for 'scan'"):
        evaluate(text, {"x": rng(3)}, **PIN)


@jax.jit
def silu(x: Any) -> Any:
    """Named like a function that folx has a rule for, and takes it for, in silence."""
    return x**3


@needs_folx
def test_folx_reads_nothing_into_the_name_of_a_function() -> None:
    engine, x = Engine.start(functions={"cube": silu}), rng(3)
    asked = EvaluateRequest(program="laplacian(sum(cube(x)), x)", inputs={"x": x}, **PIN)
    query = evaluate_query(asked, MODELS.get)
    agree(engine.compile(engine.trace(query)).run(query)["outputs"]["result"], np.sum(6 * x))


@pytest.mark.skipif(forward_laplacian.INSTALLED, reason="folx is installed")
def test_a_missing_folx_is_named_with_what_to_install() -> None:
    with pytest.raises(Refusal, match=r"pip install 'nablad\[folx\]'"):
        evaluate("laplacian(sum(x**2), x)", {"x": rng(3)}, **PIN)
