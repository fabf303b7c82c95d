"""Print what nablad and some of its extras need, one requirement a line: `requirements.py service,cuda`.

The Dockerfile installs these before it copies any source, so that an edit does not install JAX again.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: list[str]) -> Iterator[str]:
    """The project's dependencies and those of `extras`; an extra may include another, `nablad[service]`."""
    optional = project["optional-dependencies"]
    yield from project["dependencies"]
    for extra in extras:
        if extra not in optional:
            raise SystemExit(f"no extra is called '{extra}'; there are {', '.join(optional)}")
        for requirement in optional[extra]:
            included = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
            if included:
                yield from requirements(project, included[1].split(","))
            else:
                yield requirement


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [extra.strip() for extra in sys.argv[1].split(",") if extra.strip()]
    print(*dict.fromkeys(requirements(project, wanted)), sep="\n")
