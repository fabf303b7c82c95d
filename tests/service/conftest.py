"""Raw HTTP against the session's server, and the models that these tests host there once."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

ARCHITECTURES = {
    "net": {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"dense": [4, 2]}]},
    "normed": {"layers": [{"dense": [2, 4]}, {"batchnorm": 4}, {"dense": [4, 2]}]},
    "tokens": {"layers": [{"embedding": [5, 3]}]},
    "deep": {
        "layers": [
            {"dense": [2, 16], "activation": "tanh"},
            *([{"dense": [16, 16], "activation": "tanh"}] * 3),
            {"dense": [16, 1]},
        ]
    },
}


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    """No connection is kept: a server that closes one after a failure must not fail the next test too."""
    alone = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(base_url=url, timeout=60, limits=alone) as connected:
        for name, architecture in ARCHITECTURES.items():
            connected.put(f"/v1/models/{name}", json={"architecture": architecture}).raise_for_status()
        yield connected
