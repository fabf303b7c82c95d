"""What becomes of sessions when a server ends, however it ends, and when nobody calls them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from local_server import local_server
from sessions_over_http import Spoken, begun, problem

from nablad_service.training.saves import Saves

ADAM = {"name": "adam", "learning_rate": 1e-2}
LBFGS = {"name": "lbfgs", "memory_size": 3}
LOSS = "mean((model(x + 0.01 * normal(x, 1, 0)[0]) - y)**2)"
NET = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"batchnorm": 4}, {"dense": [4, 1]}]}
KILLS = os.environ.get("KILLS", "10")


@contextmanager
def serving(folder: Path, *options: str, net=NET) -> Iterator[httpx.Client]:
    cache = ("--cache", str(folder / "cache"))
    with (
        local_server("--checkpoints", str(folder / "saves"), *cache, *options) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        http.put("/v1/models/net", json={"architecture": net, "seed": 1}).raise_for_status()
        yield http


def trained(session: Spoken, numbers: range, kinds: str) -> list[float]:
    """What the calls of these numbers answer; their data follow from the numbers, `kinds` repeat."""
    told = []
    session.numbers = iter(numbers)
    for number in numbers:
        draw = np.random.default_rng(number)
        x = draw.standard_normal((8, 2)).astype(np.float32)
        if kinds[number % len(kinds)] == "g":
            told.append(session.call("gradient", loss=LOSS, inputs={"x": x, "y": x[:, :1]})["value"])
        else:
            told.append(session.call("step")["update_norm"])
    return told


def begin(http: httpx.Client, optimiser=ADAM, **members) -> Spoken:
    models = {"model": {"name": "net", "mode": "train"}}
    return begun(http, name="run", models=models, optimiser=optimiser, **members)


@pytest.mark.parametrize(("optimiser", "kinds"), [(ADAM, "sgg"), (LBFGS, "sgg")])
def test_a_session_goes_on_bit_for_bit_after_a_restart(tmp_path, optimiser, kinds):
    """The save is made between a gradient and its step."""
    with serving(tmp_path) as http:
        session = begin(http, optimiser)
        trained(session, range(1, 8), kinds)
        saved = session.call("save", sequence=8)
        whole = trained(session, range(9, 16), "gsg")
        last = session.get("params")
        http.post("/v1/sessions/run/load", json={"sequence": 16}).raise_for_status()
        # A server that stops in good order saves; what follows is as after a kill.
        save = next((tmp_path / "saves").glob("common/run/*.safetensors")).read_bytes()
    for file in (tmp_path / "saves").glob("common/run/*.safetensors"):
        file.write_bytes(save)
    with serving(tmp_path) as http:
        standing = http.get("/v1/sessions/run").json()
        assert (standing["step"], standing["sequence"], standing["accumulated"]) == (saved["step"], 8, 1)
        assert (standing["generation"], standing["loaded"]) == (2, False)
        session = Spoken(http, "run")
        told = problem(session.post("step", sequence=17))
        assert (told["status"], told["code"]) == (409, "session_restored")
        assert (told["step"], told["sequence"], told["generation"]) == (saved["step"], 8, 2)
        assert "go on with call 9 of generation 2" in told["detail"]
        session.generation = 2
        assert trained(session, range(9, 16), "gsg") == whole
        np.testing.assert_equal(session.get("params"), last)
        assert session.get()["loaded"]


def test_a_server_that_stops_in_good_order_saves_its_sessions(tmp_path):
    with serving(tmp_path) as http:
        before = trained(session := begin(http), range(1, 8), "sgg")
        params = session.get("params")
    assert len(before) == 7
    with serving(tmp_path) as http:
        session = Spoken(http, "run", generation=2)
        assert session.get()["sequence"] == 7
        np.testing.assert_equal(session.get("params"), params)


def test_idle_sessions_leave_memory_and_come_back_by_themselves(tmp_path):
    with serving(tmp_path, "--session-idle-seconds", "0.2") as http:
        session = begin(http)
        trained(session, range(1, 3), "sgg")
        params = session.get("params")
        until = time.monotonic() + 20
        while session.get()["loaded"]:
            assert time.monotonic() < until
        assert "nablad_sessions 0.0" in http.get("/metrics").text
        standing = session.get()
        assert (standing["sequence"], standing["generation"], standing["saved"]) == (2, 1, [0])
        np.testing.assert_equal(session.get("params"), params)
        trained(session, range(3, 5), "sgg")
        assert session.get()["step"] == 1


def test_sessions_make_room_for_one_another(tmp_path):
    with serving(tmp_path, "--max-sessions", "2") as http:
        sessions = [begun(http, trained={"a": float(value)}, optimiser=ADAM) for value in range(3)]
        assert [one.get()["loaded"] for one in sessions] == [False, True, True]
        assert [float(one.get("params")["trained"]["a"]) for one in sessions] == [0, 1, 2]
    with local_server("--max-sessions", "1") as url, httpx.Client(base_url=url, timeout=60) as http:
        begun(http, trained={"a": 1.0}, optimiser=ADAM)
        told = problem(http.post("/v1/sessions", json={"trained": {"a": 1.0}, "optimiser": ADAM}))
        assert (told["status"], told["code"]) == (507, "resident_limit")


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("saves", r"another server has the checkpoints \S+ \(process \d+ holds it\); stop it, or choose"),
        ("file/saves", "the checkpoints .* cannot be used: Not a directory; choose another --checkpoints"),
    ],
)
def test_a_folder_for_saves_that_cannot_be_used_is_told_in_a_sentence(tmp_path, folder, says):
    (tmp_path / "file").touch()
    saves = Saves(tmp_path / "saves", keep=1)
    command = [sys.executable, "-m", "nablad", "serve", "--port", "0", "--checkpoints"]
    done = subprocess.run([*command, tmp_path / folder], capture_output=True, text=True, check=False)
    saves.close()
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(f"nablad serve: {says}.*\n", done.stderr)


def test_an_idle_session_of_a_server_without_saves_is_dropped():
    with (
        local_server("--session-idle-seconds", "0.05") as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        session = begun(http, trained={"a": 1.0}, optimiser=ADAM)
        until = time.monotonic() + 20
        while http.get(f"/v1/sessions/{session.name}").is_success:
            assert time.monotonic() < until
        told = problem(session.post("step"))
        assert (told["status"], told["code"]) == (404, "unknown_session")
        assert "a session ends with it, and when it is idle" in told["detail"]


def test_a_save_that_does_not_fit_the_model_is_refused_and_stays(tmp_path):
    with serving(tmp_path) as http:
        begin(http).call("save")
    wider = {"layers": [{"dense": [2, 5]}, {"dense": [5, 1]}]}
    with serving(tmp_path, net=wider) as http:
        told = problem(Spoken(http, "run", generation=2).post("step", sequence=2))
        assert (told["status"], told["code"]) == (409, "unfit_save")
        assert "another model than the one that is hosted as 'net' now" in told["detail"]
    with serving(tmp_path) as http:
        assert Spoken(http, "run", generation=2).call("save", sequence=2)["step"] == 0


def test_calls_that_come_out_of_order_over_several_connections_are_done_in_order(tmp_path):
    with serving(tmp_path, "--session-wait-seconds", "0.2") as http:
        session = begun(http, trained={"a": 1.0}, optimiser=ADAM)
        told = problem(session.post("step", sequence=2))
        assert (told["status"], told["code"]) == (409, "sequence")
        assert "call 2 waited 0.2 s for call 1, which did not come" in told["detail"]
    with serving(tmp_path) as http:
        session = begun(http, trained={"a": 1.0}, optimiser=ADAM)
        numbers = [4, 3, 6, 5, 2, 1, 2]
        with ThreadPoolExecutor(len(numbers)) as pool:
            tasks = [pool.submit(called, session, number) for number in numbers]
        answers = [task.result() for task in tasks]
        assert all(answer.is_success for answer in answers)
        assert session.get()["step"] == 3
        assert answers[4].content == answers[6].content


def called(session: Spoken, number: int) -> httpx.Response:
    if number % 2 == 0:
        return session.post("step", sequence=number)
    return session.post("gradient", sequence=number, loss="a**2")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_a_full_disk_at_a_save_loses_nothing(tmp_path):
    folder = tmp_path / "saves"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        with local_server("--checkpoints", str(folder)) as url, httpx.Client(base_url=url) as http:
            start = {"a": np.zeros(1000, np.float32)}
            session = begun(http, name="run", trained=start, optimiser=ADAM)
            session.call("save")
            (folder / "filling").write_bytes(b"x" * (40 * 1024))
            session.call("gradient", loss="sum((a - 1)**2)")
            session.call("step")
            told = problem(session.post("save"))
            assert (told["status"], told["code"]) == (507, "storage")
            assert "the disk is full" in told["detail"]
            assert session.get()["saved"] == [0]
            (folder / "filling").unlink()
            assert session.call("save")["saved"] == [0, 1]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_kill_at_any_moment_leaves_a_whole_save_from_which_it_goes_on():
    """KILLS=200 for more of them."""
    script = Path(__file__).parent.parent / "service" / "kill_the_trainer.py"
    done = subprocess.run([sys.executable, script, KILLS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"kills: {KILLS}" in done.stdout
