"""From the JSON of an architecture to layers: reading, defaults, and what is wrong where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nablad_models.activations import activation_function, read_activation
from nablad_models.graph import Graph, as_layer
from nablad_models.kinds import KINDS, Kind
from nablad_models.layer import Layer, followed_by
from nablad_models.reading import (
    Nested,
    Option,
    Reader,
    Unreadable,
    check_keys,
    read_option,
    shown,
    unknown,
)
from nablad_models.step import Step
from nablad_models.wiring import WIRING_KEYS, check_all_used, normal_wiring, read_name, wire

ACTIVATION = Option("identity", read_activation)


def read_layers(entries: Any, inputs: Sequence[str]) -> tuple[Graph, list[dict[str, Any]]]:
    """A list of layers as a graph of the inputs, and its JSON in normal form.

    Raises `Unreadable`, the layer named.
    """
    if not isinstance(entries, list | tuple) or not entries:
        raise Unreadable(f"expected a list of at least one layer, got {shown(entries)}")
    read = [_read_step(f"layer_{place}", entry) for place, entry in enumerate(entries, start=1)]
    graph = wire([step for step, _ in read], entries, inputs)
    wiring = normal_wiring(graph)
    return graph, [{**normal, **said} for (_, normal), said in zip(read, wiring, strict=True)]


def _read_block(entries: Any) -> tuple[Layer, list[dict[str, Any]]]:
    """A list of layers inside another layer, where the only input is x and the last layer answers."""
    graph, normal = read_layers(entries, ["x"])
    check_all_used(graph, [graph.nodes[-1].step.name])
    return as_layer(graph), normal


def _read_step(name: str, entry: Any) -> tuple[Step, dict[str, Any]]:
    """One entry of a list of layers, and its JSON in normal form but for the wiring."""
    described = name
    try:
        kind_name, kind = _kind(entry)
        described = f"{name} ({kind_name})"
        options = kind.options if kind_name == "activation" else {**kind.options, "activation": ACTIVATION}
        check_keys((*options, *WIRING_KEYS), [key for key in entry if key != kind_name])
        value, made = _read(kind.read, entry[kind_name])
        read = {
            key: _read_option(key, option, entry.get(key, option.default)) for key, option in options.items()
        }
        normal = {kind_name: value, **{key: each for key, (each, _) in read.items()}}
        after, _ = read.pop("activation", ("identity", None))
        layer = kind.make(made, **{key: each for key, (_, each) in read.items()})
        called = read_name(entry["name"]) if "name" in entry else ""
    except Unreadable as problem:
        raise Unreadable(f"{described}: {problem}") from None
    if after != "identity":
        layer = followed_by(layer, activation_function(after))
    return Step(name, _label(kind_name, value), layer, called), normal


def _kind(entry: Any) -> tuple[str, Kind]:
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
        raise Unreadable(f'a layer is an object like {{"dense": [2, 4]}}, got {shown(entry)}')
    # Some options have the name of a kind: an activation beside any layer, the join of parallel branches.
    found = [key for key in entry if key in KINDS]
    for other in [*found]:
        options = ("activation", *KINDS[other].options)
        found = [key for key in found if key == other or key not in options]
    if len(found) > 1:
        raise Unreadable(f"one entry is one layer, this one names {' and '.join(found)}")
    name = (
        found[0] if found else next((key for key in entry if key not in ("activation", *WIRING_KEYS)), None)
    )
    # An activation with a stranger beside it: the stranger was meant as the layer.
    others = [key for key in entry if key not in KINDS and key not in WIRING_KEYS]
    if name == "activation" and others:
        name = others[0]
    if name is None:
        raise Unreadable("the object is empty")
    if name not in KINDS:
        raise Unreadable(unknown("layer", name, list(KINDS)))
    return name, KINDS[name]


def _read(read: Reader | Nested, value: Any) -> tuple[Any, Any]:
    """A value in normal form, and as it is given to the function that makes the layer."""
    if not isinstance(read, Nested):
        normal = read(value)
        return normal, normal
    if not read.branches:
        layer, normal = _read_block(value)
        return normal, layer
    if not isinstance(value, list | tuple):
        raise Unreadable(f"expected a list of branches, each a list of layers, got {shown(value)}")
    branches = [_read_branch(place, each) for place, each in enumerate(value, start=1)]
    return [normal for _, normal in branches], [layer for layer, _ in branches]


def _read_branch(place: int, entries: Any) -> tuple[Layer, list[dict[str, Any]]]:
    try:
        return _read_block(entries)
    except Unreadable as problem:
        raise Unreadable(f"branch_{place}: {problem}") from None


def _read_option(key: str, option: Option, value: Any) -> tuple[Any, Any]:
    if not isinstance(option.read, Nested):
        normal = read_option(key, option, value)
        return normal, normal
    try:
        return (None, None) if value is None else _read(option.read, value)
    except Unreadable as problem:
        raise Unreadable(f"option {key!r}: {problem}") from None


def _label(kind: str, value: Any) -> str:
    text = json.dumps(value)
    return kind if value is True or len(text) > 40 else f"{kind} {text}"
