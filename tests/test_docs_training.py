"""The pages about training are true: their Python runs, their file trains."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablad
from nablad import command_line

DOCS = Path(__file__).parent.parent / "docs"


def snippets(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that keeps saves."""
    from local_server import local_server

    with local_server("--checkpoints", str(tmp_path_factory.mktemp("checkpoints"))) as url:
        yield url


@pytest.fixture
def namespace(address: str) -> Iterator[dict[str, Any]]:
    """What the pages take for granted: a client, two models, data."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 2)).astype("float32")
    y = np.sin(x[:, :1])
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 32, 4)]
    with nablad.Client(address) as client:
        client.create_model("net", {"layers": [{"dense": [2, 8], "activation": "tanh"}, {"dense": [8, 1]}]})
        client.create_model("poisson", {"preset": "mlp", "sizes": [1, 8, 1], "activation": "tanh"})
        loss = "mean((model(x) - y)**2)"
        given = {"client": client, "url": address, "x": x, "y": y, "batches": batches, "LOSS": loss}
        yield {"nablad": nablad, **given}


@pytest.mark.parametrize("page", ["sessions.md", "training.md"])
def test_the_python_of_the_page_runs(
    page: str, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for snippet in snippets(page, "python"):
        exec(compile(snippet, page, "exec"), namespace)
    if page == "sessions.md":
        asyncio.run(namespace["train"]())
        printed = capsys.readouterr().out
        assert "<StepResult step 8:" in printed
        assert printed.count("<SessionGradientResult") == 2
        assert [one.name for one in namespace["client"].sessions()] == ["overnight"]
    else:
        printed = capsys.readouterr().out
        assert "<History of 4 reports: step 60" in printed
        assert set(namespace["trained"]) == set(namespace["client"].params("poisson").params)


def test_the_file_of_the_page_trains_and_goes_on(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NABLAD_URL", raising=False)
    (text,) = snippets("training.md", "toml")
    file = tmp_path / "poisson.toml"
    file.write_text(text.replace("http://127.0.0.1:8421", address).replace("steps = 500", "steps = 300"))
    assert command_line.main(["train", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("run poisson\nstep 1  loss ")
    assert f"saved {tmp_path / 'poisson.npz'}, {tmp_path / 'poisson.csv'}" in printed
    saved = np.load(tmp_path / "poisson.npz")
    assert set(saved) == {f"layer_{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")}
    assert (tmp_path / "poisson.csv").read_text().startswith("step,value,")
    # A longer loop goes on where the shorter one was saved.
    file.write_text(text.replace("http://127.0.0.1:8421", address).replace("steps = 500", "steps = 400"))
    assert command_line.main(["train", str(file), "--resume"]) == 0
    steps = re.findall(r"^step (\d+)", capsys.readouterr().out, re.MULTILINE)
    assert set(steps) == {"400"}
