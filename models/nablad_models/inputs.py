"""What a model takes: `"input"` for the only one, called x, or `"inputs"` by name."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

from nablad_models.graph import Graph
from nablad_models.reading import MOST_AXES, Unreadable, shown, size
from nablad_models.shapes import Shape
from nablad_models.wiring import PLACE

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
RESERVED = ("params", "mode")
"""What a call of a model takes by these names is not an input."""

Declared = Mapping[str, Shape | None]
"""Inputs in the order in which a call gives them; None where the layers are to tell the shape."""


def read_inputs(architecture: Mapping[str, Any]) -> Declared:
    """The inputs that an architecture declares; without a word, one whose shape the layers tell."""
    if "inputs" not in architecture:
        return {"x": _shape('"input"', architecture.get("input"))}
    if "input" in architecture:
        raise Unreadable('the shapes are given by "input" for one input or "inputs" for several, not by both')
    inputs = architecture["inputs"]
    if not isinstance(inputs, Mapping) or not inputs:
        raise Unreadable(f'"inputs" looks like {{"sensors": [100], "y": [2]}}, got {shown(inputs)}')
    return {_name(name): _shape(f"input {name!r}", value) for name, value in inputs.items()}


def input_shapes(declared: Declared, graph: Graph) -> dict[str, Shape]:
    """The shape of one example of every input, from the layers where it is not declared."""
    shapes: dict[str, Shape] = {}
    for name, shape in declared.items():
        asked = graph.shape_asked(name) if shape is None else shape
        if asked is None:
            which = f'"inputs": {{"{name}": [1, 28, 28]}}' if len(declared) > 1 else '"input": [1, 28, 28]'
            of = f" of {name!r}" if len(declared) > 1 else ""
            raise Unreadable(
                f"the layers do not tell the shape of one example{of}; say it beside them, "
                f"as in {which} (null for a size that the data decide)"
            )
        shapes[name] = asked
    return shapes


def normal_inputs(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The shapes as they stand in the normal form of an architecture."""
    if list(shapes) == ["x"]:
        return {"input": list(shapes["x"])}
    return {"inputs": {name: list(shape) for name, shape in shapes.items()}}


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value) or keyword.iskeyword(value):
        raise Unreadable(
            f"an input is named as a variable is, since calls say net(name=...); got {shown(value)}"
        )
    if value in RESERVED or PLACE.fullmatch(value):
        raise Unreadable(f"{value!r} cannot name an input: it has a meaning already")
    return value


def _shape(what: str, value: Any) -> Shape | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) > MOST_AXES:
        raise Unreadable(f"{what} is the shape of one example, a list of sizes or null, got {shown(value)}")
    return tuple(None if each is None else size(each) for each in value)
