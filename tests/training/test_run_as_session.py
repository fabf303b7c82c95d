"""A run's save, gone on with as a session."""

from __future__ import annotations

import numpy as np
from following import params_of, trained
from sessions_over_http import Spoken, problem

LOSS = "mean((model(x) - 1)**2)"
INPUTS = {"x": [[0.5, 2.0], [1.0, -1.0]]}
ADAM = {"name": "adam", "learning_rate": 0.01}


def test_a_session_goes_on_from_where_a_run_ended(trainer):
    """Adam's moments are those of the run: two runs and a run with a session end at the same parameters."""
    given = {"models": {"model": "net"}, "loss": LOSS, "inputs": INPUTS, "optimiser": ADAM}
    trained(trainer, name="in-one-go", steps=24, **given)
    trained(trainer, name="begun", steps=20, **given)
    session = Spoken(trainer, "begun")
    standing = session.get()
    assert (standing["step"], standing["sequence"], standing["generation"]) == (20, 0, 1)
    assert "begun" not in [one["name"] for one in trainer.get("/v1/sessions").json()["sessions"]]
    for _ in range(4):
        session.call("gradient", loss=LOSS, inputs=INPUTS)
        session.call("step")
    ours, theirs = session.get("params"), params_of(trainer, "in-one-go")
    assert ours["step"] == 24
    for leaf, expected in theirs["params"]["model"].items():
        np.testing.assert_allclose(ours["params"]["model"][leaf], expected, rtol=1e-5, atol=1e-7)
    assert session.call("save")["saved"] == [20, 24]
    assert session.get()["models"] == {"model": "net"}
    told = problem(
        trainer.post("/v1/sessions", json={"name": "in-one-go", "trained": {"a": 1}, "optimiser": ADAM})
    )
    assert told["code"] == "session_exists"
