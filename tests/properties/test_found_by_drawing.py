"""What random programs once found, at its smallest."""

from __future__ import annotations

import pytest
from test_malformed_programs import check, refusal_of

LOOPED = ("fori(3, grad, c)", "scan(jacobian, c, t)[0]", "fori(2, laplacian, w)[0]")


@pytest.mark.parametrize("text", LOOPED)
def test_a_derivative_as_the_body_of_a_loop_is_refused(text: str) -> None:
    refusal = refusal_of(text)
    assert refusal is not None
    check(text, refusal)


def test_a_misspelt_leaf_is_said_to_be_unknown() -> None:
    refusal = refusal_of(
        'fit = sum(field.params["layer_1.weight"]**2)\nsum(grad(fit, field.params["layer_1.wieght"]))'
    )
    assert refusal is not None
    assert refusal.code == "unknown_name"
    assert "layer_1.weight" in refusal.detail


def test_a_power_is_refused_as_it_was_written() -> None:
    refusal = refusal_of("sum(x) + (-8)**0.5")
    assert refusal is not None
    assert "(-8" in refusal.detail


@pytest.mark.parametrize("text", ["sum(x) + (y = 2)", "sum(x) * 010"])
def test_advice_on_syntax_stays_within_the_language(text: str) -> None:
    refusal = refusal_of(text)
    assert refusal is not None
    assert ":=" not in refusal.detail
    assert "0o" not in refusal.detail


def test_a_null_byte_is_refused_where_it_stands() -> None:
    refusal = refusal_of("sum(x**2)\n+ \x00")
    assert refusal is not None
    assert refusal.where is not None
