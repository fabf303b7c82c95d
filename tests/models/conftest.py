from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True)
def strict_numerics() -> Iterator[None]:
    """A model that promotes a dtype by accident fails."""
    with jax.numpy_dtype_promotion("strict"):
        yield
