"""How much memory a server takes for a large call, beyond what it has anyway."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Served, served

import nablad

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is told by Linux's /proc")

WIDTH = 3200
PAYLOAD = 4 * WIDTH**2
"""Bytes of the parameters, and of their gradient: what glibc gives back as soon as it is free."""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("--port=0", "--tune-after-calls=0") as running:
        yield running


def memory(server: Served, member: str) -> int:
    """In bytes: `VmRSS` now, `VmHWM` at the most since `forgotten`."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{member}:"))


# In payloads. A frame's parameters are computed with where they were received, beside the gradient.
# Of msgpack there are the bytes, the gradient and its bytes, and the device's aligned copy until it is freed.
MOST = {"frame": 2.0, "msgpack": 4.0}


@pytest.mark.parametrize("format", MOST)
def test_a_large_call_takes_so_many_times_its_parameters(server: Served, format: Any) -> None:  # noqa: A002
    params = {
        "layer_1.weight": np.full((WIDTH, WIDTH), 0.01, "float32"),
        "layer_1.bias": np.zeros(WIDTH, "float32"),
    }
    asked = {"model": "wide", "inputs": {"x": np.ones((1, WIDTH), "float32")}}
    with nablad.Client(server.urls[0], format=format) as client:
        client.create_model("wide", {"layers": [{"dense": [WIDTH, WIDTH]}]})
        client.gradient("sum(model(x))", **asked)  # compiled, and the compiler's memory taken
        before = memory(server, "VmRSS")
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
        for _ in range(4):
            found = client.gradient("sum(model(x))", params=params, **asked)
            np.testing.assert_array_equal(found.gradients["params"]["layer_1.weight"], 1)
        taken = memory(server, "VmHWM") - before
    assert taken < (MOST[format] + 0.4) * PAYLOAD
