"""A server that keeps saves, for the training tests of a worker, and loops run on it to their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from compiling import as_served
from following import ARCHITECTURE


@pytest.fixture(autouse=True)
def compiled_as_served() -> Iterator[None]:
    """Programs that differ in how they are cut, or in what is computed beside them, give the same bits."""
    with as_served():
        yield


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """HTTP to a server with a folder for saves, which hosts `net`."""
    from local_server import local_server

    folder = tmp_path_factory.mktemp("saves")
    with ExitStack() as stack:
        with as_served():  # until it runs: each test here does the same for itself
            url = stack.enter_context(local_server("--checkpoints", str(folder), "--saves-kept", "3"))
        http = stack.enter_context(httpx.Client(base_url=url, timeout=120))
        http.put("/v1/models/net", json={"architecture": ARCHITECTURE, "seed": 1}).raise_for_status()
        yield http
