"""Every program in docs/language.md runs, with the model and the data that its first comment names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nablad
from nablad.problems import CODES

DOCS = Path(__file__).parent.parent / "docs"
SNIPPETS = re.findall(r"```python\n(.*?)```", (DOCS / "language.md").read_text(), re.DOTALL)
MODELS = {"docs": "2 -> 1", "flow": "2 -> 2", "operator": "a DeepONet"}


def data_of(comment: str) -> tuple[dict[str, Any], str | None]:
    """`inputs: x (10, 2), nu` as arrays; the model that the comment names."""
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    for name, shape in re.findall(r"(\w+)(?: \(([\d, ]*)\))?(?:,|$)", comment.split("inputs:")[1].strip()):
        lengths = [int(length) for length in shape.replace(" ", "").split(",") if length]
        inputs[name] = rng.standard_normal(lengths) if lengths else 0.1
    model = next((name for name, words in MODELS.items() if f"model: {words};" in comment), None)
    return inputs, model


@pytest.fixture(scope="module")
def models(client: nablad.Client) -> None:
    for name, outputs in (("docs", 1), ("flow", 2)):
        layers = [{"dense": [2, 6], "activation": "tanh"}, {"dense": [6, outputs]}]
        client.create_model(name, {"layers": layers})
    client.create_model("operator", {"preset": "deeponet", "branch": [8, 6, 4], "trunk": [2, 6, 4]})


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_every_program_of_the_language_page_runs(client: nablad.Client, models: None, snippet: str) -> None:
    comment = snippet.splitlines()[0]
    assert comment.startswith("#"), "a program names its data in its first line"
    inputs, model = data_of(comment)
    loss: Any = snippet
    terms: list[str] = []
    if "function" in comment:
        namespace: dict[str, Any] = {"np": np, "nablad": nablad}
        # Traced functions are read from frames, not from source: exec is as good as a file.
        exec(snippet, namespace)
        loss, terms = namespace["loss"], ["fit"]
    wrt = ["params"] if model else list(inputs)
    result = client.gradient(loss, inputs=inputs, model=model, wrt=wrt, terms=terms)
    assert np.isfinite(result.value)
    gradients = result.gradients["params"] if model else result.gradients
    assert any(np.abs(array).max() > 0 for array in gradients.values())


def test_every_code_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", (DOCS / "http.md").read_text().split("| status | codes |")[1]))
    assert documented == set(CODES)
