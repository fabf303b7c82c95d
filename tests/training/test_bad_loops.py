"""Requests to train that cannot be done: refused before anything begins, one sentence each."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from following import trained

BOX = {"distribution": "uniform", "low": [0, 0], "high": [1, 1], "n": 8}
GOOD: dict[str, Any] = {
    "loss": "a = mean(model(x)**2)\nb = mean(x[:, 0]) * c**2\na + b",
    "models": {"model": "net"},
    "trained": {"c": 2.0},
    "samplers": {"x": BOX},
    "optimiser": {"name": "adam", "learning_rate": 0.01},
    "steps": 5,
}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"loss": "mean(modle(x)**2)"}, "unknown_name", "'modle'"),
    ({"loss": "c * model(x)"}, "not_scalar", "the loss must be a scalar"),
    ({"loss": "mean(model(x)**2)"}, "extra_input", "the program does not use the input 'c'"),
    ({"terms": ["z"]}, "unknown_name", "the program has no value 'z'"),
    ({"models": {"model": "nett"}}, "unknown_model", "did you mean 'net'?"),
    ({"models": {}, "trained": {}, "loss": "mean(x)"}, "invalid_request", "nothing is trained"),
    ({"optimiser": {"name": "adamm"}}, "optimiser", "there is no optimiser 'adamm'; did you mean 'adam'?"),
    ({"optimiser": {"name": "adam"}}, "optimiser", "adam needs 'learning_rate'"),
    (
        {"optimiser": {"name": "adam", "learning_rate": 0.1, "beta1": 0.5}},
        "optimiser",
        "adam has no setting 'beta1'",
    ),
    (
        {"optimiser": {"name": "adam", "learning_rate": 0.1, "frozen": ["model.params[layer_9.*]"]}},
        "invalid_request",
        "frozen names 'model.params[layer_9.*]', which is not trained here",
    ),
    ({"optimiser": None}, "invalid_request", "a loop needs 'optimiser' and 'steps', or 'phases'"),
    (
        {"phases": [{"optimiser": {"name": "lbfgs"}, "steps": 3}]},
        "invalid_request",
        "'phases' and 'optimiser' with 'steps' say the same",
    ),
    (
        {
            "optimiser": None,
            "steps": None,
            "phases": [
                {"optimiser": {"name": "adam", "learning_rate": 0.1}, "steps": 3},
                {"optimiser": {"name": "lbgfs"}, "steps": 3},
            ],
        },
        "optimiser",
        "did you mean 'lbfgs'?",
    ),
    ({"samplers": {"x": {**BOX, "low": [2, 0]}}}, "sampler", "the box of the sampler 'x' is empty"),
    (
        {"samplers": {"x": {**BOX, "distribution": "unifrm"}}},
        "invalid_request",
        "'samplers.x.distribution' is 'unifrm'; did you mean 'uniform'?; there are uniform, faces",
    ),
    ({"samplers": {"x": {"n": 8}}}, "invalid_request", "lacks its member 'samplers.x.distribution'"),
    ({"optimiser": "adam"}, "invalid_request", "'optimiser': input should be an object"),
    (
        {"inputs": {"x": [[1.0, 2.0]]}},
        "sampler",
        "'x' is drawn by the sampler 'x' and also stands in 'inputs'",
    ),
    ({"samplers": {"x": BOX, "c": BOX}}, "sampler", "'c' is drawn by the sampler 'c' and also stands in"),
    ({"inputs": {"c": 1.0}}, "invalid_request", "'c' stands in 'trained' and in 'inputs'"),
    ({"samplers": {}}, "unknown_name", "'x' is not defined"),
    ({"samplers": {}, "accumulate": 2}, "invalid_request", "accumulate takes the mean over several draws"),
    ({"balance": {}}, "invalid_request", "balance needs two terms at least"),
    ({"steps": 0}, "invalid_request", "'steps'"),
    ({"name": "no/slashes"}, "invalid_request", "'name'"),
    ({"report_evry": 3}, "invalid_request", "did you mean 'report_every'?"),
    ({"name": "never", "resume": True}, "no_save", "'never' has no save"),
    ({"resume": True}, "invalid_request", "resume goes on with the run of a name; send name too"),
]


@pytest.mark.parametrize(("members", "code", "sentence"), REFUSED, ids=[one[2] for one in REFUSED])
def test_refused(trainer: httpx.Client, members: dict[str, Any], code: str, sentence: str) -> None:
    answer = trainer.post("/v1/train", json={**GOOD, **members})
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code, problem
    assert sentence in problem["detail"]


def test_a_name_that_is_taken_is_refused_until_it_is_deleted(trainer: httpx.Client) -> None:
    trained(trainer, **GOOD, name="taken")
    refused = trainer.post("/v1/train", json={**GOOD, "name": "taken"}).json()
    assert refused["code"] == "run_exists"
    assert "resume it, delete it" in refused["detail"]
    trainer.delete("/v1/train/taken").raise_for_status()
    assert trained(trainer, **GOOD, name="taken").last.kind == "done"


def test_a_run_that_nobody_began_is_unknown_and_the_nearest_named(trainer: httpx.Client) -> None:
    trained(trainer, **GOOD, name="burgers")
    for method, path in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/params"),
        ("POST", "/stop"),
        ("DELETE", ""),
    ):
        problem = trainer.request(method, f"/v1/train/burger{path}").json()
        assert problem["code"] == "unknown_run"
        assert "did you mean 'burgers'?" in problem["detail"]


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"optimiser": {"name": "sgd", "learning_rate": 0.1}}, "was made by adam, here phase 1 has sgd"),
    ({"models": {"model": "wide"}}, "has another model for 'model'"),
    (
        {"trained": {"c": [1.0]}, "loss": "mean(model(x)**2) + sum(c**2)"},
        "'params/c' is float32[], here it is",
    ),
    ({"steps": 3}, "was made in phase 1, which here"),
]


@pytest.mark.parametrize(("members", "sentence"), UNFIT, ids=[sentence for _, sentence in UNFIT])
def test_a_save_that_does_not_fit_is_refused_with_what_differs(
    trainer: httpx.Client, members: dict[str, Any], sentence: str
) -> None:
    layers = [{"dense": [2, 9], "activation": "tanh"}, {"dense": [9, 1]}]
    trainer.put("/v1/models/wide", json={"architecture": {"layers": layers}}).raise_for_status()
    trainer.delete("/v1/train/fitting")
    trained(trainer, **GOOD, name="fitting")
    problem = trainer.post("/v1/train", json={**GOOD, "name": "fitting", "resume": True, **members}).json()
    assert problem["code"] == "unfit_save"
    assert sentence in problem["detail"]
    more = trained(trainer, **{**GOOD, "steps": 8}, name="fitting", resume=True)
    assert more.last.data["step"] == 8


def test_without_a_folder_nothing_is_saved_and_what_would_need_one_is_refused(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        alone = {**GOOD, "models": {}, "loss": "mean(x) * c**2"}
        for members in ({"checkpoint_every": 10}, {"resume": True, "name": "a"}):
            problem = http.post("/v1/train", json={**alone, **members}).json()
            assert problem["code"] == "no_checkpoints"
            assert "--checkpoints DIR" in problem["detail"]
        run = trained(http, **alone)
        assert [event.kind for event in run.events] == ["started", "report", "report", "done"]
        assert run.last.data["checkpoint"] is None
