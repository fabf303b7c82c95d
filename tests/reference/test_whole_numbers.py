"""Whole numbers among the floats of a float64 program: lengths, indices, labels, exponents."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import nablad

THIRD = 1 / 3
KEPT = [
    pytest.param("def add(i, c):\n    return c + 1.0 * i / 3\nfori(2, add, x)", THIRD, id="index times one"),
    pytest.param("x + long / 3", THIRD, id="int64 divided"),
    pytest.param("x + plain / 3", THIRD, id="number without a dtype"),
    pytest.param("x + stack([x]).shape[0] / 3", THIRD, id="length"),
]
LOST = [
    pytest.param("def add(i, c):\n    return c + i / 3\nfori(2, add, x)", THIRD, id="index of a loop"),
    pytest.param("x + arange(2)[1] / 3", THIRD, id="arange"),
    pytest.param("x + sqrt(arange(3)[2])", np.sqrt(2), id="root of arange"),
    pytest.param("x + n / 3", THIRD, id="int32 divided"),
    pytest.param("x + exp(n)", np.e, id="int32 to a function"),
    pytest.param("x + mean(stack([n, 0 * n, 0 * n]))", THIRD, id="mean of int32"),
    pytest.param("x + mean(stack([x, x - 1, x - 1]) >= 0)", THIRD, id="mean of bool"),
]
POWERS = [
    pytest.param("x + 2**(-n)", id="int32"),
    pytest.param("x + 2**(-long)", id="int64"),
    pytest.param("def halve(i, c):\n    return x + 2**(-i)\nfori(2, halve, x)", id="index of a loop"),
]


def ask(client: nablad.Client, program: str) -> float:
    """The value of a program at x = 0, where n, long and plain are 1."""
    given = {"x": np.array(0.0), "n": np.array(1, np.int32), "long": np.array(1), "plain": 1}
    used = {name: number for name, number in given.items() if re.search(rf"\b{name}\b", program)}
    return float(client.evaluate(program, inputs=used).result)


@pytest.mark.parametrize(("program", "expected"), KEPT)
def test_whole_numbers_keep_the_programs_precision(
    client: nablad.Client, program: str, expected: float
) -> None:
    assert ask(client, program) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("program", "expected"), LOST)
def test_small_whole_numbers_keep_the_programs_precision(
    client: nablad.Client, program: str, expected: float
) -> None:
    assert ask(client, program) == pytest.approx(expected, rel=1e-15)


def test_a_number_of_the_text_to_a_negative_power_is_a_fraction(client: nablad.Client) -> None:
    assert ask(client, "x + 2**-1") == 0.5


@pytest.mark.parametrize("program", POWERS)
def test_a_negative_whole_power_is_a_fraction(client: nablad.Client, program: str) -> None:
    assert ask(client, program) == 0.5


@pytest.mark.parametrize("order", [1, 2, 3])
def test_powers_with_whole_exponents_have_derivatives_at_zero(client: nablad.Client, order: int) -> None:
    program = f"d(sum(x**arange(4)), {', '.join('x' * order)})"
    assert ask(client, program) == math.factorial(order)
