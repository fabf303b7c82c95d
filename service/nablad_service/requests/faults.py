"""What is wrong with a request, in one sentence, from pydantic's list of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nablad.messages import Binding, Message
from nablad_service.language.places import nearest

# pydantic speaks Python; requests are JSON.
WORDS = {"valid dictionary": "object", "dictionary": "object", "valid list": "list", "none": "null"}


def first_fault(error: ValidationError, structure: Any, kind: type[Message]) -> str:
    """The first error, by the path of the member at fault.

    Where a member may have one of several types, pydantic reports an error for each: the one that looks
    deepest into what was sent is about the type that was meant.
    """
    faults = [
        (_path(fault["loc"], structure, missing=fault["type"] == "missing"), fault)
        for fault in error.errors(include_url=False, include_input=False)
    ]
    path, fault = max(faults, key=lambda found: len(found[0]))
    where = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = list(kind.model_fields) if len(path) == 1 else list(Binding.model_fields)
        return f"'{where}' is not a member of the request{nearest(path[-1], known)}"
    if fault["type"] == "missing":
        return f"the request lacks its member '{where}'"
    message = (fault["msg"][0].lower() + fault["msg"][1:]).split(" or instance of")[0]
    for word, better in WORDS.items():
        message = message.replace(word, better)
    return f"'{where}': {message}"


def _path(location: tuple[int | str, ...], structure: Any, *, missing: bool) -> list[str]:
    """The members that lead to an error; names of types that pydantic puts between are left out."""
    path: list[str] = []
    for position, part in enumerate(location):
        found = _has(structure, part)
        if found or (missing and position == len(location) - 1):
            path.append(str(part))
            structure = structure[part] if found else None
    return path


def _has(structure: Any, part: int | str) -> bool:
    if isinstance(structure, Mapping):
        return part in structure
    return isinstance(structure, list) and isinstance(part, int) and part < len(structure)
