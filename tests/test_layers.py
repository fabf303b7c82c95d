"""The import rules of the house, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIENT, MODELS, SERVICE = (
    ROOT / part for part in ("client/nablad", "models/nablad_models", "service/nablad_service")
)
WEB = {"fastapi", "starlette", "uvicorn", "httpx"}

# Where, and what may not be imported there.
RULES: dict[str, tuple[Path, set[str], set[str]]] = {
    "the client is thin": (CLIENT, {"jax", "equinox", "fastapi", "nablad_service", "nablad_models"}, set()),
    "models know no service": (MODELS, {"nablad_service", "fastapi", "uvicorn"}, set()),
    "only the engine and training import jax": (SERVICE, {"jax", "equinox", "optax"}, {"engine", "training"}),
    "the engine knows no optimiser": (SERVICE / "engine", {"optax"}, set()),
    "the engine knows neither HTTP nor asyncio": (SERVICE / "engine", WEB | {"asyncio", "threading"}, set()),
    "the language knows neither JAX nor HTTP nor values": (
        SERVICE / "language",
        WEB | {"jax", "numpy"},
        set(),
    ),
    "what takes turns knows neither HTTP nor JAX": (SERVICE / "running", WEB | {"jax"}, set()),
    "requests are read without the web": (SERVICE / "requests", WEB, set()),
    "answers are written without the web": (SERVICE / "answers", WEB, set()),
    "planning knows no web": (SERVICE / "planning", WEB, set()),
}


def sources(place: Path, exempt: set[str]) -> Iterator[Path]:
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    return (file for file in files if not exempt & set(file.relative_to(ROOT).parts))


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("rule", RULES)
def test_import_rule(rule: str) -> None:
    place, forbidden, exempt = RULES[rule]
    files = list(sources(place, exempt))
    assert files
    for file in files:
        assert not imported(file) & forbidden, file


@pytest.mark.parametrize(
    ("what", "heavy"),
    [
        ("nablad", ("jax", "fastapi", "equinox", "nablad_service", "nablad_models")),
        ("nablad_service.serving", ("scipy", "matplotlib", "folx")),
    ],
)
def test_importing_imports_nothing_heavy_and_prints_nothing(what: str, heavy: tuple[str, ...]) -> None:
    script = f"import sys, {what}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_nothing_is_called_utils() -> None:
    for place in (CLIENT, MODELS, SERVICE):
        assert not [file for file in place.rglob("*") if "util" in file.stem or "helper" in file.stem]
