"""A run whose server is killed goes on from its last save, to the numbers of one that was left alone."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from following import ARCHITECTURE, Followed, events_of, params_of, trained
from served import served

KILLS = int(os.environ.get("NABLAD_KILLS", "2"))
"""How often the server is killed; 200 for the long form."""
RUN: dict[str, Any] = {
    "loss": "u = model(x)[:, 0]\nsigns = rademacher(u, 1, seed=0)\nmean((u - sin(x[:, 0]) + 0.1 * signs)**2)",
    "models": {"model": "net"},
    "samplers": {"x": {"distribution": "latin_hypercube", "low": [-3, 0], "high": [3, 1], "n": 64}},
    "resample_every": 3,
    "optimiser": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "clip_norm": 1.0},
    "seed": 7,
    "report_every": 500,
}
EVERY = 1000


def test_killed_and_resumed_it_ends_at_the_same_numbers(trainer: httpx.Client, tmp_path: Path) -> None:
    moments = random.Random(0)
    steps = 6 * EVERY * KILLS
    whole = trained(trainer, **RUN, steps=steps)
    request = {**RUN, "steps": steps, "name": "killed", "checkpoint_every": EVERY}
    folders = ("--checkpoints", str(tmp_path / "saves"), "--cache", str(tmp_path / "cache"))
    reports: dict[int, float] = {}
    saved = 0
    for turn in range(KILLS + 1):
        with (
            served("--port", "0", *folders) as server,
            httpx.Client(base_url=server.urls[0], timeout=60) as http,
        ):
            http.put("/v1/models/net", json={"architecture": ARCHITECTURE, "seed": 1}).raise_for_status()
            if turn:
                standing = http.get("/v1/train/killed").json()
                assert standing["status"] == "saved"
                assert standing["step"] >= saved, "a save that was told is gone"
            if turn == KILLS:
                last = trained(http, **request, resume=True)
                reports |= told(last)
                assert last.last.kind == "done"
                found = params_of(http, "killed")["params"]["model"]
                break
            run, saves = Followed(), moments.randrange(1, 4)
            with http.stream("POST", "/v1/train", json={**request, "resume": turn > 0}) as response:
                for event in events_of(response.iter_lines()):
                    run.events.append(event)
                    if len(run.of("checkpoint")) == saves:
                        break
                # Not a wait for something to be ready: the moment of the kill is what is drawn.
                threading.Event().wait(moments.uniform(0, 0.03))
                server.kill()
            reports |= told(run)
            # None of this turn, where the machine was so busy that the run was over before the kill.
            saved = max([saved, *(one["step"] for one in run.of("checkpoint"))])
    expected = told(whole)
    assert all(expected[step] == value for step, value in reports.items())
    for leaf, one in params_of(trainer, whole.name)["params"]["model"].items():
        np.testing.assert_array_equal(found[leaf], one)


def told(run: Followed) -> dict[int, float]:
    """The reported values by step."""
    return {report["step"]: report["value"] for report in run.of("report")}


def test_a_disk_that_is_full_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    small = 'ulimit -f 1; exec "$0" "$@"'  # files of a kilobyte at most
    folders = ("--checkpoints", str(tmp_path))
    with (
        served("--port", "0", *folders, before=("bash", "-c", small)) as server,
        httpx.Client(base_url=server.urls[0], timeout=60) as http,
    ):
        http.put("/v1/models/net", json={"architecture": ARCHITECTURE, "seed": 1}).raise_for_status()
        run = trained(http, **RUN, steps=40, checkpoint_every=20, name="full")
        assert [event.kind for event in run.events] == [
            "started",
            "report",
            "unsaved",
            "report",
            "unsaved",
            "done",
        ]
        problem = run.of("unsaved")[0]
        assert problem["code"] == "storage"
        assert "'full' could not be saved" in problem["detail"]
        assert run.last.data["checkpoint"] is None
        assert params_of(http, "full")["step"] == 40
        assert not list(tmp_path.glob("*/*/*.safetensors"))
