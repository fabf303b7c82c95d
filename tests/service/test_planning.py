"""Plans: what would run and why, strategies that are pinned, and what timing teaches."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from local_server import local_server

import nablad
from nablad.messages import EvaluateRequest
from nablad_service.engine.derivatives import TABLE
from nablad_service.planning.tuning import Tuner
from nablad_service.query import Query
from nablad_service.requests.validation import evaluate_query

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 2))
NET = {"preset": "mlp", "sizes": [2, 16, 16, 1]}
BURGERS = """
def residual(t, x):
    u = model(stack([t, x]))[0]
    return d(u, t) + u * d(u, x) - 0.01 * d(u, x, x)
mean(vmap(residual)(p[:, 0], p[:, 1])**2)
"""
LAPLACE = "u = model(x)[:, 0]\nmean(laplacian(u, x)**2)"


@pytest.fixture(scope="module", autouse=True)
def net(client: nablad.Client) -> None:
    client.create_model("planned", NET)


def test_a_plan_shows_every_derivative_with_its_candidates_and_costs(any_client: nablad.Client) -> None:
    report = any_client.plan(BURGERS, inputs={"p": X}, model="planned")
    assert [one.text for one in report.derivatives] == ["d(u, t)", "d(u, x)", "d(u, x, x)"]
    for one in report.derivatives:
        assert {candidate.strategy for candidate in one.candidates} == set(TABLE[one.operator].strategies)
        assert [candidate.strategy for candidate in one.candidates if candidate.chosen] == [one.strategy]
        assert all(candidate.flops and candidate.peak_bytes for candidate in one.candidates)
        assert all(candidate.milliseconds is None for candidate in one.candidates)
    assert report.flops > 0
    assert not report.measured
    picture = str(report)
    assert "└─ line 4: d(u, x, x)" in picture
    assert "● tower" in picture
    assert "kflop" in picture


def test_an_evaluation_can_be_planned_too(client: nablad.Client) -> None:
    report = client.plan("jacobian(model(x), x)", inputs={"x": X}, model="planned", wrt=None)
    assert report.derivatives[0].operator == "jacobian"


@pytest.mark.parametrize("strategy", ["forward_over_forward", "forward_over_reverse", "reverse_over_reverse"])
def test_a_pinned_strategy_is_used_and_changes_nothing_but_rounding(
    client: nablad.Client, strategy: str
) -> None:
    asked = {"inputs": {"x": X}, "model": "planned"}
    plain = client.gradient(LAPLACE, **asked)
    pinned = client.gradient(LAPLACE, strategies={"laplacian": strategy}, **asked)
    assert pinned.plan.derivatives[0]["strategy"] == strategy
    assert pinned.plan.derivatives[0]["reason"] == "asked for"
    np.testing.assert_allclose(pinned.value, plain.value, rtol=1e-12)


def test_an_evaluation_and_a_check_follow_a_pinned_strategy(any_client: nablad.Client) -> None:
    asked = {"inputs": {"x": X}, "model": "planned", "strategies": {"laplacian": "reverse_over_reverse"}}
    found = any_client.evaluate(LAPLACE, **asked)
    assert found.plan.derivatives[0]["strategy"] == "reverse_over_reverse"
    checked = any_client.check(LAPLACE, **asked)
    np.testing.assert_allclose(checked.value, found.result, rtol=1e-12)
    assert checked.worst < 1e-6
    for refuse in (any_client.evaluate, any_client.check):
        with pytest.raises(nablad.ProgramError, match="did you mean 'laplacian'"):
            refuse(LAPLACE, inputs={"x": X}, model="planned", strategies={"laplasian": "folx"})


def test_the_asynchronous_client_takes_the_same_choices(url: str) -> None:
    async def ask() -> None:
        async with nablad.AsyncClient(url) as client:
            asked = {
                "inputs": {"x": X},
                "model": "planned",
                "strategies": {"laplacian": "forward_over_forward"},
            }
            found = await client.evaluate(LAPLACE, tune=False, **asked)
            assert found.plan.derivatives[0]["strategy"] == "forward_over_forward"
            assert (await client.check(LAPLACE, nesting="default", **asked)).worst < 1e-6
            asked["strategies"] = {"laplacian": "forward_over_reverse"}
            plain = await client.gradient(LAPLACE, tune=False, **asked)
            np.testing.assert_allclose(plain.value, found.result, rtol=1e-12)

    asyncio.run(ask())


def test_a_call_that_forbids_tuning_is_not_counted() -> None:
    looked_up = []

    class Known:
        def get(self, signature: object) -> object:
            looked_up.append(signature)
            return "learned"

    def query(**members: object) -> Query:
        return evaluate_query(EvaluateRequest(program="1", **members), lambda name: pytest.fail(name))

    nothing: Any = None
    tuner = Tuner(nothing, nothing, Known(), nothing, after_calls=3)  # type: ignore[arg-type]
    for _ in range(10):
        tuner.called(query(tune=False), query().signature)
    for _ in range(2):
        tuner.called(query(), query().signature)
    assert looked_up == []
    tuner.called(query(), query().signature)
    assert len(looked_up) == 1
    tuner.close()


PINS = {
    "no such operator": ({"laplasian": "forward"}, "did you mean 'laplacian'"),
    "no such strategy": ({"laplacian": "forward_over_revers"}, "did you mean 'forward_over_reverse'"),
    "an operator that is not there": ({"hessian": "forward_over_reverse"}, "it has laplacian"),
}


@pytest.mark.parametrize("case", PINS)
def test_a_pin_that_nothing_can_follow_is_refused(client: nablad.Client, case: str) -> None:
    strategies, words = PINS[case]
    with pytest.raises(nablad.ProgramError, match=words) as refused:
        client.gradient(LAPLACE, inputs={"x": X}, model="planned", strategies=strategies)
    assert refused.value.code == "strategy"


def test_a_program_that_is_called_often_is_timed_and_the_lesson_survives_a_restart(tmp_path: Path) -> None:
    options = "--tune-after-calls", "3", "--cache", str(tmp_path)
    asked = {"inputs": {"x": X}, "model": "planned"}
    with local_server(*options) as url, nablad.Client(url) as client:
        client.create_model("planned", NET)
        first = client.gradient(LAPLACE, **asked)
        for _ in range(2):
            client.gradient(LAPLACE, **asked)
        ends = time.monotonic() + 120
        # What times the variants gives way to whoever asks the server, so that is not asked meanwhile.
        while not list((tmp_path / "plans").glob("*.json")):
            assert time.monotonic() < ends
            time.sleep(0.01)
        report = client.plan(LAPLACE, **asked)
        assert report.measured
        timed = [one for one in report.derivatives[0].candidates if one.milliseconds is not None]
        assert len(timed) >= 2
        (listed,) = httpx.get(f"{url}/v1/plans").json()["plans"]
        assert listed["text"] == LAPLACE
        (marked,) = [one for one in listed["variants"] if one["chosen"]]
        assert marked == listed["variants"][listed["chosen"]]
        assert marked["flops"] > 0
        assert marked["peak_bytes"] > 0
        assert marked["milliseconds"] == min(timed, key=lambda one: not one.chosen).milliseconds
        assert "static rule" in listed["why"]
        after = client.gradient(LAPLACE, **asked)
        assert after.plan.derivatives[0]["strategy"] == report.derivatives[0].strategy
        np.testing.assert_allclose(after.value, first.value, rtol=1e-12)
        untuned = client.gradient(LAPLACE, tune=False, **asked)
        assert untuned.plan.derivatives[0]["strategy"] == report.derivatives[0].strategy
    (file,) = (tmp_path / "plans").glob("*.json")
    (tmp_path / "plans" / "torn.json").write_text(file.read_text()[:100])
    with local_server(*options) as url, nablad.Client(url) as client:
        client.create_model("planned", NET)
        again = client.plan(LAPLACE, **asked)
        assert again.measured
        assert again.derivatives[0].strategy == report.derivatives[0].strategy
    kept = json.loads(file.read_text())
    assert kept["text"] == LAPLACE


def test_the_static_rules_alone_can_be_asked_for(client: nablad.Client) -> None:
    report = client.plan(LAPLACE, inputs={"x": X}, model="planned", nesting="default")
    assert report.derivatives[0].strategy == "forward_over_forward"
