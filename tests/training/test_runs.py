"""A run from begin to end: reports, phases, stopping, leaving, divergence, and what comes of each."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import numpy as np
from following import Followed, events_of, params_of, trained

FIT: dict[str, Any] = {
    "loss": "u = model(x)[:, 0]\nfit = mean((u - c * x[:, 0])**2)\nfit",
    "models": {"model": "net"},
    "trained": {"c": 0.3},
    "terms": ["fit"],
    "samplers": {"x": {"distribution": "sobol", "low": [0, 0], "high": [1, 1], "n": 16}},
    "resample_every": 7,
    "optimiser": {"name": "adam", "learning_rate": 0.01},
    "steps": 60,
}
LONG = {**FIT, "steps": 10**7, "report_every": 1000}


def named(http: httpx.Client, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = http.get(f"/v1/train/{name}").json()
    return answer


def test_it_reports_on_the_first_step_on_every_so_many_and_on_the_last(trainer: httpx.Client) -> None:
    run = trained(trainer, **FIT, report_every=25)
    assert [event.kind for event in run.events] == ["started", *["report"] * 4, "checkpoint", "done"]
    assert [event.number for event in run.events] == list(range(1, 8))
    reports = run.of("report")
    assert [report["step"] for report in reports] == [1, 25, 50, 60]
    assert reports[0].keys() == {
        *("step", "value", "terms", "weights", "norms", "learning_rate", "steps_per_second", "seconds")
    }
    assert reports[0]["norms"].keys() == {"model.params", "c"}
    assert reports[0]["terms"] == {"fit": reports[0]["value"]}
    assert reports[0]["learning_rate"] == 0.01
    assert reports[-1]["value"] < reports[0]["value"]
    assert run.last.data["step"] == run.last.data["checkpoint"] == 60
    assert named(trainer, run.name)["status"] == "done"
    assert named(trainer, run.name)["saved"] == [60]


def test_how_it_is_cut_into_calls_changes_no_number(trainer: httpx.Client) -> None:
    whole = trained(trainer, **FIT, report_every=1)
    cut = trained(trainer, **FIT, report_every=1, checkpoint_every=13)
    assert cut.values() == whole.values()
    assert [event["step"] for event in cut.of("checkpoint")] == [13, 26, 39, 52, 60]
    mine, other = (params_of(trainer, run.name)["params"]["model"] for run in (whole, cut))
    for leaf, one in mine.items():
        np.testing.assert_array_equal(one, other[leaf])
    assert named(trainer, cut.name)["saved"] == [39, 52, 60]  # the server keeps three


def test_phases_follow_each_other_from_adam_in_float32_to_lbfgs_in_float64(trainer: httpx.Client) -> None:
    phases = [
        {"optimiser": {"name": "adam", "learning_rate": 0.01}, "steps": 100},
        {"optimiser": {"name": "lbfgs"}, "steps": 30, "dtype": "float64"},
    ]
    alone = {
        name: value for name, value in FIT.items() if name not in ("optimiser", "steps", "resample_every")
    }
    run = trained(trainer, **alone, phases=phases, report_every=50)
    assert [report["step"] for report in run.of("report")] == [1, 50, 100, 130]
    assert [report["learning_rate"] for report in run.of("report")] == [0.01, 0.01, 0.01, None]
    assert run.values()[-1] < 0.1 * run.values()[-2]
    found = params_of(trainer, run.name)
    assert found["step"] == 130
    assert found["params"]["model"]["layer_1.weight"].dtype == "float64"


def test_it_stops_at_the_very_step_whose_value_is_below(trainer: httpx.Client) -> None:
    values = trained(trainer, **FIT, report_every=1).values()
    below = values[30]
    first = next(step for step, value in enumerate(values, 1) if value < below)
    run = trained(trainer, **FIT, stop={"value_below": below})
    assert run.last.kind == "done"
    assert run.last.data["step"] == run.of("report")[-1]["step"] == first
    assert "is below" in run.last.data["reason"]


def test_it_stops_when_nothing_gets_better(trainer: httpx.Client) -> None:
    run = trained(
        trainer,
        loss="(w - 1)**2",
        trained={"w": 0.0},
        optimiser={"name": "sgd", "learning_rate": 1.0},  # from 0 to 2 and back
        steps=1000,
        report_every=10,
        stop={"no_better_for": 50},
    )
    assert run.last.data["step"] == 60
    assert "no reported value was lower than 1 of step 1" in run.last.data["reason"]


def test_a_run_can_be_stopped_and_resumed_to_the_same_numbers(trainer: httpx.Client) -> None:
    whole = trained(trainer, **{**FIT, "steps": 3000}, report_every=500, name="whole")
    with trainer.stream("POST", "/v1/train", json={**LONG, "name": "parts"}) as response:
        events = events_of(response.iter_lines())
        next(event for event in events if event.kind == "report")
        ended = trainer.post("/v1/train/parts/stop").json()
        rest = list(events)
    assert rest[-1].kind == "stopped"
    assert rest[-1].data == ended
    assert ended["reason"] == "it was asked to stop"
    assert ended["checkpoint"] == ended["step"]
    assert trainer.post("/v1/train/parts/stop").json() == ended
    steps = ended["step"] + 1500
    parts = trained(trainer, **{**FIT, "steps": steps}, report_every=500, name="parts", resume=True)
    assert parts.events[0].data["step"] == ended["step"]
    expected = {report["step"]: report["value"] for report in whole.of("report")}
    shared = [report for report in parts.of("report") if report["step"] in expected]
    assert all(report["value"] == expected[report["step"]] for report in shared)
    again = trained(trainer, **{**FIT, "steps": steps}, report_every=500)
    mine, other = (params_of(trainer, run.name)["params"]["model"] for run in (parts, again))
    for leaf, one in mine.items():
        np.testing.assert_array_equal(one, other[leaf])


def test_a_broken_stream_goes_on_behind_the_last_event(trainer: httpx.Client) -> None:
    run = trained(trainer, **FIT, report_every=10)
    at = f"/v1/train/{run.name}/events"
    for last in (0, 3, len(run.events) - 1):
        with trainer.stream("GET", at, headers={"Last-Event-ID": str(last)}) as response:
            assert list(events_of(response.iter_lines())) == run.events[last:]
    with trainer.stream("GET", at) as response:
        assert list(events_of(response.iter_lines())) == run.events
    wrong = trainer.get(at, headers={"Last-Event-ID": "x"})
    assert wrong.status_code == 422
    assert "Last-Event-ID is a number" in wrong.json()["detail"]


def test_parameters_can_be_read_while_it_runs_and_runs_share_the_device(trainer: httpx.Client) -> None:
    with trainer.stream("POST", "/v1/train", json={**LONG, "name": "long", "keep_going": True}) as response:
        events = events_of(response.iter_lines())
        next(event for event in events if event.kind == "report")
        steps = [params_of(trainer, "long")["step"] for _ in range(2)]
        assert trained(trainer, **FIT).last.kind == "done"
    assert named(trainer, "long")["status"] == "running"  # its caller has left
    assert params_of(trainer, "long")["step"] > steps[0] > 0
    assert trainer.delete("/v1/train/long").status_code == 204
    assert trainer.get("/v1/train/long").json()["code"] == "unknown_run"


def test_a_loop_that_diverges_says_where_and_keeps_what_was_good(trainer: httpx.Client) -> None:
    diverging: dict[str, Any] = {
        "loss": "far = exp(w**2)\nnear = w**2\nfar + near",
        "trained": {"w": 1.0},
        "terms": ["far", "near"],
        "optimiser": {"name": "sgd", "learning_rate": -0.1},
        "steps": 1000,
        "report_every": 1,
    }
    run = trained(trainer, **diverging)
    last = run.of("report")[-1]
    assert run.last.kind == "diverged"
    assert run.last.data["step"] == last["step"] + 1
    reason = run.last.data["reason"]
    assert f"is not finite in step {last['step'] + 1}: line 1: " in reason
    assert "(terms far)" in reason
    found = run.last.data["non_finite"]
    assert (found["where"]["line"], found["terms"]) == (1, ["far"])
    assert found["message"] in reason
    kept = last["step"] - 1
    assert run.last.data["checkpoint"] == kept
    found = params_of(trainer, run.name)
    assert found["step"] == kept
    by_hand = trained(trainer, **{**diverging, "steps": kept})
    assert found["trained"]["w"] == params_of(trainer, by_hand.name)["trained"]["w"]
    assert named(trainer, run.name)["status"] == "diverged"
    # From there with a better optimiser setting.
    better = {**diverging, "optimiser": {"name": "sgd", "learning_rate": 0.01}, "steps": kept + 50}
    assert trained(trainer, **better, name=run.name, resume=True).last.kind in ("done", "diverged")


def test_a_loop_that_diverges_at_its_start_says_so(trainer: httpx.Client) -> None:
    loop: dict[str, Any] = {"loss": "log(w)", "optimiser": {"name": "sgd", "learning_rate": 0.1}, "steps": 9}
    run = trained(trainer, **loop, trained={"w": -1.0}, name="ill-begun")
    assert run.last.kind == "diverged"
    assert run.last.data["step"] == 1
    assert "the loss is not finite in step 1, at the start values: line 1: " in run.last.data["reason"]
    assert run.last.data["non_finite"]["where"]["text"] == "log(w)"
    assert run.last.data["checkpoint"] is None
    # There was nothing to lose: the name is free.
    assert trained(trainer, **loop, trained={"w": 9.0}, name="ill-begun").last.kind == "done"


def test_a_loop_that_diverges_where_it_goes_on_says_that_the_save_is_at_fault(trainer: httpx.Client) -> None:
    loop: dict[str, Any] = {
        "loss": "log(w)",
        "trained": {"w": 1.0},
        "optimiser": {"name": "sgd", "learning_rate": 2.0},  # from 1 to -1
    }
    once = trained(trainer, **loop, steps=1)
    assert once.last.kind == "done"
    more = trained(trainer, **loop, steps=5, name=once.name, resume=True)
    assert more.last.kind == "diverged"
    assert (more.last.data["step"], more.last.data["checkpoint"]) == (2, 1)
    reason = more.last.data["reason"]
    assert "the loss is not finite in step 2, at the values of the save: line 1: 'log(w)'" in reason
    assert "the save of step 1 is at fault" in reason
    found = params_of(trainer, once.name)
    assert (found["step"], found["trained"]["w"]) == (1, -1)


def test_a_loop_that_diverges_in_one_of_several_draws_names_that_one(trainer: httpx.Client) -> None:
    run = trained(
        trainer,
        loss="mean(log(x)) * w",
        trained={"w": 1.0},
        samplers={"all": {"distribution": "batches", "data": {"x": [1.0, 1.0, 1.0, -1.0]}, "n": 1}},
        accumulate=4,
        optimiser={"name": "sgd", "learning_rate": 0.1},
        steps=3,
    )
    assert run.last.kind == "diverged"
    assert run.last.data["non_finite"]["where"]["text"] == "log(x)"


def test_batch_statistics_are_trained_along(trainer: httpx.Client) -> None:
    layers = [{"dense": [2, 4]}, {"batchnorm": 4}, {"dense": [4, 1]}]
    trainer.put("/v1/models/normed", json={"architecture": {"layers": layers}}).raise_for_status()
    run = trained(trainer, **{**FIT, "models": {"model": {"name": "normed", "mode": "train"}}})
    found = params_of(trainer, run.name)["state"]["model"]
    assert np.abs(found["layer_2.running_mean"]).max() > 0


def test_examples_come_in_batches_also_by_handle(trainer: httpx.Client) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    value = {"dtype": "float32", "shape": [50, 2], "data": x.tolist()}
    handle = trainer.put("/v1/values", json={"value": value}).json()["handle"]
    runs = [
        trained(
            trainer,
            **{
                **FIT,
                "samplers": {"train": {"distribution": "batches", "data": {"x": data}, "n": 8}},
                "resample_every": None,
            },
            report_every=1,
        )
        for data in (value, {"handle": handle})
    ]
    assert runs[0].values() == runs[1].values()
    assert len(set(runs[0].values())) > 50


def test_runs_belong_to_a_tenant(trainer: httpx.Client) -> None:
    trained(trainer, **FIT, name="my-run")
    other = {"Nablad-Tenant": "other"}
    assert trainer.get("/v1/train/my-run", headers=other).status_code == 404
    assert trainer.get("/v1/train", headers=other).json() == {"runs": []}
    assert "my-run" in [run["name"] for run in trainer.get("/v1/train").json()["runs"]]


def test_many_listeners_hear_the_same(trainer: httpx.Client) -> None:
    heard: list[list[Any]] = []

    def listen() -> None:
        with trainer.stream("GET", "/v1/train/heard/events") as response:
            heard.append(list(events_of(response.iter_lines())))

    request = {**LONG, "name": "heard"}
    with trainer.stream("POST", "/v1/train", json=request) as response:
        events = events_of(response.iter_lines())
        first = next(events)
        listeners = [threading.Thread(target=listen) for _ in range(3)]
        for one in listeners:
            one.start()
        next(event for event in events if event.kind == "report")
        trainer.post("/v1/train/heard/stop")
        run = Followed([first, *events])
        for one in listeners:
            one.join(30)
    assert len(heard) == 3
    for other in heard:
        assert other[-1] == run.last
        assert other == heard[0]
