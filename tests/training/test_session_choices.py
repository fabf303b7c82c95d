"""A session computes a program as it did the first time, whatever the server learns, forgets or is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from restarting import restarting
from sessions_over_http import Spoken, begun

from nablad_service.planning.learned_plans import LearnedPlan, Timed

SGD = {"name": "sgd", "learning_rate": 0.01}
NET = {"layers": [{"dense": [2, 16], "activation": "tanh"}, {"dense": [16, 1]}]}
BEND = """
def u(a):
    return d(model(stack([a, a * a]))[0], a, a)

mean(vmap(u)(x)**2)
"""
X = np.random.default_rng(1).standard_normal(32).astype(np.float32)


def bent(session: Spoken, sequence: int) -> list[Any]:
    """Three steps, and what they were told and left."""
    told = [
        session.call("gradient", sequence=number, loss=BEND, inputs={"x": X}, step={})
        for number in range(sequence, sequence + 3)
    ]
    params = session.get("params")["params"]["model"]
    return [*((one["value"], one["stepped"]["update_norm"]) for one in told), *map(bytes, params.values())]


def learn(folder: Path, key: str, strategy: str) -> None:
    """Have the server know from its start that this strategy is the fastest for all derivatives."""
    choices = tuple((node, strategy) for node in range(40))
    plan = LearnedPlan(key, BEND, "cpu", (Timed((), 1, 1, 2.0), Timed(choices, 1, 1, 1.0)), 1)
    (folder / "cache" / "plans" / f"{key}.json").write_text(json.dumps(plan.document()))


def test_what_is_done_again_after_a_kill_is_computed_as_before_though_the_server_learned(
    tmp_path: Path,
) -> None:
    """The program is met for the first time after the save."""
    options = ("--cache", str(tmp_path / "cache"), "--tune-after-calls", "0")
    with restarting(tmp_path, *options) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        http.put("/v1/models/net", json={"architecture": NET, "seed": 1}).raise_for_status()
        members: dict[str, Any] = {"models": {"model": "net"}, "optimiser": SGD}
        session = begun(http, name="run", **members)
        session.call("gradient", loss="mean(model([[1.0, 2.0]])**2)", step={})
        session.call("save")
        whole = bent(session, 3)
        server.kill()
        kept = json.loads((tmp_path / "saves" / "common" / "run" / "choices.json").read_text())
        learn(tmp_path, list(kept)[-1], "reverse")
        server.start()
        assert http.get("/v1/sessions/run").json()["sequence"] == 2
        assert bent(Spoken(http, "run", generation=2), 3) == whole
        other = begun(http, name="other", **members)
        other.call("gradient", loss="mean(model([[1.0, 2.0]])**2)", step={})
        assert bent(other, 2) != whole
