"""What is trained, by label: `net.params[layer_1.weight]` for a parameter, `coefficient` for an input."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nablad.problems import Refusal
from nablad_service.language.places import nearest

PARAMETER = re.compile(r"(?P<model>[^\W\d]\w*)\.params\[(?P<leaf>[^\]]+)\]")


def parameter_label(model: str, leaf: str) -> str:
    """The label of a model's parameter, as `wrt` writes it."""
    return f"{model}.params[{leaf}]"


def parameter_of(label: str) -> tuple[str, str] | None:
    """Model and leaf of a parameter's label; None for an input's."""
    match = PARAMETER.fullmatch(label)
    return (match["model"], match["leaf"]) if match else None


def leaf_of(given: Mapping[str, Any], label: str) -> Any:
    """What a label names, in the arguments of a program."""
    parameter = parameter_of(label)
    if parameter is None:
        return given["inputs"][label]
    return given["params"][parameter[0]][parameter[1]]


def entry_of(label: str) -> str:
    """The entry of `wrt` that a label belongs to: `net.params` of a model's parameters, an input itself."""
    parameter = parameter_of(label)
    return f"{parameter[0]}.params" if parameter else label


def matching(patterns: Iterable[str], labels: Sequence[str]) -> list[bool]:
    """Which of `labels` are named by one of `patterns`: a label, `net.params`, `params`, `*` for any letters.

    Raises:
        Refusal: `invalid_request` where a pattern names none of them.
    """
    found = [False] * len(labels)
    for pattern in patterns:
        names = re.compile(".*".join(map(re.escape, pattern.split("*")))).fullmatch
        named = [
            any(map(names, (label, entry_of(label)))) or (pattern == "params" and label != entry_of(label))
            for label in labels
        ]
        if not any(named):
            choices = dict.fromkeys(["params", *map(entry_of, labels), *labels])
            hint = nearest(pattern, choices) or f"; there are {', '.join(choices)}"
            raise Refusal("invalid_request", f"frozen names '{pattern}', which is not trained here{hint}")
        found = [one or other for one, other in zip(found, named, strict=True)]
    return found
