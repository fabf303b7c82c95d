"""What is tested with all of XLA's optimizations, as the service compiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from compiling import as_served


@pytest.fixture(autouse=True)
def as_served_where_asked(request: pytest.FixtureRequest) -> Iterator[None]:
    """The digits that float32 keeps, and what is marked `as_served`."""
    asked = "float32" in request.node.name or request.node.get_closest_marker("as_served")
    with as_served() if asked else nullcontext():
        yield
