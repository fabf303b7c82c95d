"""Every run of the gallery works from its own command, and has its page, picture and numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNS = sorted(file.stem for file in (ROOT / "examples" / "gallery").glob("*.py") if file.stem != "training")
PAGES = ROOT / "docs" / "gallery"


def test_there_are_at_least_twelve() -> None:
    assert len(RUNS) >= 12


@pytest.mark.parametrize("name", RUNS)
def test_a_few_steps_of_the_run_end_with_its_number_and_its_picture(
    name: str, url: str, tmp_path: Path
) -> None:
    command = [sys.executable, f"examples/gallery/{name}.py", "--steps", "3", "--out", str(tmp_path)]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NABLAD_URL": url}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert re.search(r"^reached: .*\d", ran.stdout, re.MULTILINE)
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("name", RUNS)
def test_the_page_shows_the_program_the_command_and_the_picture(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert f'--8<-- "examples/gallery/{name}.py:program"' in page
    assert f"python examples/gallery/{name}.py" in page
    assert f"]({name}.png)" in page
    assert (PAGES / f"{name}.png").stat().st_size < 130_000
    assert f"({name}.md)" in (PAGES / "index.md").read_text()
    assert f"gallery/{name}.md" in (ROOT / "mkdocs.yml").read_text()
