"""Programs without a model, against formulas worked out by hand, in float64 and for every nesting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from ask import NESTINGS, agree, evaluate, gradient, rng

from nablad.problems import Refusal

A = rng(4, 4, seed=1)
S = A + A.T
X = rng(4, seed=2)
V = rng(4, seed=3)
T = rng(7, seed=4)


@dataclass(frozen=True)
class Case:
    """A program, its value and its gradients in closed form."""

    program: str
    inputs: dict[str, Any]
    value: Any
    gradients: dict[str, Any] = field(default_factory=dict)


CASES = {
    "gradient of a quadratic form": Case(
        "f = x @ S @ x / 2\ng = grad(f, x)\nsum(g**2)",
        {"x": X, "S": S},
        np.sum((S @ X) ** 2),
        {"x": 2 * S @ S @ X, "S": np.outer(S @ X, X) + np.outer(X, S @ X)},
    ),
    "third power of a gradient": Case(
        "sum(grad(sum(x**4), x) * c)",
        {"x": X, "c": V},
        np.sum(4 * X**3 * V),
        {"x": 12 * X**2 * V, "c": 4 * X**3},
    ),
    "elementwise fourth derivative": Case(
        "u = sin(k * t)\nsum(d(u, t, t, t, t) * u)",
        {"t": T, "k": np.array(1.3)},
        np.sum(1.3**4 * np.sin(1.3 * T) ** 2),
        {
            "t": 1.3**5 * np.sin(2 * 1.3 * T),
            "k": np.sum(4 * 1.3**3 * np.sin(1.3 * T) ** 2 + 1.3**4 * T * np.sin(2 * 1.3 * T)),
        },
    ),
    "mixed partials": Case(
        "u = sin(t) * x**3\nd(u, t, x)",
        {"t": np.array(0.7), "x": np.array(1.1)},
        np.cos(0.7) * 3 * 1.1**2,
        {"t": -np.sin(0.7) * 3 * 1.1**2, "x": np.cos(0.7) * 6 * 1.1},
    ),
    "hessian-vector product": Case(
        "h = hvp(sum(x**3), x, v)\nsum(h * x)",
        {"x": X, "v": V},
        np.sum(6 * X**2 * V),
        {"x": 12 * X * V, "v": 6 * X**2},
    ),
    "hessian": Case(
        "H = hessian(sum(x**3) + x @ S @ x / 2, x)\nsum(H * W)",
        {"x": X, "S": S, "W": A},
        np.sum((np.diag(6 * X) + (S + S.T) / 2) * A),
        {"x": 6 * np.diag(A), "W": np.diag(6 * X) + (S + S.T) / 2, "S": (A + A.T) / 2},
    ),
    "jvp and vjp of a linear map": Case(
        "y = S @ x\nsum(jvp(y, x, v) * w) + sum(vjp(y, x, w) * v)",
        {"x": X, "S": A, "v": V, "w": X + 1},
        2 * (X + 1) @ A @ V,
        {"v": 2 * A.T @ (X + 1), "w": 2 * A @ V, "S": 2 * np.outer(X + 1, V)},
    ),
    "vjp of a nonlinear map keeps every gradient": Case(
        "y = a * x**3\nsum(vjp(y, x, u)**2) / 2",
        {"x": X, "a": V, "u": T[:4]},
        np.sum((3 * V * X**2 * T[:4]) ** 2) / 2,
        {
            "x": 18 * V**2 * X**3 * T[:4] ** 2,
            "a": 9 * V * X**4 * T[:4] ** 2,
            "u": 9 * V**2 * X**4 * T[:4],
        },
    ),
    "jacobian": Case(
        "J = jacobian(S @ x**2, x)\nsum(J**2)",
        {"x": X, "S": A},
        np.sum((A * 2 * X) ** 2),
        {"x": 8 * np.sum(A**2, 0) * X, "S": 8 * A * X**2},
    ),
    "derivative with respect to an intermediate": Case(
        "xh = a * x + (1 - a) * made\npenalty = (norm(grad(sum(xh**3), xh)) - 1)**2\npenalty",
        {"x": X, "made": V, "a": np.array(0.3)},
        (np.linalg.norm(3 * (0.3 * X + 0.7 * V) ** 2) - 1) ** 2,
    ),
    "derivative at a fixed coordinate": Case(
        "def slope(t):\n    return d(c * t**3, t)\nslope(2.0)", {"c": np.array(1.5)}, 18.0, {"c": 12.0}
    ),
    "stop_gradient blocks inner derivatives": Case(
        "d(stop_gradient(t) * t**2, t)", {"t": np.array(1.5)}, 1.5 * 2 * 1.5, {"t": 3.0}
    ),
    "zero where the variable is multiplied by zero": Case(
        "d(0 * t, t) + t", {"t": np.array(1.5)}, 1.5, {"t": 1.0}
    ),
    "a gradient inside a gradient inside a gradient": Case(
        "g1 = d(t**5, t)\ng2 = d(g1, t)\ng3 = d(g2, t)\ng3",
        {"t": np.array(1.2)},
        60 * 1.2**2,
        {"t": 120 * 1.2},
    ),
    "a def differentiates its own argument": Case(
        "def f(s):\n    return s**3\ndef slope(s):\n    return d(f(s), s)\nsum(vmap(slope)(t) * t)",
        {"t": T},
        np.sum(3 * T**3),
        {"t": 9 * T**2},
    ),
    "two mapped axes": Case(
        """
def k(a, b):
    return d(exp(-(a - b)**2), a)
rows = vmap(k, in_axes=(None, 0))
sum(vmap(rows, in_axes=(0, None))(s, t))
""",
        {"s": X, "t": T},
        np.sum(-2 * (X[:, None] - T) * np.exp(-((X[:, None] - T) ** 2))),
    ),
    "hutchinson with many probes is exact for coordinate probes": Case(
        "sum(hutchinson_trace(S @ x, x, v))", {"x": X, "S": A, "v": 2 * np.eye(4)}, np.trace(A)
    ),
    "hutchinson of a batch": Case(
        "sum(hutchinson_trace(x @ S, x, v) * w)",
        {"x": rng(3, 4), "S": A, "v": rng(3, 4, seed=9), "w": rng(3, seed=5)},
        np.sum(np.einsum("bi,ji,bj->b", rng(3, 4, seed=9), A, rng(3, 4, seed=9)) * rng(3, seed=5)),
    ),
    "batched jacobian": Case(
        "J = batched_jacobian(tanh(x @ S), x)\nsum(J**2)",
        {"x": rng(3, 4), "S": A[:, :2]},
        np.sum(((1 - np.tanh(rng(3, 4) @ A[:, :2]) ** 2)[:, :, None] * A[:, :2].T) ** 2),
    ),
    "laplacian of one point": Case(
        "laplacian(sum(x**3) + x @ S @ x, x) * c",
        {"x": X, "S": S, "c": np.array(2.0)},
        2 * (np.sum(6 * X) + 2 * np.trace(S)),
        {"x": np.full(4, 12.0), "S": 4 * np.eye(4), "c": np.sum(6 * X) + 2 * np.trace(S)},
    ),
    "laplacian of a batch": Case(
        "u = sum(x**4, axis=1) * w\nsum(laplacian(u, x)**2)",
        {"x": rng(3, 4), "w": rng(3, seed=5)},
        np.sum((12 * np.sum(rng(3, 4) ** 2, 1) * rng(3, seed=5)) ** 2),
        {"x": 2 * (12 * np.sum(rng(3, 4) ** 2, 1) * rng(3, seed=5) ** 2)[:, None] * 24 * rng(3, 4)},
    ),
    "laplacian of a laplacian": Case(
        "laplacian(laplacian(sum(x**2)**3, x), x)",
        {"x": X},
        # of r^6 in d dimensions: 6 (d + 4) r^4, and of r^4: 4 (d + 2) r^2
        6 * (4 + 4) * 4 * (4 + 2) * np.sum(X**2),
        {"x": 6 * (4 + 4) * 4 * (4 + 2) * 2 * X},
    ),
    "divergence of a batch": Case(
        "sum(divergence(tanh(x @ A), x) * w)",
        {"x": rng(3, 4), "A": A, "w": rng(3, seed=5)},
        np.sum(np.sum((1 - np.tanh(rng(3, 4) @ A) ** 2) * np.diag(A), 1) * rng(3, seed=5)),
    ),
    "hutchinson with its standard error": Case(
        "trace, error = hutchinson(A @ x, x, v)\ntrace + 0 * error",
        {"x": X, "A": A, "v": rng(5, 4, seed=6)},
        np.mean(np.einsum("ki,ij,kj->k", rng(5, 4, seed=6), A, rng(5, 4, seed=6))),
        {"A": np.einsum("ki,kj->ij", rng(5, 4, seed=6), rng(5, 4, seed=6)) / 5},
    ),
    "trees as vectors and back": Case(
        'v = ravel(t) * w\nb = unravel_like(v, t)\nsum(b["a"] @ b["a"].T) + sum(b["c"]**3)',
        {"t": {"c": V, "a": A}, "w": rng(20, seed=3)},
        (lambda a, c: np.sum(a @ a.T) + np.sum(c**3))(
            A * rng(20, seed=3)[4:].reshape(4, 4), V * rng(20, seed=3)[:4]
        ),
    ),
    "numbers of the text can be variables": Case(
        "nu = 0.5\nd(nu**2 * t, nu)", {"t": np.array(3.0)}, 3.0, {"t": 1.0}
    ),
    "an equal value is another variable": Case("s = t\nd(s * t, s)", {"t": np.array(2.0)}, 2.0, {"t": 1.0}),
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_have_their_closed_form(name: str, nesting: str) -> None:
    case = CASES[name]
    wrt = list(case.gradients) or list(case.inputs)
    found = gradient(case.program, case.inputs, wrt=wrt, nesting=nesting)
    agree(found["value"], case.value, 2e-13)
    for key, expected in case.gradients.items():
        agree(found["gradients"][key], expected, 1e-12)


@pytest.mark.parametrize("nesting", NESTINGS)
def test_the_forum_example_by_one_directional_derivative_of_a_gradient(nesting: str) -> None:
    """f = 1 / |x|, h = (sum of grad f)³: with s = sum x and r = |x|, h = -s³ / r⁹."""
    program = "f = 1 / norm(x)\nh = sum(grad(f, x))**3\nh"
    s, r = X.sum(), np.linalg.norm(X)
    found = gradient(program, {"x": X}, wrt=["x"], nesting=nesting)
    agree(found["value"], -(s**3) / r**9)
    agree(found["gradients"]["x"], -3 * s**2 / r**9 + 9 * s**3 * X / r**11)
    assert found["plan"].derivatives[0].strategy == (nesting if nesting != "auto" else "forward_over_reverse")


@pytest.mark.parametrize("nesting", NESTINGS)
def test_the_second_derivative_of_the_forum_example(nesting: str) -> None:
    program = "f = 1 / norm(x)\nh = sum(grad(f, x))**3\nsum(hessian(h, x) * W)"
    s, r = X.sum(), np.linalg.norm(X)
    ones = np.ones(4)
    H = (
        -6 * s / r**9 * np.outer(ones, ones)
        + 27 * s**2 / r**11 * (np.outer(ones, X) + np.outer(X, ones))
        + 9 * s**3 / r**11 * np.eye(4)
        - 99 * s**3 / r**13 * np.outer(X, X)
    )
    found = gradient(program, {"x": X, "W": A}, wrt=["W"], nesting=nesting)
    agree(found["gradients"]["W"], H)


def test_derivatives_nest_to_the_eighth_order() -> None:
    program = "d(exp(2 * t), t, t, t, t, t, t, t, t)"
    agree(evaluate(program, {"t": np.array(0.3)}), 2**8 * np.exp(0.6), 1e-13)


def test_float32_in_gives_float32_and_float64_in_gives_float64() -> None:
    for dtype in ("float32", "float64"):
        found = gradient("sum(grad(sum(sin(x)), x)**2)", {"x": X.astype(dtype)}, wrt=["x"])
        assert found["gradients"]["x"].dtype == dtype
        assert found["value"].dtype == dtype


def test_whole_numbers_do_not_widen_a_float32_program() -> None:
    labels = np.array([0, 2, 1])
    program = "picked = take(w, labels) / (labels + 1)\nsum(sqrt(labels + 1) * picked) + mean(arange(3))"
    found = gradient(program, {"w": X[:3].astype("float32"), "labels": labels}, wrt=["w"])
    assert found["value"].dtype == "float32"
    assert found["gradients"]["w"].dtype == "float32"


def test_two_ways_are_two_ways() -> None:
    """Rounding tells the nestings apart: were they one computation, they would be equal to the bit."""
    program = "g = grad(sum(tanh(S @ tanh(S @ x))), x)\nsum(g**2)"
    forward, reverse = (
        gradient(program, {"x": X, "S": A}, wrt=["x", "S"], nesting=nesting)["gradients"]["S"]
        for nesting in ("forward_over_reverse", "reverse_over_reverse")
    )
    agree(forward, reverse)
    assert not np.array_equal(forward, reverse)


def test_standard_error_is_that_of_the_mean() -> None:
    v = rng(6, 4, seed=6)
    trace, error = evaluate("hutchinson(A @ x, x, v)", {"x": X, "A": A, "v": v})
    samples = np.einsum("ki,ij,kj->k", v, A, v)
    agree(trace, samples.mean())
    agree(error, samples.std(ddof=1) / np.sqrt(6))


def test_random_probes_follow_their_seeds_and_nothing_else() -> None:
    program = "rademacher(x, 3, seed=7)"
    first, again = (evaluate(program, {"x": X}, seed=1) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (3, 4)
    assert set(np.unique(first)) <= {-1.0, 1.0}
    assert not np.array_equal(first, evaluate(program, {"x": X}, seed=2))
    assert not np.array_equal(first, evaluate("rademacher(x, 3, seed=8)", {"x": X}, seed=1))


def test_random_numbers_have_their_distributions() -> None:
    drawn = evaluate(
        "n = normal((20000,), seed=0)\nu = uniform((20000,), seed=1)\ns = sphere((500, 3), seed=2)\nn",
        {},
        outputs=["n", "u", "s"],
    )
    assert drawn["n"].dtype == np.float32
    assert abs(drawn["n"].mean()) < 0.03
    assert abs(drawn["n"].std() - 1) < 0.03
    assert 0 <= drawn["u"].min() < 0.01
    assert 0.99 < drawn["u"].max() < 1
    agree(np.sum(drawn["s"] ** 2, 1), np.full(500, 3.0), 1e-5)


def test_an_unbiased_trace_from_probes_drawn_in_the_program() -> None:
    program = "trace, error = hutchinson(A @ x, x, rademacher(x, 2000, seed=3))\n(trace, error)"
    trace, error = evaluate(program, {"x": X, "A": A})
    assert abs(trace - np.trace(A)) < 4 * error
    assert 0 < error < 0.2


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("laplacian(x, x)", "shape_mismatch"),
        ("laplacian(x @ A, x)", "shape_mismatch"),
        ("divergence(sum(x), x)", "shape_mismatch"),
        ("hutchinson(A @ x, x, x)", "shape_mismatch"),
        ("rademacher(x)", "arity"),
        ("normal(x, seed=0.5)", "wrong_kind"),
        ("unravel_like(x, A)", "shape_mismatch"),
    ],
)
def test_operators_outside_their_meaning_are_refused(program: str, code: str) -> None:
    with pytest.raises(Refusal, match=code) as refused:
        evaluate(program, {"x": X} | ({"A": A} if "A" in program else {}))
    assert refused.value.where is not None
