"""The README is true: its example runs, its table is the table, its commands are two."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import httpx
import pytest

import nablad

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
sys.path.insert(0, str(ROOT / "docs"))


def test_the_example_runs_as_it_stands(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:1]
    connect = nablad.Client
    monkeypatch.setattr(nablad, "Client", lambda: connect(url))
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "data" in printed
    assert "jacobian(yhat, x)  [" in printed


def test_the_operator_table_is_the_servers() -> None:
    from operator_table import rewritten

    assert rewritten(README) == README, "run: python docs/operator_table.py"


def test_there_are_two_set_up_commands() -> None:
    assert len(re.findall(r"^python3 -m venv", README, re.MULTILINE)) == 2


def test_the_curl_calls_work_as_they_stand(url: str) -> None:
    console = README.split("The same call without Python:")[1].split("```")[1]
    calls = [call for call in console.replace("\\\n", " ").split("$ ")[1:] if call.startswith("curl")]
    assert len(calls) == 2
    for call in calls:
        words = shlex.split(call)
        method = words[words.index("-X") + 1] if "-X" in words else "POST"
        path = next(word for word in words if word.startswith("localhost")).split("8421")[1]
        body = words[words.index("-d") + 1]
        answer = httpx.request(
            method, url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60
        )
        assert answer.status_code == 200, answer.text
    assert json.loads(answer.text)["gradients"]["x"]


def test_the_files_it_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
