"""The printed text, run on NumPy arrays, gives bit for bit what the Python function gives on them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_interpreter import run

import nablad.tracing.operators as nablad
from nablad.tracing import trace

ARRAYS: dict[str, Any] = {
    "x": np.array([[0.5, -1.25, 2.0], [3.0, 0.1, -0.7]]),
    "y": np.array([1.5, -2.0, 0.3]),
    "s": 0.8,
    "A": np.array([[4.0, 1.0, 0.5], [1.0, 3.0, 0.2], [0.5, 0.2, 2.0]]),
    "p": {"w": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "b": np.array([0.5, -0.5])},
}


def check(function: Callable[..., Any], names: str) -> None:
    values = {name: ARRAYS[name] for name in names.split()}
    traced = trace(function, inputs=values, models=[])
    with np.errstate(all="ignore"):
        expected = function(**values)
        got = run(traced.text, **values, **traced.constants)
    np.testing.assert_array_equal(got, expected, err_msg=traced.text)


BINARY = [
    *(lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b, lambda a, b: a**b),
    *(lambda a, b: a % b, lambda a, b: a // b, lambda a, b: (a < b) * 1.5, lambda a, b: (a >= b) + 0),
    *(np.arctan2, np.maximum, lambda a, b: np.where(a > b, a, b), lambda a, b: (a * b)[..., ::-1]),
]
UNARY = [
    *(
        lambda a: -a,
        np.sin,
        np.exp,
        abs,
        lambda a: a[..., :1],
        lambda a: a.T.T,
        lambda a: a**2,
        lambda a: 2**a,
    ),
    *(lambda a: np.mean(a, axis=-1, keepdims=True), lambda a: 1 - a, lambda a: a * -2, lambda a: a - (-0.5)),
    lambda a: np.array([1.0, -2.0, 4.0]) * a,
]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_random_programs(data):
    """Each step takes earlier values, so that some are used never, once or often, at any depth."""
    steps = data.draw(
        st.lists(
            st.tuples(
                st.booleans(),
                st.integers(0, len(BINARY) - 1),
                st.integers(0, len(UNARY) - 1),
                st.integers(0, 5),
                st.integers(0, 5),
            ),
            min_size=1,
            max_size=25,
        )
    )

    def function(x, y):
        values = [x, y]
        for binary, two, one, first, second in steps:
            a, b = values[-1 - first % len(values)], values[-1 - second % len(values)]
            values.append(BINARY[two](a, b) if binary else UNARY[one](a))
        return values[-1]

    check(function, "x y")


EXPRESSIONS = st.recursive(
    st.sampled_from(["x", "y", "s", "2", "-3", "0.5", "-1e-3", "np.pi"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        )
        | st.tuples(st.sampled_from(["-", "abs", "np.sin", "+"]), inner).map(
            lambda parts: f"{parts[0]}({parts[1]})"
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(EXPRESSIONS)
def test_random_parentheses(expression):
    """The function is written with every bracket; the text keeps those that matter."""
    function = eval(f"lambda x, y, s: x * ({expression})", {"np": np})
    try:
        with np.errstate(all="ignore"):
            value = function(ARRAYS["x"], ARRAYS["y"], np.float64(ARRAYS["s"]))
            function(0.5, 0.5, 0.5)
    except ArithmeticError:  # numbers alone, before any array comes in: 1 / 0, 9**9**9
        return
    if value.dtype.kind == "f" and np.isfinite(value).any():
        check(function, "x y s")


PROGRAMS: list[tuple[str, Callable[..., Any]]] = [
    ("x y", lambda x, y: np.stack([x[0], y]).sum(axis=0) @ y),
    ("x", lambda x: sum(row @ row for row in x)),
    ("x", lambda x: np.concatenate([x, x.T.reshape(2, 3), x.reshape((2, -1))], axis=1).cumsum(1)),
    ("x", lambda x: np.einsum("ij,kj->ik", x, x) + np.outer(x[:, 0], x[:, 1])),
    ("A y", lambda A, y: np.linalg.solve(A, y) @ np.linalg.inv(A) + np.trace(A) * np.diag(A)),
    ("A", lambda A: np.linalg.slogdet(A)[1] + np.linalg.slogdet(A).sign * np.linalg.det(A)),
    ("A", lambda A: np.linalg.cholesky(A) * np.linalg.eigvalsh(A) - np.linalg.svd(A, compute_uv=False)),
    ("x", lambda x: np.var(x, 1) + np.std(x, axis=1) + x.prod(1) + np.any(x > 0, axis=1) + np.all(x > 0, 1)),
    ("x", lambda x: np.clip(x, -0.5, 0.5) + x.clip(0) + np.clip(x, None, 1) + np.clip(x, max=1, min=0)),
    ("x", lambda x: np.roll(x, 1, 1) - np.flip(x, axis=0) + np.expand_dims(x, 0).squeeze(0)),
    ("x y", lambda x, y: np.logical_and(x > 0, y < 1) | ~(x == y) & np.isfinite(x)),
    ("x", lambda x: x[:, [0, 2]] + x[np.array([1, 0])][:, np.array([True, False, True])]),
    ("x", lambda x: np.take(x, np.array([2, 0]), axis=1) + x[..., None, -1] + np.argmax(x)),
    ("x s", lambda x, s: np.broadcast_to(s, x.shape) + np.zeros_like(x) + np.ones_like(x) * s),
    ("s", lambda s: np.linspace(0, s, 4) + np.linspace(s, 2.0, 4)),
    ("p x", lambda p, x: sum(np.sum(leaf) * len(key) for key, leaf in p.items()) + x @ p["w"].T + p["b"]),
    ("x", lambda x: x @ np.arange(6.0).reshape(3, 2) @ [1.0, 2.0] + np.arange(3.0) @ x.T),
    ("x", lambda x: np.float32(0.1) - x * np.bool_(True) + np.array(2.5) / x),
    ("x", lambda x: np.transpose(x, (1, 0)).transpose() + x.transpose(1, 0).T),
    ("x s", lambda x, s: x @ [s, 2 * s, 1.0] + np.dot(x, np.ones(3)) * np.dot(s, 2.0) + np.vdot(x, 2 * x)),
    ("x", lambda x: np.max(x, (0, 1)) - np.min(x) + x.size + np.shape(x)[0] + np.ndim(x)),
    ("x", lambda x: np.reciprocal(x) + np.positive(x) + np.size(x, 1) + np.float_power(abs(x), 1.5)),
    ("x", lambda x: np.take(x, [4, 0]) + np.ceil(x[0, :2]) + np.round(x[0, :2]) + np.rint(x[1, 1:])),
    ("x", lambda x: np.linalg.norm(x[:1]) + np.linalg.norm(x[:, :1], axis=-1, keepdims=True)),
    ("x", lambda x: np.sin(x).reshape(-1, np.cos(x).shape[0]).sum(axis=0)),
]


@pytest.mark.parametrize(("names", "function"), PROGRAMS)
def test_a_program_means_what_the_function_does(names, function):
    check(function, names)


def test_a_mapped_function_means_the_loop_over_examples():
    def by_map(x, y):
        def each(row, k):
            scaled = row * k
            return np.sum(scaled * scaled), scaled + y.sum()

        squares, rows = nablad.vmap(each, in_axes=(0, None))(x, 3.0)
        columns = nablad.vmap(lambda c, k: np.sum(c) - k, in_axes=(1, 0))(x, y)
        return rows + squares[:, None] * columns

    x, y = ARRAYS["x"], ARRAYS["y"]
    text = trace(by_map, inputs={"x": x, "y": y}, models=[]).text
    expected = x * 3.0 + y.sum() + ((x * 3.0) ** 2).sum(1)[:, None] * (x.sum(0) - y)
    np.testing.assert_allclose(run(text, x=x, y=y), expected, rtol=1e-15)
