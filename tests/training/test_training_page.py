"""The requests on the page about loops are done as they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from following import trained

from nablad.training.messages import Ended, Report, RunStanding, TrainRequest

PAGE = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text()
REQUESTS = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as connected:
        layers = [{"dense": [1, 8], "activation": "tanh"}, {"dense": [8, 1]}]
        connected.put("/v1/models/net", json={"architecture": {"layers": layers}}).raise_for_status()
        yield connected


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_a_request_is_done_and_gets_better(http: httpx.Client, request_: dict[str, object]) -> None:
    run = trained(http, **request_)
    assert run.last.kind == "done"
    terms = [sum(report["terms"].values()) or report["value"] for report in run.of("report")]
    assert terms[-1] < 0.5 * terms[0]


def test_all_members_are_on_the_page() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    for message in (TrainRequest, Report, Ended, RunStanding):
        assert set(message.model_fields) <= named, message
