"""A result that is not finite: told in which term, which derivative, and at which piece of text it began."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ask import ENGINE, MODELS, host, rng

from nablad.messages import EvaluateRequest, GradientRequest
from nablad_service.requests.validation import evaluate_query, gradient_query

NET = {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"dense": [3, 1]}]}
X = rng(4, 2)
ZERO = np.zeros((4, 2))


def diagnosis(loss: str, inputs: dict[str, Any], **asked: Any) -> dict[str, Any]:
    request = GradientRequest(loss=loss, inputs=inputs, **asked)
    query = gradient_query(request, MODELS.get)
    assert not ENGINE.compile(ENGINE.trace(query)).run(query)["finite"]
    return ENGINE.diagnose(query).run(query)


def text(found: dict[str, Any]) -> str:
    return str(found["where"]["text"])


def test_the_gradient_of_a_norm_at_zero_is_traced_to_the_norm_and_its_term() -> None:
    program = "a = sum(x**2)\nb = norm(x)\nc = sum(exp(x))\na + b + c"
    found = diagnosis(program, {"x": ZERO}, wrt=["x"], terms=["a", "b", "c"])
    assert text(found) == "norm(x)"
    assert found["where"]["line"] == 2
    assert found["terms"] == ["b"]
    assert found["what"] == ["gradients.x"]
    assert found["derivative"] == "the gradient with respect to x"
    assert "eps=1e-6" in found["message"]


def test_a_value_that_is_not_finite_is_traced_to_the_first_step() -> None:
    found = diagnosis("a = log(x - x)\nb = sum(a * 2)\nb + sum(x)", {"x": X}, wrt=["x"], terms=["b"])
    assert text(found) == "log(x - x)"
    assert found["what"][0] == "value"
    assert found["terms"] == ["b"]
    assert "though all that it is computed from is" in found["message"]


def test_an_inner_derivative_that_is_not_finite_is_named_with_the_step_inside_it() -> None:
    program = "u = sqrt(sum(x**2)) + sum(x)\ng = grad(u, x)\npenalty = sum(g**2)\nfit = sum(x)\npenalty + fit"
    found = diagnosis(program, {"x": ZERO}, wrt=["x"], terms=["penalty", "fit"])
    assert found["derivative"] == "grad(u, x)"
    assert text(found) == "sqrt(sum(x**2))"
    assert found["terms"] == ["penalty"]


def test_inside_a_mapped_def_one_bad_point_is_enough() -> None:
    points = X.copy()
    points[2] = 0.0
    program = "def speed(p):\n    return norm(p) + sum(p**2)\nsum(vmap(speed)(x))"
    found = diagnosis(program, {"x": points}, wrt=["x"])
    assert text(found) == "norm(p)"
    assert found["where"]["line"] == 2


def test_inside_a_mapped_derivative_and_a_loop() -> None:
    points = X.copy()
    points[1] = 0.0
    program = """
def slope(p):
    g = grad(sqrt(p[0]**2), p)
    return sum(g**2)
def step(i, total):
    return total + sum(vmap(slope)(x))
fori(3, step, 0.0)
"""
    found = diagnosis(program, {"x": points}, wrt=["x"])
    assert found["derivative"] == "grad(sqrt(p[0]**2), p)"
    assert text(found) == "sqrt(p[0]**2)"


def test_a_branch_that_is_not_chosen_is_found() -> None:
    found = diagnosis("sum(where(x > 0, sqrt(x), 0 * x))", {"x": ZERO}, wrt=["x"])
    assert text(found) == "sqrt(x)"


def test_overflow_in_a_network_is_found_through_the_model() -> None:
    params = host("diagnosed", NET)
    program = "u = model(x)\nsum(exp(1000 * u**2 + 1000))"
    found = diagnosis(program, {"x": X}, models={"model": "diagnosed"})
    assert text(found).startswith("exp(")
    params["layer_1.bias"][1] = np.nan
    MODELS.set_params("diagnosed", params, None)
    found = diagnosis("mean(model(x)**2)", {"x": X}, models={"model": "diagnosed"})
    assert "model.params[layer_1.bias] is not finite as it was sent" in found["message"]


def test_an_input_that_is_not_finite_is_named() -> None:
    found = diagnosis("sum(x**2)", {"x": np.array([1.0, np.inf])}, wrt=["x"])
    assert found["message"] == "the input 'x' is not finite as it was sent"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("y = sum(x**2)\ny / sum(0 * x)", "y / sum(0 * x)"),
        ("a = sum(abs(x)**0.5)\na", "abs(x)**0.5"),
        ("a = std(x)\na + 1", "std(x)"),
        ("jvp(sqrt(sum(x**2)), x, x)", "sqrt(sum(x**2))"),
        ("laplacian(norm(x), x)", "norm(x)"),
        ("sum(hessian(norm(x), x)**2)", "norm(x)"),
        ("a = ones((2, 2))\nsum(solve(a, x[0]))", "solve(a, x[0])"),
    ],
)
def test_the_step_at_fault_is_pointed_at(program: str, expected: str) -> None:
    assert text(diagnosis(program, {"x": ZERO + 0.0}, wrt=["x"])) == expected


def test_an_evaluation_is_diagnosed_too() -> None:
    query = evaluate_query(
        EvaluateRequest(program="a = log(x)\na + 1", inputs={"x": np.zeros(2)}), MODELS.get
    )
    assert not ENGINE.compile(ENGINE.trace(query)).run(query)["finite"]
    found = ENGINE.diagnose(query).run(query)
    assert found["what"] == ["outputs.result"]
    assert text(found) == "log(x)"


MASKS = {
    "a mask of minus infinity": "m = log(a)\np = softmax(m + x)\ns = sum(p**2)\n",
    "an infinity that is divided away": "q = 1 / a\ns = sum(exp(-q)) + sum(x**2)\n",
    "a branch that is not taken": "s = sum(where(a > 0, log(a), 0 * a)) + sum(x**2)\n",
}


@pytest.mark.parametrize("mask", MASKS)
def test_an_infinity_that_no_result_rests_on_is_not_blamed(mask: str) -> None:
    given = {"a": np.array([0.0, 1.0]), "x": np.ones(2), "w": np.zeros(2)}
    found = diagnosis(MASKS[mask] + "n = sqrt(sum(w**2))\ns + n", given, wrt=["w"], terms=["s", "n"])
    assert text(found) == "sqrt(sum(w**2))"
    assert found["terms"] == ["n"]
    found = diagnosis(MASKS[mask] + "n = sqrt(sum(w) - 1)\ns + n", given, wrt=["w"], terms=["s", "n"])
    assert text(found) == "sqrt(sum(w) - 1)"
    assert found["terms"] == ["n"]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3,), (513, 77), (2000, 300)])
def test_one_entry_is_enough_wherever_it_is(shape: tuple[int, ...], bad: float) -> None:
    def finite(x: np.ndarray[Any, Any]) -> bool:
        query = evaluate_query(EvaluateRequest(program="x + 1", inputs={"x": x}), MODELS.get)
        return bool(ENGINE.compile(ENGINE.trace(query)).run(query)["finite"])

    largest = np.full(shape, np.finfo("float32").max)
    assert finite(largest)
    for place in np.random.default_rng(0).integers(largest.size, size=5):
        spoilt = largest.copy()
        spoilt.flat[place] = bad
        assert not finite(spoilt)


def test_looking_whether_a_gradient_is_finite_takes_no_memory() -> None:
    params = host("wide", {"layers": [{"dense": [500, 500]}]})
    request = GradientRequest(
        loss="mean(model(x)**2)", inputs={"x": rng(1, 500)}, models={"model": "wide"}, wrt=["params"]
    )
    compiled = ENGINE.compile(ENGINE.trace(gradient_query(request, MODELS.get))).compiled
    beside = compiled.memory_analysis().temp_size_in_bytes
    assert beside < sum(leaf.nbytes for leaf in params.values()) / 10
