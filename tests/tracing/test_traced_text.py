"""What the tracer prints, letter by letter."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy_interpreter import checked

import nablad.tracing.operators as nablad
from nablad.tracing import trace
from nablad.tracing.errors import TraceError

INPUTS: dict[str, Any] = {
    "x": np.ones((10, 2)),
    "y": np.ones((10, 2)),
    "A": np.eye(3),
    "b": np.ones(3),
    "nu": 0.1,
    "points": np.ones((7, 2)),
    "initial": np.ones((5, 2)),
    "u0": np.ones(5),
    "p": {"w": np.ones((2, 3)), "bias": np.ones(2)},
}


def text(function: Callable[..., Any]) -> str:
    written = trace(function, inputs=INPUTS, models=["model", "net"]).text
    checked(written)
    return written


def program(*lines: str) -> str:
    return "\n".join(lines)


def test_loss_function1_reads_like_the_design():
    def loss(model, x, y):
        yhat = model(x)
        J = nablad.jacobian(yhat, x)
        data = np.sum((yhat - y) ** 2)
        smooth = np.linalg.norm(0.01 * J) ** 2
        return data + smooth

    assert text(loss) == program(
        "yhat = model(x)",
        "J = jacobian(yhat, x)",
        "data = sum((yhat - y)**2)",
        "smooth = norm(0.01 * J)**2",
        "data + smooth",
    )


def test_burgers_reads_like_the_design():
    def loss(model, points, initial, u0, nu):
        def residual(t, x):
            u = model(np.stack([t, x]))[0]
            return nablad.d(u, t) + u * nablad.d(u, x) - nu * nablad.d(u, x, x)

        pde = np.mean(nablad.vmap(residual)(points[:, 0], points[:, 1]) ** 2)
        ic = np.mean((model(initial) - u0) ** 2)
        return pde + 20 * ic

    assert text(loss) == program(
        "def residual(t, x):",
        "    u = model(stack([t, x]))[0]",
        "    return d(u, t) + u * d(u, x) - nu * d(u, x, x)",
        "pde = mean(vmap(residual)(points[:, 0], points[:, 1])**2)",
        "ic = mean((model(initial) - u0)**2)",
        "pde + 20 * ic",
    )


def test_a_model_of_several_inputs_takes_them_by_name_and_answers_by_name():
    def loss(net, x, b):
        s = net(x, sensors=b)
        return np.sum(s["energy"] ** 2)

    assert text(loss) == program("s = net(x, sensors=b)", 'sum(s["energy"]**2)')


def test_a_maml_step():
    def loss(model, x, y):
        p = model.params
        inner = np.mean((model(x) - y) ** 2)
        q = p - 0.1 * nablad.grad(inner, p)
        return np.mean((model(x, params=q, mode="train") - y) ** 2)

    assert text(loss) == program(
        "inner = mean((model(x) - y)**2)",
        "q = model.params - 0.1 * grad(inner, model.params)",
        'mean((model(x, params=q, mode="train") - y)**2)',
    )


def test_a_gradient_penalty_at_an_interpolate():
    def loss(model, x, y):
        return np.mean((np.sum(nablad.grad(model(xh := 0.3 * x + 0.7 * y).sum(), xh) ** 2, 1) - 1) ** 2)

    assert text(loss) == program(
        "xh = 0.3 * x + 0.7 * y",
        "mean((sum(grad(sum(model(xh)), xh)**2, axis=1) - 1)**2)",
    )


# One expression a row, and what it prints.
EXPRESSIONS: list[tuple[Callable[..., Any], str]] = [
    (lambda x: x, "x"),
    (lambda x: x + 1 - (x - 2), "x + 1 - (x - 2)"),
    (lambda x: x + (x + x), "x + (x + x)"),
    (lambda x: 2 - x, "2 - x"),
    (lambda x: 2 / x / (3 / x), "2 / x / (3 / x)"),
    (lambda x: -(x**2), "-x**2"),
    (lambda x: (-x) ** 2, "(-x)**2"),
    (lambda x: x**x**x, "x**x**x"),
    (lambda x: (x**x) ** x, "(x**x)**x"),
    (lambda x: x ** (-x), "x**-x"),
    (lambda x: (-2.5) ** x, "(-2.5)**x"),
    (lambda x: x**-2, "x**-2"),
    (lambda x: -(x * x), "-(x * x)"),
    (lambda x: -x * x, "-x * x"),
    (lambda x: -(-x), "-(-x)"),  # noqa: B002 # what is tested
    (lambda x: x * -x, "x * -x"),
    (lambda x: x % 3 // 2, "x % 3 // 2"),
    (lambda A, x: (A @ A).T, "(A @ A).T"),
    (lambda x: (x + x)[0], "(x + x)[0]"),
    (lambda x: (x < 1) * 2.0, "(x < 1) * 2.0"),
    (lambda x: (x < 1) == (x >= 0), "(x < 1) == (x >= 0)"),
    (lambda x: 1 < x, "x > 1"),  # noqa: SIM300 # what is tested
    (lambda x: x == 1, "x == 1"),
    (lambda x: (x > 0) & ~(x < 1) | True, "logical_or(logical_and(x > 0, logical_not(x < 1)), True)"),
    (lambda x: np.float32(0.1) * x, "0.10000000149011612 * x"),
    (lambda x: np.float64(2) * x, "2.0 * x"),
    (lambda x: np.int64(2) * x, "2 * x"),
    (lambda x: np.array(2.5) * x, "2.5 * x"),
    (lambda x: 1e-300 * x + 1e22, "1e-300 * x + 1e+22"),
    (lambda x: np.pi * x, "pi * x"),
    (lambda x: x**-np.pi, "x**-pi"),
    (lambda x: 2 * np.pi * x, "6.283185307179586 * x"),
    (lambda x: abs(x), "abs(x)"),
    (lambda x: x[:, 0], "x[:, 0]"),
    (lambda x: x[1:, ::2], "x[1:, ::2]"),
    (lambda x: x[-1, :-1], "x[-1, :-1]"),
    (lambda x: x[..., None, 1], "x[..., None, 1]"),
    (lambda x: x[(0,)], "x[0]"),
    (lambda p: p["w"], 'p["w"]'),
    (lambda p: p["w"].shape[0] * p["bias"], '2 * p["bias"]'),
    (lambda x: x.shape[0] + x.ndim + len(x) + x.size + x, "42 + x"),
    (lambda model, x: model(x).shape[0] * x, "model(x).shape[0] * x"),
    (lambda model, x: x.reshape(model(x).shape[0], -1), "reshape(x, (model(x).shape[0], -1))"),
    (lambda model, x: np.reshape(x, model(x).shape), "reshape(x, model(x).shape)"),
    (lambda x: x.reshape(-1), "reshape(x, -1)"),
    (lambda x: x.ravel(), "reshape(x, (-1,))"),
    (lambda x: x.T, "x.T"),
    (lambda x: x.transpose(1, 0), "transpose(x, axes=(1, 0))"),
    (lambda x: x.sum(0), "sum(x, axis=0)"),
    (lambda x: x.sum(axis=None, dtype=None, keepdims=False), "sum(x)"),
    (lambda x: np.mean(x, (0, 1), keepdims=True), "mean(x, axis=(0, 1), keepdims=True)"),
    (lambda x: np.max(x) + np.amin(x, 1).max(), "max(x) + max(min(x, axis=1))"),
    (lambda x: np.var(x, axis=1, ddof=0), "var(x, axis=1)"),
    (lambda x: np.linalg.norm(x, axis=-1), "norm(x, axis=-1)"),
    (lambda x: np.linalg.norm(x, "fro") + np.linalg.norm(x, 2, axis=1), "norm(x) + norm(x, axis=1)"),
    (lambda x: nablad.norm(x, axis=1, eps=1e-6), "norm(x, axis=1, eps=1e-06)"),
    (lambda x: np.dot(x, x.T) + x.dot([1.0, 2.0]), "x @ x.T + x @ constant_1"),
    (lambda model: np.vdot(model.params, model.params), "dot(model.params, model.params)"),
    (lambda x: np.take(x, 3) + x.take(1, axis=1), "take(reshape(x, (-1,)), 3, axis=0) + take(x, 1, axis=1)"),
    (lambda x: np.concatenate((x, x)), "concat([x, x])"),
    (lambda x: np.concatenate([x, 2 * x], axis=1), "concat([x, 2 * x], axis=1)"),
    (lambda x, nu: np.stack([nu, 1.0, nu]), "stack([nu, 1.0, nu])"),
    (lambda x, nu: x @ [nu, 2 * nu], "x @ stack([nu, 2 * nu])"),
    (lambda x: np.where(x > 0, x, 0.0), "where(x > 0, x, 0.0)"),
    (lambda x: np.clip(x, 0, 1), "clip(x, 0, 1)"),
    (lambda x: np.clip(x, None, 1), "minimum(x, 1)"),
    (lambda x: x.clip(min=0), "maximum(x, 0)"),
    (lambda x: np.einsum("ij,kj->ik", x, x, optimize=True), 'einsum("ij,kj->ik", x, x)'),
    (lambda x: np.expand_dims(x, 1).squeeze(axis=1), "squeeze(expand_dims(x, axis=1), axis=1)"),
    (lambda x: np.roll(x, -1, axis=0) - np.flip(x, 0), "roll(x, -1, axis=0) - flip(x, axis=0)"),
    (lambda nu: np.broadcast_to(nu, (3, 2)), "broadcast_to(nu, (3, 2))"),
    (lambda nu: np.linspace(0, nu), "linspace(0, nu, 50)"),
    (lambda x: np.round(np.ceil(x)) - np.rint(x), "round(ceil(x)) - round(x)"),
    (lambda A: np.linalg.svd(A, compute_uv=False), "svdvals(A)"),
    (lambda A, b: np.linalg.solve(A, b), "solve(A, b)"),
    (lambda A: np.trace(A) + np.linalg.det(A), "trace(A) + det(A)"),
    (lambda b: np.diag(b, k=1), "diag(b, k=1)"),
    (lambda x: np.reciprocal(x), "1 / x"),
    (lambda x: np.square(x) + np.sqrt(x), "square(x) + sqrt(x)"),
    (lambda x: nablad.softmax(x) + nablad.log_softmax(x, axis=0), "softmax(x) + log_softmax(x, axis=0)"),
    (lambda x: nablad.logsumexp(x, 1), "logsumexp(x, axis=1)"),
    (lambda x: nablad.gelu(nablad.stop_gradient(x)), "gelu(stop_gradient(x))"),
    (lambda model: nablad.norm(model.params), "norm(model.params)"),
    (lambda model, x: nablad.d(model(x), x, x), "d(model(x), x, x)"),
    (lambda model, x, y: nablad.jvp(model(x), x, y), "jvp(model(x), x, y)"),
    (
        lambda model, x, y: nablad.vector_jacobian_product(model(x), x, y),
        "vector_jacobian_product(model(x), x, y)",
    ),
    (lambda net, x: nablad.jacobian(net(x), net.params), "jacobian(net(x), net.params)"),
    (
        lambda net, x: nablad.grad(net(x).sum(), net.params["layer_1.weight"]),
        'grad(sum(net(x)), net.params["layer_1.weight"])',
    ),
    (
        lambda model, x: nablad.hutchinson_trace(model(x), x, nablad.rademacher(x, 8, 3)),
        "hutchinson_trace(model(x), x, rademacher(x, 8, 3))",
    ),
    (lambda model, p: nablad.unravel_like(2 * nablad.ravel(p), p), "unravel_like(2 * ravel(p), p)"),
    (lambda model, x: nablad.vmap(nablad.vmap(model))(x), "vmap(vmap(model))(x)"),
    (lambda model, x: nablad.vmap(model, in_axes=1)(x) ** 2, "vmap(model, in_axes=1)(x)**2"),
]


@pytest.mark.parametrize(("function", "expected"), EXPRESSIONS, ids=[row[1] for row in EXPRESSIONS])
def test_an_expression_prints_as(function, expected):
    assert text(function) == expected


def test_a_long_sum_is_cut_into_short_lines():
    def loss(x):
        total = 0.0
        for i in range(700):
            total = total + x[i % 10, 0] ** 2
        return total

    lines = text(loss).split("\n")
    assert lines[-1] == "total"
    assert max(map(len, lines)) <= 100
    assert len(lines) < 140


def test_values_given_together_are_unpacked():
    def loss(A):
        sign, logdet = np.linalg.slogdet(A)  # noqa: RUF059 # its name is in the text
        return logdet + np.linalg.slogdet(2 * A).logabsdet

    assert text(loss) == program("sign, logdet = slogdet(A)", "t1, t2 = slogdet(2 * A)", "logdet + t2")


def test_an_estimate_comes_with_its_standard_error():
    def loss(model, x, y):
        estimate = nablad.hutchinson(model(x), x, y)
        return np.sum(estimate.value / estimate.standard_error)

    assert text(loss) == program("t1, t2 = hutchinson(model(x), x, y)", "sum(t1 / t2)")


def test_an_estimate_draws_its_own_probes():
    def loss(model, x):
        f = model(x)
        few = nablad.hutchinson(f, x, probes=16)
        enough = nablad.hutchinson(f, x, until=0.01, probes=32, kind="orthogonal", seed=3)
        one = nablad.hutchinson_trace(f, x, probes=1, kind="sphere")
        return np.sum(few.value) + np.sum(enough.value) / enough.probes + np.sum(one)

    assert text(loss) == program(
        "f = model(x)",
        "t1, t2 = hutchinson(f, x, probes=16)",
        't3, t4, t5 = hutchinson(f, x, probes=32, until=0.01, kind="orthogonal", seed=3)',
        'one = hutchinson_trace(f, x, probes=1, kind="sphere")',
        "sum(t1) + sum(t3) / t5 + sum(one)",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "lacks probes"), ({"v": 1.0, "until": 0.1}, "not both"), ({"v": 1.0, "probes": 2}, "not both")],
)
def test_probes_are_given_or_drawn(arguments, message):
    with pytest.raises(TraceError, match=message):
        text(lambda model, x: nablad.hutchinson(model(x), x, **arguments)[0])


def test_array_constants_become_inputs():
    weights = np.array([1.0, 2.0])

    def loss(x):
        unused = np.arange(5) * x[:5, 0]  # noqa: F841 # a named value may be asked for
        np.arange(10) * x[:, 0]
        return np.sum(weights * x + x @ weights + [3.0, 4.0])

    traced = trace(loss, inputs={**INPUTS, "constant_1": 1.0}, models=["model"])
    assert traced.text == program(
        "unused = constant_2 * x[:5, 0]", "sum(constant_3 * x + x @ constant_3 + constant_4)"
    )
    assert {name: array.tolist() for name, array in traced.constants.items()} == {
        "constant_2": [0, 1, 2, 3, 4],
        "constant_3": [1.0, 2.0],
        "constant_4": [3.0, 4.0],
    }


def test_a_constant_keeps_the_values_it_had_when_it_was_used():
    def loss(x):
        buffer = np.zeros(2)
        first = x * buffer
        buffer += 1
        return np.sum(first + x * buffer)

    traced = trace(loss, inputs=INPUTS, models=[])
    assert [array.tolist() for array in traced.constants.values()] == [[0.0, 0.0], [1.0, 1.0]]


def test_a_boolean_constant_index_becomes_positions():
    traced = trace(lambda x: x[np.array([True, False, True] + [False] * 7), 0], inputs=INPUTS, models=[])
    assert traced.text == "x[constant_1, 0]"
    assert traced.constants["constant_1"].tolist() == [0, 2]
