"""Weights of terms from the norms of their gradients."""

from __future__ import annotations

import math
from typing import Any

import httpx
import numpy as np
import pytest
from following import trained

from nablad_service.training.balance import balanced


def test_all_terms_get_gradients_of_one_norm() -> None:
    norms = {"a": {"u.params": 3.0, "c": 4.0}, "b": {"u.params": 10.0, "c": 0.0}}
    weights = balanced({"a": 1.0, "b": 1.0}, norms, decay=0.0)
    assert weights == pytest.approx({"a": 15 / 5, "b": 15 / 10})
    assert weights["a"] * 5 == pytest.approx(weights["b"] * 10)


def test_weights_move_slowly() -> None:
    weights = balanced({"a": 1.0, "b": 2.0}, {"a": {"c": 1.0}, "b": {"c": 3.0}}, decay=0.9)
    assert weights == pytest.approx({"a": 0.9 + 0.1 * 4, "b": 1.8 + 0.1 * 4 / 3})


@pytest.mark.parametrize("norm", [0.0, math.nan, math.inf])
def test_a_term_that_no_weight_balances_keeps_its_own(norm: float) -> None:
    weights = balanced({"a": 1.0, "b": 2.0}, {"a": {"c": 1.0}, "b": {"c": norm}}, decay=0.5)
    assert weights == {"a": 1.0, "b": 2.0}


def test_a_run_balances_every_so_many_steps(trainer: httpx.Client) -> None:
    members: dict[str, Any] = {
        "loss": "a = (w - 1)**2\nb = 100 * (w + 1)**2\na + b",
        "trained": {"w": 0.5},
        "terms": ["a", "b"],
        "optimiser": {"name": "sgd", "learning_rate": 1e-3},
        "balance": {"every": 2, "decay": 0.9},
        "steps": 5,
        "report_every": 1,
    }
    reports = trained(trainer, **members).of("report")
    # By hand: the weighted sum of the terms is what is trained.
    w, weights = 0.5, {"a": 1.0, "b": 1.0}
    for step, report in enumerate(reports):
        slopes = {"a": 2 * (w - 1), "b": 200 * (w + 1)}
        if step % 2 == 0:
            weights = balanced(weights, {name: {"w": abs(slope)} for name, slope in slopes.items()}, 0.9)
        assert report["weights"] == pytest.approx(weights, rel=1e-5)
        assert report["terms"] == pytest.approx({"a": (w - 1) ** 2, "b": 100 * (w + 1) ** 2}, rel=1e-5)
        total = sum(weights[name] * report["terms"][name] for name in weights)
        assert report["value"] == pytest.approx(total, rel=1e-5)
        w -= 1e-3 * sum(weights[name] * slopes[name] for name in weights)
    assert len(reports) == 5
    assert np.isfinite(w)
