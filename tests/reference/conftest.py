"""Every case of a file, in both float types, for the test that asks for `case` and `dtype`."""

from __future__ import annotations

from typing import Any

import jax
import pytest
from reference import Case

jax.config.update("jax_enable_x64", True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = [each for each in vars(metafunc.module).values() if isinstance(each, Case)]
        rows = [row(case, dtype) for case in cases for dtype in ("float64", "float32")]
        metafunc.parametrize(("case", "dtype"), rows)


def row(case: Case, dtype: str) -> Any:
    return pytest.param(case, dtype, id=f"{case.name}-{dtype}")
