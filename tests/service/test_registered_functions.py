"""Functions that the operator's file registers, called over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from local_server import local_server

import nablad

FILE = Path(__file__).parent.parent.parent / "examples" / "my_functions.py"


@pytest.fixture(scope="module")
def solving() -> Iterator[nablad.Client]:
    with local_server("--models", str(FILE)) as url, nablad.Client(url) as client:
        yield client


def test_a_linear_equation_is_solved_and_differentiated_in_closed_form(solving: nablad.Client) -> None:
    program = "def f(t, y):\n    return -rate * y\nsum(odeint(f, y0, 2.0, rtol=1e-10, atol=1e-12))"
    y0 = np.array([1.0, 3.0])
    result = solving.gradient(program, inputs={"rate": np.array(0.7), "y0": y0}, wrt=["rate", "y0"])
    np.testing.assert_allclose(result.value, 4 * np.exp(-1.4), rtol=1e-8)
    np.testing.assert_allclose(result.gradients["rate"], -8 * np.exp(-1.4), rtol=1e-7)
    np.testing.assert_allclose(result.gradients["y0"], np.exp(-1.4), rtol=1e-7)


def test_a_root_and_its_derivative(solving: nablad.Client) -> None:
    program = "def f(z):\n    return z**3 - a\nsum(root(f, ones_like(a), tol=1e-12))"
    a = np.array([8.0, 27.0])
    result = solving.gradient(program, inputs={"a": a}, wrt=["a"])
    np.testing.assert_allclose(result.value, 5.0, rtol=1e-9)
    np.testing.assert_allclose(result.gradients["a"], 1 / (3 * np.array([4.0, 9.0])), rtol=1e-8)


def test_they_are_listed_and_checked_like_operators(solving: nablad.Client) -> None:
    listed = {operator.name: operator for operator in solving.operators()}
    assert listed["odeint"].signature == "odeint(f, y0, t1, rtol=1e-06, atol=1e-06)"
    assert listed["odeint"].family == "registered"
    with pytest.raises(nablad.ProgramError, match="odeint"):
        solving.evaluate("odein(x, x, 1)", inputs={"x": np.ones(2)})


def test_the_gradients_agree_with_finite_differences(solving: nablad.Client) -> None:
    solving.create_model("field", {"preset": "mlp", "sizes": [2, 8, 2]})
    program = """
def f(t, state):
    z, change = state
    v = model(z)
    return (v, -divergence(v, z))
z1, change = odeint(f, (z0, 0.0), 1.0, rtol=1e-9, atol=1e-9)
0.5 * sum(z1**2) - change
"""
    checked = solving.check(
        program, inputs={"z0": np.array([0.3, -0.8])}, model="field", wrt=["params", "z0"]
    )
    assert checked.worst < 1e-6
