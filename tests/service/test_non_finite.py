"""NaN in an answer comes with the place where it began."""

from __future__ import annotations

import numpy as np

import nablad

PROGRAM = "fit = sum(x**2)\nlength = norm(x)\nfit + length"


def test_a_gradient_that_is_not_finite_says_where_it_began(any_client: nablad.Client) -> None:
    result = any_client.gradient(PROGRAM, inputs={"x": np.zeros(3)}, wrt=["x"], terms=["fit", "length"])
    found = result.non_finite
    assert np.isnan(result.gradients["x"]).all()
    assert found is not None
    assert found.where is not None
    assert (found.where.line, found.where.text) == (2, "norm(x)")
    assert found.terms == ["length"]
    assert found.derivative == "the gradient with respect to x"
    assert "line 2" in str(found)
    assert "eps=" in str(found)


def test_a_finite_result_says_nothing(any_client: nablad.Client) -> None:
    assert any_client.gradient(PROGRAM, inputs={"x": np.ones(3)}, wrt=["x"]).non_finite is None
    assert any_client.evaluate(PROGRAM, inputs={"x": np.ones(3)}).non_finite is None


def test_the_same_program_with_other_values_is_diagnosed_anew(
    client: nablad.Client,
) -> None:
    program = "a = sum(log(x))\nb = sum(sqrt(x))\na + b"
    first = client.evaluate(program, inputs={"x": np.array([0.0, 1.0])}).non_finite
    second = client.evaluate(program, inputs={"x": np.array([2.0, np.nan])}).non_finite
    third = client.evaluate(program, inputs={"x": np.array([2.0, -1.0])}).non_finite
    assert first is not None
    assert first.where is not None
    assert first.where.text == "log(x)"
    assert second is not None
    assert second.message == "the input 'x' is not finite as it was sent"
    assert third is not None
    assert third.what == ["outputs.result"]


def test_solving_with_a_singular_matrix_is_pointed_at(client: nablad.Client) -> None:
    program = "b = 2 * x\nstep = solve(a, b)\nsum(step**2)"
    result = client.gradient(program, inputs={"a": np.ones((2, 2)), "x": np.array([1.0, 3.0])}, wrt=["x"])
    assert result.non_finite is not None
    assert result.non_finite.where is not None
    assert result.non_finite.where.text == "solve(a, b)"
    assert "singular" in result.non_finite.message


def test_the_repr_of_a_result_shows_what_nobody_should_miss(client: nablad.Client) -> None:
    result = client.gradient(PROGRAM, inputs={"x": np.zeros(3)}, wrt=["x"])
    assert "caution, line 2" in repr(result)
    assert "not finite: line 2" in repr(result)
    column = client.evaluate("mean((x[:, None] - x)**2)", inputs={"x": np.ones(3)})
    assert "broadcast to a square" in repr(column)
