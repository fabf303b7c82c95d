"""A server that keeps saves, for the training tests of a worker, and loops run on it to their end."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from following import ARCHITECTURE


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """HTTP to a server with a folder for saves, which hosts `net`."""
    from local_server import local_server

    folder = tmp_path_factory.mktemp("saves")
    with (
        local_server("--checkpoints", str(folder), "--saves-kept", "3") as url,
        httpx.Client(base_url=url, timeout=120) as http,
    ):
        http.put("/v1/models/net", json={"architecture": ARCHITECTURE, "seed": 1}).raise_for_status()
        yield http
