"""What a session refuses: one clear sentence each, and the session goes on."""

from __future__ import annotations

import httpx
import msgpack
import numpy as np
import pytest
from sessions_over_http import MSGPACK, asked, begun, packed, problem

ADAM = {"name": "adam", "learning_rate": 1e-2}
LOSS = "mean(model(x)**2)"
X = np.ones((3, 2), np.float32)


@pytest.fixture
def session(trainer):
    return begun(trainer, models={"model": "net"}, trained={"scale": 2.0}, optimiser=ADAM)


def usable(session):
    session.call("gradient", loss=LOSS, inputs={"x": X})
    return session.call("step")


@pytest.mark.parametrize(
    ("members", "code", "says"),
    [
        (
            {"loss": "mean(other(x)**2)"},
            "independent",
            "names nothing that the session trains, which is model, scale",
        ),
        ({"loss": "mean(other(x)**2) + scale"}, "unknown_name", "'other' is not defined"),
        ({"loss": "mean(model(x)"}, "syntax", ""),
        ({"loss": "model(x)"}, "not_scalar", "reduce it with sum or mean"),
        ({"loss": LOSS, "inputs": {"x": X, "z": 1.0}}, "extra_input", "'z'"),
        (
            {"loss": LOSS, "inputs": {"x": X, "scale": 1.0}},
            "invalid_request",
            "the session holds 'scale' itself",
        ),
        ({"loss": LOSS, "weight": float("inf")}, "invalid_request", "'weight': input should be a finite"),
        ({"loss": LOSS, "terms": ["fit"]}, "unknown_name", "has no value 'fit'"),
        ({"loss": LOSS, "term_gradients": "norms"}, "invalid_request", "term_gradients needs terms"),
    ],
)
def test_a_gradient_that_cannot_be(session, members, code, says):
    told = problem(session.post("gradient", **{"inputs": {"x": X}, **members}))
    assert told["code"] == code
    assert says in told["detail"]
    assert usable(session)["step"] == 1


@pytest.mark.parametrize(
    ("members", "code", "says"),
    [
        ({"weight_decay": 0.1}, "optimiser", "adam has no weight decay that a step could set"),
        (
            {"frozen": ["model.params[layer_9.weight]"]},
            "invalid_request",
            "did you mean 'model.params[layer_",
        ),
        ({"learning_rates": 0.1}, "invalid_request", "learning_rates"),
        ({"clip_norm": -1}, "invalid_request", "clip_norm"),
    ],
)
def test_a_step_that_cannot_be(session, members, code, says):
    session.call("gradient", loss=LOSS, inputs={"x": X})
    told = problem(session.post("step", **members))
    assert told["code"] == code
    assert says in told["detail"]
    assert session.call("step")["step"] == 1


def test_a_body_in_which_no_number_can_be_read_takes_none(session):
    for sequence in ("one", 0, None):
        told = problem(session.post("step", sequence=sequence))
        assert (told["code"], "'sequence'" in told["detail"]) == ("invalid_request", True)
    assert session.get()["sequence"] == 0
    session.numbers = iter(range(1, 99))
    assert usable(session)["step"] == 1


def test_a_step_without_a_gradient(session):
    told = problem(session.post("step"))
    assert (told["status"], told["code"]) == (409, "no_gradient")
    assert "call gradient before step" in told["detail"]
    usable(session)
    assert problem(session.post("step"))["code"] == "no_gradient"
    assert usable(session)["step"] == 2


@pytest.mark.parametrize(
    ("members", "code", "says"),
    [
        ({"optimiser": {"name": "adm", "learning_rate": 0.1}}, "optimiser", "did you mean 'adam'?"),
        ({"optimiser": {"name": "adam"}}, "optimiser", "adam needs 'learning_rate'"),
        ({"optimiser": {**ADAM, "frozen": ["nets.params"]}}, "invalid_request", "did you mean"),
        ({"models": {}, "trained": {}}, "invalid_request", "nothing is trained"),
        ({"models": {"model": "nett"}}, "unknown_model", "net"),
        ({"models": {"my model": "net"}}, "invalid_request", "not a name that a program can use"),
        ({"models": {"a": "net"}, "trained": {"a": 1.0}}, "invalid_request", "in 'models' and in 'trained'"),
        ({"trained": {"a": {"b": 1.0}}}, "invalid_array", "must be an array, not a tree"),
        ({"trained": {"a": np.ones(2, np.int32)}}, "wrong_dtype", "'a' is trained, and holds int32"),
        ({"name": "../x"}, "invalid_request", "name"),
    ],
)
def test_a_session_that_cannot_be(trainer, members, code, says):
    body = {"models": {"model": "net"}, "optimiser": ADAM, **members}
    told = problem(trainer.post("/v1/sessions", content=msgpack.packb(packed(body)), headers=MSGPACK))
    assert told["code"] == code
    assert says in told["detail"]


def test_names_are_those_of_a_tenant(trainer):
    mine = begun(trainer, name="mine", trained={"a": 1.0}, optimiser=ADAM)
    other = {"Nablad-Tenant": "another one"}
    for path in ("", "/params", "/gradients"):
        told = problem(trainer.get(f"/v1/sessions/mine{path}", headers=other))
        assert (told["status"], told["code"]) == (404, "unknown_session")
    told = problem(trainer.post("/v1/sessions/mine/step", json={"sequence": 1}, headers=other))
    assert told["code"] == "unknown_session"
    told = problem(trainer.get("/v1/sessions/mina"))
    assert "did you mean 'mine'?" in told["detail"]
    told = problem(
        trainer.post("/v1/sessions", json={"name": "mine", "trained": {"a": 1}, "optimiser": ADAM})
    )
    assert (told["status"], told["code"]) == (409, "session_exists")
    theirs = begun(trainer, name="mine", trained={"a": 2.0}, optimiser=ADAM, headers=other)
    assert (mine.get("params")["trained"]["a"], theirs.get("params")["trained"]["a"]) == (1.0, 2.0)
    assert "mine" in [one["name"] for one in trainer.get("/v1/sessions").json()["sessions"]]
    assert trainer.delete("/v1/sessions/mine").status_code == 204
    assert problem(trainer.get("/v1/sessions/mine"))["code"] == "unknown_session"
    assert theirs.get()["step"] == 0


def test_numbers_out_of_order(session):
    session.call("gradient", loss=LOSS, inputs={"x": X}, sequence=1)
    first = session.call("step", sequence=2)
    assert session.call("step", sequence=2) == first
    told = problem(session.post("step", sequence=2, learning_rate=0.5))
    assert (told["status"], told["code"]) == (409, "sequence")
    assert (told["sequence"], told["step"], told["generation"]) == (2, 1, 1)
    assert "call 2 was another one" in told["detail"]
    told = problem(session.post("gradient", sequence=99, loss=LOSS, inputs={"x": X}))
    assert "call 99 is too far ahead: the last that is done is 2" in told["detail"]
    told = problem(session.post("step", sequence=3, generation=4))
    assert (told["status"], told["code"], told["step"]) == (409, "session_restored", 1)
    session.numbers = iter(range(3, 99))
    assert usable(session)["step"] == 2


def test_a_save_goes_back_to_where_it_was(session):
    usable(session)
    session.call("gradient", loss=LOSS, inputs={"x": X})
    at_one = session.call("save")
    assert (at_one["saved"], at_one["accumulated"]) == ([1], 1)
    before = session.get("params")
    gradients = session.get("gradients")
    values = [session.call("step")["update_norm"]]
    values += [usable(session)["update_norm"] for _ in range(2)]
    assert session.call("save")["saved"] == [1, 4]
    standing = session.call("load", step=1)
    assert (standing["step"], standing["accumulated"], standing["generation"]) == (1, 1, 1)
    np.testing.assert_equal(session.get("params"), before)
    np.testing.assert_equal(session.get("gradients"), gradients)
    again = [session.call("step")["update_norm"]]
    again += [usable(session)["update_norm"] for _ in range(2)]
    assert again == values
    # A call that comes again is answered as the first time, wherever the session stands by now.
    assert session.call("load", step=1, sequence=standing["sequence"]) == standing
    told = problem(session.post("load", step=3))
    assert (told["status"], told["code"]) == (404, "no_save")
    assert "there are those of steps 1, 4" in told["detail"]
    assert usable(session)["step"] == 5


def test_a_server_without_a_folder_keeps_no_saves(url):
    with httpx.Client(base_url=url, timeout=60) as http:
        session = begun(http, trained={"a": 1.0}, optimiser=ADAM)
        for what in ("save", "load"):
            told = problem(session.post(what))
            assert (told["status"], told["code"]) == (409, "no_checkpoints")
            assert "--checkpoints DIR" in told["detail"]
        session.call("gradient", loss="a**2")
        assert session.call("step")["step"] == 1


def test_a_deleted_session_is_gone_with_its_saves(session, trainer):
    session.call("save")
    assert asked(trainer.delete(f"/v1/sessions/{session.name}")) is None
    assert problem(session.post("step"))["code"] == "unknown_session"
    again = begun(trainer, name=session.name, trained={"a": 1.0}, optimiser=ADAM)
    assert again.get()["saved"] == []
