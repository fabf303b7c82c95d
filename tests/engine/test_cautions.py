"""Traps are named in the plan before they bite, and only there where they can."""

from __future__ import annotations

from typing import Any

import pytest
from ask import gradient, host, rng

RELU = {"layers": [{"dense": [2, 4], "activation": "relu"}, {"dense": [4, 1]}]}
TANH = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"dense": [4, 1]}]}
LEAKY = {"layers": [{"dense": [2, 4], "activation": "leaky_relu"}, {"dense": [4, 1]}]}
X = rng(4, 2)


def cautions(program: str, model: str = "relu_net", wrt: list[str] | None = None) -> list[tuple[str, str]]:
    for name, architecture in {"relu_net": RELU, "tanh_net": TANH, "leaky_net": LEAKY}.items():
        host(name, architecture)
    found = gradient(program, {"x": X}, model=model, wrt=wrt or ["params"])
    for caution in found["plan"].cautions:
        assert caution.text in found["plan"].explain()
    return [(caution.text, caution.message) for caution in found["plan"].cautions]


SECOND_INPUT_DERIVATIVES = {
    "laplacian": ("u = model(x)[:, 0]\nmean(laplacian(u, x)**2)", "laplacian(u, x)"),
    "d": (
        "t = x[:, 0]\ns = x[:, 1]\nu = model(stack([t, s], axis=1))[:, 0]\nmean((d(u, t) - d(u, s, s))**2)",
        "d(u, s, s)",
    ),
    "hessian": ("sum(hessian(sum(model(x)), x)**2) + mean(model(x))", "hessian(sum(model(x)), x)"),
    "hvp": ("sum(hvp(sum(model(x)**2), x, x)**2)", "hvp(sum(model(x)**2), x, x)"),
    "divergence of a gradient": (
        "g = grad(sum(model(x)), x)\nmean(divergence(g, x)) + mean(model(x)**2)",
        "divergence(g, x)",
    ),
    "inside vmap": (
        "def point(p):\n    return laplacian(model(p)[0], p)\nmean(vmap(point)(x)**2)",
        "laplacian(model(p)[0], p)",
    ),
    "gradient of a mapped gradient": (
        "def slope(p):\n    return sum(grad(model(p)[0], p)**2)\n"
        "s = sum(vmap(slope)(x))\nsum(grad(s, x)**2) + mean(model(x))",
        "grad(s, x)",
    ),
}


@pytest.mark.parametrize("case", SECOND_INPUT_DERIVATIVES)
def test_relu_under_a_second_input_derivative_is_named(case: str) -> None:
    program, text = SECOND_INPUT_DERIVATIVES[case]
    found = dict(cautions(program))
    assert "second derivative of relu is zero" in found[text]
    assert not cautions(program, "tanh_net")


def test_leaky_relu_is_named_too() -> None:
    ((_, message),) = cautions(SECOND_INPUT_DERIVATIVES["laplacian"][0], "leaky_net")
    assert "leaky_relu" in message


@pytest.mark.parametrize(
    "program",
    [
        "g = grad(sum(model(x)), x)\nmean(sum(g**2, axis=1))",
        "dot(hvp(sum(model(x)**2), model.params, model.params), model.params)",
        "u = sum(model(x)**2)\ng = grad(u, model.params)\nsum(model(x, params=model.params - 0.1 * g)**2)",
        "w = ones(3)\nu = sum(x**3) * sum(relu(w))\nlaplacian(u, x)**2 + mean(model(x))",
    ],
)
def test_relu_is_not_named_where_no_second_input_derivative_passes_through_it(program: str) -> None:
    assert not cautions(program)


def test_roots_and_norms_that_are_differentiated_without_a_guard_are_named() -> None:
    program = """
a = norm(model(x))
b = sqrt(sum(x**2))
c = std(model(x))
a + b + c
"""
    found = dict(cautions(program, wrt=["params", "x"]))
    assert set(found) == {"norm(model(x))", "sqrt(sum(x**2))", "std(model(x))"}
    assert "eps=" in found["norm(model(x))"]
    assert set(dict(cautions(program))) == {"norm(model(x))", "std(model(x))"}


@pytest.mark.parametrize(
    "program",
    [
        "norm(model(x), eps=1e-6)",
        "sqrt(sum(model(x)**2) + 1e-9)",
        "sqrt(1e-9 + sum(model(x)**2))",
        "mean(model(x)) / norm(x)",
        "mean(model(x)) + sqrt(2)",
    ],
)
def test_guarded_or_fixed_roots_are_not_named(program: str) -> None:
    assert not cautions(program)


def test_a_norm_inside_an_inner_derivative_is_named_whatever_the_outer_variable() -> None:
    assert [text for text, _ in cautions("g = grad(norm(x), x)\nsum(g * model(x))")] == ["norm(x)"]


def test_an_estimate_that_costs_as_much_as_the_exact_trace_is_named() -> None:
    program = "s = grad(sum(model(x)), x)\nmean(hutchinson_trace(s, x, rademacher(x, {n}, seed=1)))"
    assert not cautions(program.format(n=1) + " + mean(model(x))", "tanh_net")
    ((_, message),) = cautions(program.format(n=2) + " + mean(model(x))", "tanh_net")
    assert "divergence(f, x)" in message


def test_cautions_of_an_evaluation_without_derivatives_are_none() -> None:
    from ask import ENGINE, MODELS

    from nablad.messages import EvaluateRequest
    from nablad_service.requests.validation import evaluate_query

    inputs: dict[str, Any] = {"x": X}
    query = evaluate_query(EvaluateRequest(program="norm(x)", inputs=inputs), MODELS.get)
    assert ENGINE.trace(query).plan.cautions == ()
