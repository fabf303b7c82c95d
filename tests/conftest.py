"""One real server for the whole run, on a real socket; clients in every body format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compiling import quickly

import nablad

quickly()


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a server that serves the whole test run."""
    from local_server import local_server

    with local_server() as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[nablad.Client]:
    """A client as it comes."""
    with nablad.Client(url) as connected:
        yield connected


@pytest.fixture(scope="session", params=["frame", "msgpack", "json"])
def any_client(url: str, request: pytest.FixtureRequest) -> Iterator[nablad.Client]:
    """Clients in every format, one after the other."""
    with nablad.Client(url, format=request.param) as connected:
        yield connected
