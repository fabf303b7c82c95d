"""NaN in a session: the call that found it says where it began, and is added to the sums all the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from sessions_over_http import asked, begun

import nablad

SGD = {"name": "sgd", "learning_rate": 0.1}
LOSS = "fit = sum(w**2)\nfar = sum(log(w - x))\nfit + far"


def test_a_gradient_says_where_it_stopped_being_finite_at_the_parameters_of_its_call(
    trainer: httpx.Client,
) -> None:
    """Steps have moved `w` from where all was finite, and the next call is on its way already."""
    session = begun(trainer, trained={"w": np.ones(3, np.float32)}, optimiser=SGD)
    good = session.call("gradient", loss=LOSS, terms=["fit", "far"], inputs={"x": 0.0}, step={})
    assert good["non_finite"] is None
    w = session.get("params")["trained"]["w"]
    members = {"loss": LOSS, "terms": ["fit", "far"], "inputs": {"x": 1.0}}
    assert (w < 1).all()
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(session.call, "gradient", sequence=number, **members) for number in (2, 3)]
    for answer in (task.result() for task in tasks):
        found = answer["non_finite"]
        assert (found["where"]["line"], found["where"]["text"]) == (2, "log(w - x)")
        assert found["what"] == ["value"]  # of log(-0.4) the derivative is finite
        assert found["terms"] == ["far"]
        assert np.isnan(answer["value"])


def test_what_is_not_finite_is_added_and_a_save_brings_the_session_back(trainer: httpx.Client) -> None:
    session = begun(trainer, trained={"w": np.ones(3, np.float32)}, optimiser=SGD)
    session.call("save")
    slope = session.call("gradient", loss="norm(w - 1)")
    assert slope["value"] == 0
    assert slope["accumulated"] == 1
    assert slope["non_finite"]["what"] == ["gradients.w"]
    assert slope["non_finite"]["derivative"] == "the gradient with respect to w"
    assert np.isnan(session.get("gradients")["gradients"]["w"]).all()
    session.call("step")
    assert np.isnan(session.get("params")["trained"]["w"]).all()
    spoiled = session.call("gradient", loss="sum(w**2)")["non_finite"]
    assert spoiled["what"] == ["value", "gradients.w"]
    assert spoiled["message"].startswith("'w' is not finite itself: a step before this one made it so")
    assert spoiled["where"] is None
    session.call("load")
    assert session.call("gradient", loss="sum(w**2)")["non_finite"] is None


def test_a_call_that_comes_again_has_the_same_diagnosis(trainer: httpx.Client) -> None:
    session = begun(trainer, models={"model": "net"}, optimiser=SGD)
    loss, inputs = "sqrt(-mean(model(x)**2))", {"x": np.ones((4, 2))}
    members: dict[str, Any] = {"sequence": 1, "loss": loss, "inputs": inputs}
    first, again = (asked(session.post("gradient", **members)) for _ in range(2))
    assert first["non_finite"] == again["non_finite"]
    assert "is the argument negative?" in first["non_finite"]["message"]


@pytest.mark.parametrize("members", [{}, {"step": {"frozen": ["w"]}}], ids=["alone", "with its step"])
def test_a_program_that_draws_is_diagnosed_with_what_it_drew(
    trainer: httpx.Client, members: dict[str, Any]
) -> None:
    """With other draws it would be finite, most of the time."""
    session = begun(trainer, trained={"w": 1.0}, optimiser=SGD, seed=3)
    loss = "u = normal(w, 1, 0)[0]\nlog(w * u)"
    found = [session.call("gradient", loss=loss, **members) for _ in range(8)]
    wrong = [one for one in found if np.isnan(one["value"])]
    assert 0 < len(wrong) < len(found)
    for one in wrong:
        assert one["non_finite"]["where"]["text"] == "log(w * u)"


def test_the_client_shows_it(trainer: httpx.Client) -> None:
    with (
        nablad.Client(str(trainer.base_url)) as client,
        client.session(trained={"w": np.zeros(3)}, optimiser=SGD) as session,
    ):
        good = session.gradient("sum(w**2)").result()
        bad = session.gradient("norm(w)", step=True).result()
    assert good.non_finite is None
    assert "not finite" not in repr(good)
    assert bad.non_finite is not None
    assert bad.non_finite.where is not None
    assert bad.non_finite.where.text == "norm(w)"
    assert "step 1; not finite: line 1: 'norm(w)' has a derivative" in repr(bad)
