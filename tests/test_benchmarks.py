"""The benchmarks run, and say what they promise to say; how fast anything is, no test can know."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def nested_ad(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("nested_ad")


@pytest.fixture
def tiny(nested_ad: Any) -> Any:
    return next(row for row in nested_ad.rows(4, 8) if row.name == "NTK, diagonal")


def test_a_row_of_nested_ad_has_all_members(nested_ad: Any, tiny: Any) -> None:
    outcome = nested_ad.measure(tiny, rounds=1, seconds=0.0)
    document = outcome.document()
    times = {"naive_ms", "auto_ms", "best_ms"}
    counts = {"naive_flops", "auto_flops", "naive_peak_bytes", "auto_peak_bytes"}
    assert set(document) == {"row", "best", "auto"} | times | counts
    assert all(document[name] > 0 for name in times | counts)
    assert document["row"] == tiny.name
    assert outcome.regret >= 1
    assert tiny.name in nested_ad.page([outcome], 1, "nothing else ran")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nested_ad_notices_what_differs_from_the_code_by_hand(nested_ad: Any, tiny: Any, what: str) -> None:
    def slightly_off(f: Any, p: Any, x: Any) -> Any:
        value = tiny.by_hand(f, p, x)
        return 1.001 * value - (0.001 * jax.lax.stop_gradient(value) if what == "gradient" else 0.0)

    with pytest.raises(nested_ad.Disagreement, match=f"NTK, diagonal, default: the {what}"):
        nested_ad.measure(replace(tiny, by_hand=slightly_off), rounds=1, seconds=0.0)


def test_nested_ad_has_enough_rows_and_their_names_differ(nested_ad: Any) -> None:
    names = [row.name for row in nested_ad.rows(4, 8)]
    assert len(set(names)) == len(names) >= 24
