"""The benchmarks run, and say what they promise to say; how fast anything is, no test can know."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from nablad_service.engine.engine import Engine

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


@pytest.fixture
def estimators(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    Engine.start()  # 64-bit types, which orthogonal probes count in
    return importlib.import_module("estimators")


def test_a_benchmark_of_estimators_has_all_rows(estimators: Any) -> None:
    matrix = estimators.decaying(30)
    rows = estimators.measure(matrix, repetitions=10, rounds=1)
    assert [row.method for row in rows] == list(estimators.METHODS)
    assert all(len(row.rms) == len(row.ms) == len(row.products) for row in rows)
    assert matrix.name in estimators.page(rows, 10)


@pytest.mark.parametrize(("method", "count"), [("hutch++", 8), ("xtrace", 5)])
def test_what_finds_the_range_of_a_matrix_of_low_rank_is_exact(
    estimators: Any, method: str, count: int
) -> None:
    """Of rank 4 and without symmetry; xtrace leaves one column out in turn."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((30, 4)) @ rng.standard_normal((4, 30)) + 1e-12 * rng.standard_normal((30, 30))
    found = estimators.ESTIMATORS[method](lambda V: A @ V, rng.standard_normal((30, count)))
    assert abs(found - np.trace(A)) < 1e-8


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_the_estimators_of_the_benchmark_are_unbiased(estimators: Any, method: str) -> None:
    rng = np.random.default_rng(1)
    A = rng.standard_normal((12, 12))
    found = [
        estimators.ESTIMATORS[method](lambda V: A @ V, V)
        for V in estimators.columns(method, 12, 6, 3000, seed=2)
    ]
    assert abs(np.mean(found) - np.trace(A)) < 5 * np.std(found) / np.sqrt(len(found))


GOALS = {
    "latency": {"Client p50 over in process"},
    "bandwidth": {
        "Client at 0.4 MB over echo and compute",
        "Client at 0.4 MB over in process",
        "peak server memory at 0.4 MB",
        "shared memory at 0.4 MB over in process",
    },
    "throughput": {
        "small MLP, 64 callers, batched over one by one",
        "small MLP, 64 callers, p99 over p50",
        "time of a warm call beside a cold compilation, 16 callers",
        "slowest answer about health",
    },
    "training": {"Client, points resident, 64 points, over in process"},
    "cold_start": {"compiling a known program after a restart, over a new one"},
}
WITH_PEERS = {"latency", "bandwidth"}


@pytest.mark.parametrize("name", GOALS)
def test_a_benchmark_of_the_wire_tells_what_came_of_its_goals(name: str, tmp_path: Path) -> None:
    """In a process of its own, as people run it; the results of all that it compares are compared too."""
    found = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--json", str(found)]
    without = ["--peers", "none"] if name in WITH_PEERS else []
    said = subprocess.run([*command, *without], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    document = json.loads(found.read_text())
    goals = {goal["what"]: goal for goal in document["goals"]}
    assert goals
    assert GOALS[name] <= set(goals)
    for goal in goals.values():
        assert goal["found"] > 0 or not goal["at_least"]
        word = "met" if goal["met"] else "MISSED"
        assert f"- {word}: {goal['what']}" in said.stdout
    assert document["notes"] == [] or f"- {document['notes'][0]}" in said.stdout
