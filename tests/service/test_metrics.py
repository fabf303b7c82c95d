"""Counters as Prometheus reads them, from a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from local_server import local_server
from prometheus_client.parser import text_string_to_metric_families

import nablad
from nablad_service.app import create_app

X = np.ones((3, 2))
NET = {"layers": [{"dense": [2, 3]}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with local_server() as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[nablad.Client]:
    with nablad.Client(url) as connected:
        connected.create_model("net", NET)
        yield connected


def figures(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def grown(url: str, before: dict[Any, float], name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return figures(url)[key] - before.get(key, 0.0)


def test_calls_are_counted_where_they_end(url: str, client: nablad.Client) -> None:
    before = figures(url)
    for _ in range(3):
        client.gradient("sum(model(x)**2)", inputs={"x": X}, model="net")
    with pytest.raises(nablad.NotFound):
        client.gradient("sum(model(x)**2)", inputs={"x": X}, model="nowhere")
    assert grown(url, before, "nablad_requests_total", endpoint="/v1/gradient", status="200") == 3
    assert grown(url, before, "nablad_requests_total", endpoint="/v1/gradient", status="404") == 1
    assert grown(url, before, "nablad_refusals_total", code="unknown_model") == 1
    assert grown(url, before, "nablad_programs_total", cache="miss") == 1
    assert grown(url, before, "nablad_programs_total", cache="hit") == 2
    assert grown(url, before, "nablad_compile_seconds_count", kind="program") == 1
    assert grown(url, before, "nablad_device_seconds_count") == 3
    assert grown(url, before, "nablad_batch_calls_sum") == 3
    assert grown(url, before, "nablad_queue_seconds_count") == 3
    assert grown(url, before, "nablad_received_bytes_total") > 3 * X.nbytes
    assert grown(url, before, "nablad_sent_bytes_total") > 0


def test_names_of_models_and_of_nothing_make_no_new_counters(url: str, client: nablad.Client) -> None:
    client.apply("net", X)
    client.model("net")
    httpx.get(f"{url}/nowhere/at/all")
    endpoints = {dict(labels).get("endpoint") for _, labels in figures(url)}
    assert {"/v1/models/{name}", "/v1/models/{name}/{operator}", "other"} <= endpoints or {
        "/v1/models/{name}",
        "/v1/models/{name}/apply",
        "other",
    } <= endpoints
    assert not any("net" in str(endpoint) or "nowhere" in str(endpoint) for endpoint in endpoints)


def test_a_body_in_pieces_is_counted_too(url: str, client: nablad.Client) -> None:
    before = figures(url)
    pieces = iter([b'{"loss": "x**2", "inputs": ', b'{"x": 1.5}, "wrt": ["x"]}'])
    answer = httpx.post(f"{url}/v1/gradient", content=pieces, headers={"Content-Type": "application/json"})
    assert answer.is_success, answer.text
    assert grown(url, before, "nablad_received_bytes_total") == 52


def test_what_is_there_is_told(url: str, client: nablad.Client) -> None:
    found = figures(url)
    assert found["nablad_models", ()] == 1
    assert found["nablad_programs_kept", ()] >= 1
    assert found["nablad_queue_calls", ()] == 0
    assert ("nablad_disk_cache_total", (("outcome", "hit"),)) in found


def test_each_application_has_its_own_counters() -> None:
    one, other = create_app(), create_app()
    assert one.state.metrics.registry is not other.state.metrics.registry


def test_every_counter_is_documented(url: str, client: nablad.Client) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    names = {family.name for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)}
    missing = [name for name in names if f"`{name.removesuffix('_created')}" not in page]
    assert not missing
