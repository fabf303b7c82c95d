"""What is wrong with a request, in one sentence, from pydantic's list of errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from nablad.messages import Message
from nablad_service.language.places import nearest

# pydantic speaks Python; requests are JSON.
WORDS = {
    "a valid dictionary": "an object",
    "a dictionary": "an object",
    "dictionary": "object",
    "valid list": "list",
    "none": "null",
}


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
        return f"'{where}' is not a member of the request{nearest(path[-1], _members(kind, path[:-1]))}"
    if fault["type"] == "missing":
        return f"the request lacks its member '{where}'"
    if fault["type"].startswith("union_tag"):
        return _unknown_kind(where, fault["ctx"])
    message = (fault["msg"][0].lower() + fault["msg"][1:]).split(" or instance of")[0]
    for word, better in WORDS.items():
        message = message.replace(word, better)
    return f"'{where}': {message}"


def _unknown_kind(where: str, told: Mapping[str, Any]) -> str:
    """Of a member that may be of several kinds, which one of its own members tells apart."""
    member = f"{where}.{_quoted(told['discriminator'])[0]}"
    if "tag" not in told:
        return f"the request lacks its member '{member}'"
    kinds = _quoted(told["expected_tags"])
    return f"'{member}' is '{told['tag']}'{nearest(told['tag'], kinds)}; there are {', '.join(kinds)}"


def _quoted(text: str) -> list[str]:
    return re.findall("'(.*?)'", text)


def _members(kind: type[Message], path: Sequence[str]) -> list[str]:
    """The members that the message at `path` may have; names in mappings and places in lists lead nowhere."""
    kinds = [kind]
    for part in path:
        fields = [one.model_fields[part] for one in kinds if part in one.model_fields]
        kinds = [inner for field in fields for inner in _messages_in(field.annotation)] or kinds
    return [name for one in kinds for name in one.model_fields]


def _messages_in(annotation: Any) -> Iterator[type[Message]]:
    if isinstance(annotation, type) and issubclass(annotation, Message):
        yield annotation
    for part in get_args(annotation):
        yield from _messages_in(part)


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
