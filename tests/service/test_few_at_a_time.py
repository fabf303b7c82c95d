"""Chunks of examples and limits of memory, over HTTP: what is asked, what is planned, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from local_server import local_server

import nablad

X = np.random.default_rng(0).standard_normal((500, 4))
LOSS = "u = model(x)[:, 0]\nmean(laplacian(u, x)**2)"
NET = {"preset": "mlp", "sizes": [4, 16, 16, 1]}
ASKED: dict[str, Any] = {"inputs": {"x": X}, "model": "few"}


@pytest.fixture(scope="module", autouse=True)
def net(client: nablad.Client) -> None:
    client.create_model("few", NET)


def close(found: nablad.GradientResult, expected: nablad.GradientResult) -> None:
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-12)
    params: Any = expected.gradients["params"]
    for name, leaf in params.items():
        np.testing.assert_allclose(found.gradients["params"][name], leaf, rtol=1e-10, atol=1e-14)


def test_a_number_of_examples_at_once_is_followed_and_told(any_client: nablad.Client) -> None:
    whole = any_client.gradient(LOSS, **ASKED)
    found = any_client.gradient(LOSS, examples_at_once=64, **ASKED)
    close(found, whole)
    assert whole.plan.examples is None
    assert found.plan.examples == {"number": 500, "at_once": 64, "reason": "asked for"}
    assert "64 of 500 examples at a time" in str(found.plan)
    values = any_client.evaluate("laplacian(model(x)[:, 0], x)", examples_at_once=64, **ASKED)
    assert values.result.shape == (500,)


def test_a_plan_tells_what_fewer_at_once_would_cost(client: nablad.Client) -> None:
    report = client.plan(LOSS, **ASKED)
    examples = report.examples
    assert examples is not None
    assert (examples.number, examples.at_once) == (500, 500)
    assert [one.strategy for one in examples.candidates if one.chosen] == ["all at once"]
    costs = [one.peak_bytes or 0 for one in examples.candidates]
    assert len(costs) > 1
    assert costs == sorted(costs, reverse=True)
    assert "└─ examples: 500" in str(report)
    pinned = client.plan(LOSS, examples_at_once=32, **ASKED).examples
    assert pinned is not None
    assert [one.strategy for one in pinned.candidates if one.chosen] == ["32 at a time"]


def test_a_memory_limit_of_a_request_is_met_or_refused_with_its_place(client: nablad.Client) -> None:
    whole = client.gradient(LOSS, **ASKED)
    needed = client.plan(LOSS, **ASKED).peak_bytes
    found = client.gradient(LOSS, memory_limit=needed // 10, **ASKED)
    close(found, whole)
    assert found.plan.examples is not None
    assert found.plan.examples["reason"] == "so that it fits in memory"
    assert client.plan(LOSS, memory_limit=needed // 10, **ASKED).peak_bytes <= needed // 10
    with pytest.raises(nablad.ProgramError) as caught:
        client.gradient(LOSS, memory_limit=1000, **ASKED)
    assert caught.value.code == "memory_limit"
    assert caught.value.where is not None
    assert caught.value.where.text == "laplacian(u, x)"


@pytest.fixture(scope="module")
def limited() -> Iterator[str]:
    with local_server("--memory-limit", "300000") as url:
        yield url


def test_a_server_s_limit_holds_whatever_is_asked(limited: str, client: nablad.Client) -> None:
    whole = client.gradient(LOSS, **ASKED)
    with nablad.Client(limited) as other:
        other.create_model("few", NET)
        for asked in ({}, {"memory_limit": 10**12}, {"nesting": "default"}):
            found = other.gradient(LOSS, **ASKED, **asked)
            close(found, whole)
            assert found.plan.examples is not None
        with pytest.raises(nablad.ProgramError, match=r"the limit is 300 kB"):
            other.gradient("mean((model(x) @ model(x).T)**2)", **ASKED)


@pytest.mark.parametrize("member", ["examples_at_once", "memory_limit"])
@pytest.mark.parametrize("number", [0, -5, 1.5, "many"])
def test_what_is_no_number_is_refused(url: str, member: str, number: object) -> None:
    body = {"loss": "sum(x**2)", "inputs": {"x": [1.0]}, "wrt": ["x"], member: number}
    answer = httpx.post(f"{url}/v1/gradient", json=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_request"
    assert member in answer.json()["detail"]


def test_chunks_of_no_examples_are_refused(client: nablad.Client) -> None:
    with pytest.raises(nablad.ProgramError, match="no input is an array of examples"):
        client.gradient("a**2", inputs={"a": 2.0}, wrt=["a"], examples_at_once=4)
