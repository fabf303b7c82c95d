"""Compiled before it is called, compiled once, and compiled already after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from local_server import local_server
from prometheus_client.parser import text_string_to_metric_families

import nablad

NET = {"layers": [{"dense": [2, 6], "activation": "tanh"}, {"dense": [6, 1]}]}
X, Y = np.ones((5, 2), np.float32), np.zeros((5, 1), np.float32)
LOSS = "u = model(x)\nfit = mean((u - y)**2)\nfit"


def counted(url: str, name: str, **labels: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with local_server("--max-batch", "8") as address:
        with nablad.Client(address) as client:
            client.create_model("net", NET)
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[nablad.Client]:
    with nablad.Client(url) as connected:
        yield connected


def test_a_warmed_program_is_not_compiled_by_its_first_call(url: str, client: nablad.Client) -> None:
    (one,) = client.warm(LOSS, inputs={"x": X, "y": Y}, model="net", terms=["fit"], wrt=["params", "x"])
    assert (one.calls, one.compiled, one.reason) == (1, True, None)
    assert one.milliseconds > 0
    runs = counted(url, "nablad_device_seconds_count")
    found = client.gradient(LOSS, inputs={"x": X, "y": Y}, model="net", terms=["fit"], wrt=["params", "x"])
    assert not found.timing.compiled
    assert counted(url, "nablad_device_seconds_count") == runs + 1  # warming ran nothing
    (again,) = client.warm(LOSS, inputs={"x": X, "y": Y}, model="net", terms=["fit"], wrt=["params", "x"])
    assert not again.compiled


def test_shapes_are_enough(url: str) -> None:
    shape = {"dtype": "float64", "shape": [100_000_000, 2]}  # 1.6 GB that nobody makes
    params = {
        "layer_1.weight": {"dtype": "float64", "shape": [6, 2]},
        "layer_1.bias": {"dtype": "float64", "shape": [6]},
        "layer_2.weight": {"dtype": "float64", "shape": [1, 6]},
        "layer_2.bias": {"dtype": "float64", "shape": [1]},
    }
    asked = {
        "program": "mean(x)",
        "inputs": {"x": shape},
    }
    answer = httpx.post(f"{url}/v1/warm", json=asked, timeout=60)
    assert answer.is_success, answer.text
    bound = {"model": {"name": "net", "params": params}}
    asked = {
        "loss": "mean(model(x)**2)",
        "models": bound,
        "inputs": {"x": {"dtype": "float64", "shape": [7, 2]}},
    }
    assert httpx.post(f"{url}/v1/warm", json=asked, timeout=60).json()["programs"][0]["compiled"]


def test_batches_are_warmed_too_and_refused_with_a_reason(client: nablad.Client) -> None:
    found = client.warm(LOSS, inputs={"x": X, "y": Y}, model="net", batch_sizes=[3, 4, 100])
    assert [(one.calls, one.compiled) for one in found] == [(1, True), (4, True), (4, False), (8, True)]
    large = np.broadcast_to(np.float32(0), (100_000, 2))
    apart = client.warm("mean(model(x)**2)", inputs={"x": large}, model="net", batch_sizes=[4])
    assert apart[1].reason is not None
    assert "one by one" in apart[1].reason


def test_an_async_client_warms_as_well(url: str) -> None:
    import asyncio

    async def scenario() -> bool:
        async with nablad.AsyncClient(url) as client:
            inputs = {"x": np.ones((9, 2))}
            (one,) = await client.warm("model(x)", inputs=inputs, model="net", wrt=None)
            found = await client.evaluate("model(x)", inputs=inputs, model="net")
            return one.compiled and not found.timing.compiled

    assert asyncio.run(scenario())


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ({"inputs": {"x": {"dtype": "float31", "shape": [2]}}}, "invalid_array", "float31"),
        ({"inputs": {"x": {"dtype": "float32", "shape": [-2]}}}, "invalid_array", "shape"),
        ({"inputs": {"x": {"dtype": "float32"}}}, "invalid_array", "x"),
        ({"inputs": {"x": 1.0}, "batch_sizes": [1]}, "invalid_request", "batch_sizes"),
        ({"inputs": {"x": 1.0}, "batch_sizes": "many"}, "invalid_request", "batch_sizes"),
        ({"inputs": {"x": 1.0}, "buckets": [0]}, "invalid_request", "buckets"),
        ({"inputs": {"x": 1.0}, "batch": "perhaps"}, "invalid_request", "batch"),
        ({"inputs": {"x": {"dtype": "float32", "shape": [2]}}}, "not_scalar", "scalar"),
    ],
)
def test_bad_input_is_refused(url: str, asked: dict[str, Any], code: str, said: str) -> None:
    answer = httpx.post(f"{url}/v1/warm", json={"loss": "x * x", "wrt": ["x"], **asked})
    assert answer.status_code == 422
    assert answer.json()["code"] == code
    assert said in answer.json()["detail"]


def test_a_hundred_callers_of_a_new_program_compile_it_once(url: str, client: nablad.Client) -> None:
    before = counted(url, "nablad_compile_seconds_count", kind="program")

    def call(number: int) -> float:
        with nablad.Client(url) as own:
            return own.gradient("sum(tanh(x) * 3)", inputs={"x": np.full(4, float(number))}, wrt=["x"]).value

    with ThreadPoolExecutor(100) as threads:
        values = list(threads.map(call, range(100)))
    np.testing.assert_allclose(values, 12 * np.tanh(np.arange(100.0)))
    assert counted(url, "nablad_compile_seconds_count", kind="program") == before + 1


def test_a_restarted_server_reads_its_first_known_program_from_disk(tmp_path: Path) -> None:
    def first() -> tuple[float, float, float]:
        with local_server("--cache", str(tmp_path)) as url, nablad.Client(url) as client:
            client.create_model("net", NET)
            before = [counted(url, "nablad_disk_cache_total", outcome=one) for one in ("hit", "miss")]
            found = client.gradient(LOSS, inputs={"x": X, "y": Y}, model="net")
            assert found.timing.compiled
            after = [counted(url, "nablad_disk_cache_total", outcome=one) for one in ("hit", "miss")]
            return found.value, after[0] - before[0], after[1] - before[1]

    value, hits, misses = first()
    assert (hits, misses) == (0, 1)
    assert any((tmp_path / "compiled").iterdir())
    again, hits, misses = first()
    assert (hits, misses) == (1, 0)
    assert again == value


def test_warm_programs_run_while_another_one_compiles(tmp_path: Path) -> None:
    functions = """
import time
from pathlib import Path
from jax.extend.core import Primitive
from jax.interpreters import mlir

lowered = Primitive("lowered")
lowered.def_abstract_eval(lambda x: x)

def lowering(context, x):
    while Path({held!r}).exists():
        time.sleep(0.001)
    return [x]

mlir.register_lowering(lowered, lowering)
FUNCTIONS = {{"slow_to_compile": lambda x: lowered.bind(x)}}
"""
    held, file = tmp_path / "held", tmp_path / "functions.py"
    file.write_text(functions.format(held=str(held)))
    with local_server("--models", str(file)) as url, nablad.Client(url) as client:
        client.evaluate("x + 1", inputs={"x": np.ones(3)})
        held.touch()
        with ThreadPoolExecutor(1) as thread:
            new = thread.submit(client.evaluate, "slow_to_compile(x)", inputs={"x": np.ones(3)})
            try:
                for _ in range(3):
                    assert not client.evaluate("x + 1", inputs={"x": np.ones(3)}).timing.compiled
                assert not new.done()
            finally:
                held.unlink()
            assert new.result().timing.compiled
