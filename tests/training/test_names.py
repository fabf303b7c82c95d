"""A name is one thing for each tenant, a session or a run: the second that asks for it is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from following import trained
from local_server import local_server
from sessions_over_http import Spoken, begun, problem

SGD = {"name": "sgd", "learning_rate": 0.1}
FIT: dict[str, Any] = {"loss": "(w - 1)**2", "trained": {"w": 0.0}, "optimiser": SGD}
ONE: dict[str, Any] = {"trained": {"w": 0.0}, "optimiser": SGD}
ENDLESS = {**FIT, "steps": 10**8, "report_every": 10**6, "keep_going": True}


def refused(answer: httpx.Response, code: str, sentence: str) -> None:
    told = problem(answer)
    assert (told["status"], told["code"]) == (409, code)
    assert sentence in told["detail"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_cannot_have_the_name_of_a_session_that_was_never_saved(
    trainer: httpx.Client, *, resume: bool
) -> None:
    name = f"session-{resume}"
    session = begun(trainer, name=name, **ONE)
    again = {**FIT, "steps": 1, "name": name, "resume": resume}
    refused(trainer.post("/v1/train", json=again), "run_exists", f"'{name}' is a session")
    assert session.get()["sequence"] == 0
    trainer.delete(f"/v1/sessions/{name}").raise_for_status()
    assert trained(trainer, **FIT, steps=1, name=name).last.kind == "done"


def test_a_session_cannot_have_the_name_of_a_run_that_keeps_no_saves() -> None:
    with local_server() as url, httpx.Client(base_url=url, timeout=60) as http:
        trained(http, **FIT, steps=1, name="both")
        refused(http.post("/v1/sessions", json={**ONE, "name": "both"}), "session_exists", "'both' is a run")
        other = {"Nablad-Tenant": "other"}
        assert begun(http, name="both", headers=other, **ONE).name == "both"
        http.delete("/v1/train/both").raise_for_status()
        begun(http, name="both", **ONE)


def test_a_run_that_is_under_way_is_no_session(trainer: httpx.Client) -> None:
    request = {**ENDLESS, "name": "way", "checkpoint_every": 5}
    with trainer.stream("POST", "/v1/train", json=request) as response:
        assert "event: checkpoint" in response.iter_lines()
        refused(trainer.post("/v1/sessions", json={**ONE, "name": "way"}), "session_exists", "'way' is a run")
        refused(Spoken(trainer, "way").post("step"), "session_exists", "a run that is under way")
        refused(trainer.delete("/v1/sessions/way"), "session_exists", "a run that is under way")
    trainer.delete("/v1/train/way").raise_for_status()


def test_a_run_that_a_session_goes_on_with_is_a_run_no_more(trainer: httpx.Client) -> None:
    trained(trainer, **FIT, steps=3, name="taken-over")
    session = Spoken(trainer, "taken-over", generation=1)
    session.generation = session.get()["generation"]
    assert trainer.get("/v1/train/taken-over").json()["status"] == "done"
    session.call("gradient", loss="(w - 1)**2", step={})
    for method in ("GET", "DELETE"):
        assert problem(trainer.request(method, "/v1/train/taken-over"))["code"] == "unknown_run"
    assert "taken-over" not in [one["name"] for one in trainer.get("/v1/train").json()["runs"]]
    assert "taken-over" in [one["name"] for one in trainer.get("/v1/sessions").json()["sessions"]]
    resumed = {**FIT, "steps": 9, "name": "taken-over", "resume": True}
    refused(trainer.post("/v1/train", json=resumed), "run_exists", "'taken-over' is a session")
    assert session.get()["step"] == 4
    trainer.delete("/v1/sessions/taken-over").raise_for_status()
    assert trained(trainer, **FIT, steps=1, name="taken-over").last.kind == "done"
