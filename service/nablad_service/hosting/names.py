"""What a model may be called."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nablad.problems import Refusal

# The first letter keeps '.', '..' and hidden files out: with a repository a name is also a folder's.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def is_name(name: str) -> bool:
    """Whether a model may be called `name`."""
    return NAME.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raise `Refusal("invalid_name")` for what cannot name a model."""
    if not is_name(name):
        detail = f"'{name}' cannot name a model: letters, digits, '.', '_' and '-', at most 128"
        raise Refusal("invalid_name", detail)


def check_folder_name(name: str, taken: Iterable[str]) -> None:
    """Raise `Refusal("invalid_name")` where a folder of another model would be the same one.

    File systems of macOS and Windows ignore case, and a repository may be copied there.
    """
    for other in taken:
        if other != name and other.lower() == name.lower():
            detail = (
                f"a model is called '{other}' already; where case does not count '{name}' is its folder too"
            )
            raise Refusal("invalid_name", f"{detail}; choose another name, or delete '{other}' first")
