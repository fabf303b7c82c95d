"""`nablad train FILE`: what is wrong with a file, in one sentence, before anything is asked of a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nablad import command_line

GOOD = """\
loss = "mean((net(x) - y)**2)"
steps = 40
report_every = 20

[server]
url = "http://127.0.0.1:9"

[optimiser]
name = "adam"
learning_rate = 1e-2

[model.net]
architecture = { layers = [{ dense = [1, 4], activation = "tanh" }, { dense = [4, 1] }] }

[inputs]
x = "x.npy"
y = [[0.0], [1.0], [2.0]]
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("steps = 40", "stepz = 40"), "there is no member 'stepz'; nearest: steps"),
        (("steps = 40", 'histroy = "h.csv"'), "there is no member 'histroy'; nearest: history"),
        (("steps = 40", "steps = 0"), "steps: input should be greater than 0"),
        (('loss = "mean((net(x) - y)**2)"', ""), "loss is missing"),
        (('name = "adam"', ""), "optimiser.name is missing"),
        (("[inputs]", "[inputs]\nz = 'absent.npy'"), "inputs.z: there is no file"),
        (("architecture = {", "architectur = {"), "there is no member 'model.net.architectur'"),
        (("[model.net]", "[model.empty]\n[model.net]"), "model.empty needs architecture"),
        (("steps = 40", 'steps = 40\nout = "weights.pt"'), "files named .npz or .safetensors"),
        (("steps = 40", 'steps = 40\nout = "absent/weights.npz"'), "there is no folder"),
        (("[inputs]", "[inputs"), "is not valid TOML"),
        (("steps = 40", "steps = 40\n[samplers.x]\ndistribution = 'sobl'"), "samplers.x: input tag 'sobl'"),
        (("", ""), "is `nablad serve` running there?"),
    ],
)
def test_what_is_wrong_is_said_by_its_member(
    change: tuple[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NABLAD_URL", raising=False)
    np.save(tmp_path / "x.npy", np.zeros((3, 1), "float32"))
    file = tmp_path / "fit.toml"
    file.write_text(GOOD.replace(*change))
    assert command_line.main(["train", str(file)]) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_a_file_that_is_not_there_and_a_run_without_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["train", "absent.toml"]) == 1
    assert "there is no file 'absent.toml'" in capsys.readouterr().err
    file = tmp_path / "fit.json"
    file.write_text('{"loss": "1.0"}')
    assert command_line.main(["train", str(file), "--resume"]) == 1
    assert "--resume NAME" in capsys.readouterr().err
    assert command_line.main(["train", "--resume", str(file)]) == 1
    assert f"{file} gives the run no name" in capsys.readouterr().err
    assert command_line.main(["train", "--resume"]) == 1
    assert "which file? nablad train FILE" in capsys.readouterr().err
    file.write_text('{"loss": ')
    assert command_line.main(["train", str(file)]) == 1
    assert "is not valid JSON" in capsys.readouterr().err
