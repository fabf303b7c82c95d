"""Programs of these tests run once or twice: most of the time would go into making them fast."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """XLA leaves out its dear optimizations, as in JAX's own tests.

    Not where they are what is tested: the digits that float32 keeps, and what is marked `as_served`.
    """
    if "float32" in request.node.name or request.node.get_closest_marker("as_served"):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
