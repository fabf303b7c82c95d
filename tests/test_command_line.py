"""The command line, as typed: real processes against a real server."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablad
from nablad import command_line
from nablad.command_line.common import Waiting


def nablad_command(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nablad", *words], capture_output=True, text=True, timeout=60, **settings
    )


@pytest.fixture(scope="module")
def hosted(client: nablad.Client) -> str:
    client.create_model("cli", {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"dense": [3, 1]}]})
    return "cli"


def test_gradient_reads_files_and_saves_gradients(
    client: nablad.Client, url: str, hosted: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 2)).astype("float32"), rng.standard_normal((4, 1)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    program = "u = model(x)\nfit = mean((u - y)**2)\nfit + w * norm(grad(sum(u), x))**2"
    (tmp_path / "loss.txt").write_text(program)
    words = ["gradient", "--url", url, "--model", hosted, "--loss", "loss.txt", "--term", "fit", "--explain"]
    words += ["--input", "x=x.npy", "--input", "y=y.npy", "--input", "w=0.5"]
    words += ["--wrt", "params", "--wrt", "x", "--out", "grads.npz"]
    words += ["--strategy", "grad=reverse_over_reverse", "--no-tune"]
    done = nablad_command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = {"model": hosted, "wrt": ["params", "x"], "strategies": {"grad": "reverse_over_reverse"}}
    expected = client.gradient(program, inputs={"x": x, "y": y, "w": 0.5}, **asked)
    assert f"value {expected.value:.9g}" in done.stdout
    assert "term fit" in done.stdout
    assert "[reverse_over_reverse] asked for" in done.stdout
    saved = np.load(tmp_path / "grads.npz")
    assert set(saved) == {*expected.gradients["params"], "x"}
    np.testing.assert_array_equal(saved["x"], expected.gradients["x"])
    np.testing.assert_array_equal(saved["layer_1.weight"], expected.gradients["params"]["layer_1.weight"])


def test_a_refusal_goes_to_stderr_with_its_place_and_exit_code_one(url: str, hosted: str) -> None:
    done = nablad_command("gradient", "--url", url, "--model", hosted, "--loss", "summ(model(1))")
    assert done.returncode == 1
    assert "did you mean 'sum'?" in done.stderr
    assert "line 1, column 1" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gradient", "--loss", "1", "--input", "x"], "must be NAME=VALUE"),
        (["gradient", "--loss", "1", "--input", "x=absent.npy"], "there is no file 'absent.npy'"),
        (["gradient", "--loss", "1", "--out", "grads.txt"], "saved as .npz"),
        (["models", "--url", "http://127.0.0.1:9"], "is `nablad serve` running there?"),
        (["models", "put", "net"], "nothing to put: give --architecture, --stablehlo or --params"),
        (["models", "put", "net", "--params", "absent.npz"], "there is no file 'absent.npz'"),
        (["models", "put", "net", "--params", "weights.pt"], "files named .npz or .safetensors"),
        (["models", "put", "net", "--architecture", os.devnull], "is not valid JSON"),
        (["models", "params", "net", "--out", "weights.txt"], "files named .npz or .safetensors"),
    ],
)
def test_wrong_calls_get_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(words) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_models_and_operators_are_listed(url: str, hosted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["models", "--url", url]) == 0
    assert "cli  layers  x (2)  13 parameters in 4 arrays" in capsys.readouterr().out
    assert command_line.main(["operators", "--url", url]) == 0
    assert "grad(y, x)" in capsys.readouterr().out


def test_models_are_put_saved_and_deleted(
    client: nablad.Client, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def models(*words: str) -> str:
        status = command_line.main(["models", *words, "--url", url])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    layers = {"layers": [{"dense": [2, 1]}, {"batchnorm": 1}]}
    (tmp_path / "net.json").write_text(json.dumps(layers))
    said = models("put", "cli_net", "--architecture", str(tmp_path / "net.json"), "--seed", "3")
    assert said.startswith("cli_net  layers  x (2)  5 parameters in 4 arrays  version ")
    assert client.model("cli_net").version == client.create_model("cli_twin", layers, seed=3).version
    resident = client.params("cli_net")
    for kind in ("npz", "safetensors"):
        saved = [str(tmp_path / f"{what}.{kind}") for what in ("params", "state")]
        assert resident.version in models("params", "cli_net", "--out", saved[0], "--state-out", saved[1])
        other = {name: leaf + 1 for name, leaf in resident.params.items()}
        assert client.set_params("cli_net", other) != resident.version
        said = models("put", "cli_net", "--params", saved[0], "--state", saved[1])
        assert said.strip().endswith(resident.version)
    models("put", "cli_twin", "--architecture", str(tmp_path / "net.json"), "--params", saved[0])
    assert client.model("cli_twin").version == resident.version
    for name in ("cli_net", "cli_twin"):
        assert models("delete", name) == f"deleted {name}\n"
    # The address may also stand before the word.
    assert command_line.main(["models", "--url", url, "delete", "cli_net"]) == 1
    assert "no model is called 'cli_net'" in capsys.readouterr().err


def test_safetensors_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert command_line.main(["models", "put", "net", "--params", "weights.safetensors"]) == 1
    assert "pip install safetensors" in capsys.readouterr().err


def test_serve_without_the_service_extra_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "entry_points", lambda group: ())
    assert command_line.main(["serve", "--port", "0"]) == 2
    assert 'pip install "nablad[service]"' in capsys.readouterr().err


def test_serve_says_where_it_listens_and_stops_cleanly_when_told() -> None:
    command = [sys.executable, "-m", "nablad", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = line.split()[3]
        with nablad.Client(address) as client:
            assert client.evaluate("x + 1", inputs={"x": 2.0}).result == 3.0
        server.send_signal(signal.SIGTERM)
        _, printed = server.communicate(timeout=30)
        assert server.returncode == 0, printed
        assert "Traceback" not in printed


def test_serve_refuses_a_port_in_use_and_a_bad_setting(url: str) -> None:
    port = url.rsplit(":", 1)[1]
    taken = nablad_command("serve", "--port", port)
    assert taken.returncode == 1
    assert "choose another --port" in taken.stderr
    wrong = nablad_command("serve", "--max-queue", "0")
    assert wrong.returncode == 2
    assert "max_queue" in wrong.stderr


def test_long_waits_show_the_seconds_on_a_terminal_and_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, os.fdopen(master, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Waiting("waiting for the server"):
            seen = screen.read(64)
        assert b"waiting for the server 0." in seen
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stderr", elsewhere)
    with Waiting("waiting for the server"):
        pass
    assert elsewhere.getvalue() == ""


def test_plan_draws_in_letters_and_as_a_picture(url: str, hosted: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 2), "float32"))
    words = ["plan", "--url", url, "--model", hosted, "--loss", "mean(laplacian(model(x)[:, 0], x)**2)"]
    done = nablad_command(*words, "--input", "x=x.npy", "--svg", "plan.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "● forward_over_forward" in done.stdout
    assert "saved plan.svg" in done.stdout
    picture = (tmp_path / "plan.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg ")
    assert "laplacian(model(x)[:, 0], x)" in picture


def test_warm_compiles_for_shapes_without_data(client: nablad.Client, url: str, hosted: str) -> None:
    loss = "mean((model(x) - y)**2) + 0 * norm(x)"
    words = ["warm", "--url", url, "--model", hosted, "--loss", loss]
    words += ["--shape", "x=float32:11,2", "--shape", "y=float32:11,1", "--wrt", "params", "--wrt", "x"]
    done = nablad_command(*words, "--batch-size", "3")
    assert done.returncode == 0, done.stderr
    assert "one call: compiled in" in done.stdout
    assert "4 calls at once: compiled in" in done.stdout
    inputs = {"x": np.zeros((11, 2), "float32"), "y": np.zeros((11, 1), "float32")}
    found = client.gradient(loss, inputs=inputs, model=hosted, wrt=["params", "x"])
    assert not found.timing.compiled
    again = nablad_command(*words)
    assert "one call: was there already" in again.stdout
    for shape in ("x=float31:2", "x=float32:two"):
        refused = nablad_command("warm", "--url", url, "--loss", "x", "--shape", shape)
        assert refused.returncode == 1
        assert "must be DTYPE:LENGTHS" in refused.stderr


def test_a_reader_that_has_read_enough_is_no_failure(url: str) -> None:
    words = [sys.executable, "-m", "nablad", "operators", "--url", url]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listing:
        assert listing.stdout is not None
        listing.stdout.close()
        _, said = listing.communicate(timeout=60)
    assert (listing.returncode, said) == (0, "")
