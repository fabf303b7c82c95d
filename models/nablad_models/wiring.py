"""Which answers each layer takes: `"name"` and `"from"` beside a layer, `"outputs"` beside the layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nablad_models.graph import Graph, Node
from nablad_models.reading import Unreadable, shown, unknown
from nablad_models.step import Step

WIRING_KEYS = ("from", "name")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
PLACE = re.compile(r"layer_\d+")


def read_name(value: Any) -> str:
    """The name of a layer or an answer."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Unreadable(
            f"a name has letters, digits, '_', '-' and '.', at most 128 of them, got {shown(value)}"
        )
    return value


def wire(steps: Sequence[Step], entries: Sequence[Mapping[str, Any]], inputs: Sequence[str]) -> Graph:
    """The steps as a graph; `entries` are their JSON.

    A layer is known as `layer_3` by its place and by its name if it has one. Without "from" it takes the
    answer before it. Raises `Unreadable`, the layer named.
    """
    names = {name: name for name in inputs} | _places(steps, inputs)
    nodes: list[Node] = []
    reached, before = {*inputs}, list(inputs)
    for step, entry in zip(steps, entries, strict=True):
        try:
            sources = _sources(step, entry, before)
            nodes.append(Node(step, tuple(_found(source, step, names, reached) for source in sources)))
        except Unreadable as problem:
            raise Unreadable(f"{step}: {problem}") from None
        reached.add(step.name)
        before = [step.name]
    return Graph(tuple(inputs), tuple(nodes))


def normal_wiring(graph: Graph) -> list[dict[str, Any]]:
    """Of each layer "from" and "name" in normal form: layers by place, nothing where nothing need be said."""
    normal: list[dict[str, Any]] = []
    before = graph.inputs
    for node in graph.nodes:
        said: dict[str, Any] = {"name": node.step.called} if node.step.called else {}
        if node.step.layer.joins:
            said["from"] = list(node.sources)
        elif node.sources != before:
            said["from"] = node.sources[0]
        normal.append(said)
        before = (node.step.name,)
    return normal


def read_outputs(value: Any, graph: Graph) -> dict[str, str]:
    """`{"energy": "energy_head"}` with layers by their place."""
    if not isinstance(value, Mapping) or not value:
        raise Unreadable(f'"outputs" looks like {{"energy": "layer_3"}}, got {shown(value)}')
    places = _places([node.step for node in graph.nodes], graph.inputs)
    outputs = {}
    for name, source in value.items():
        if not isinstance(source, str) or source not in places:
            raise Unreadable(f"output {shown(name)}: {_not_a_layer(source, places, graph.inputs)}")
        outputs[read_name(name)] = places[source]
    return outputs


def check_all_used(graph: Graph, answers: Sequence[str]) -> None:
    """Raise `Unreadable` for an input that no layer takes, and for an answer that nobody does."""
    used = {source for node in graph.nodes for source in node.sources} | {*answers}
    for name in graph.inputs:
        if name not in used:
            raise Unreadable(f'no layer takes the input "{name}"; say which does with "from": "{name}"')
    for node in graph.nodes:
        if node.step.name not in used:
            raise Unreadable(f"{node.step}: no layer takes its answer, and it is not among the outputs")


def _places(steps: Sequence[Step], inputs: Sequence[str]) -> dict[str, str]:
    """By every name that a layer has, its place."""
    places = {step.name: step.name for step in steps}
    for step in steps:
        name = step.called
        if PLACE.fullmatch(name):
            raise Unreadable(f"{step}: layers are called {name!r} by their place; choose another name")
        if name in places or name in inputs:
            owner = places.get(name, "an input")
            raise Unreadable(f"{step}: the name {name!r} is taken by {owner}; choose another")
        if name:
            places[name] = step.name
    return places


def _sources(step: Step, entry: Mapping[str, Any], before: list[str]) -> list[Any]:
    """What the layer takes, as it is called in the JSON; `before` are the inputs or the layer before."""
    joins = step.layer.joins is not None
    if "from" not in entry:
        if joins:
            raise Unreadable(
                'option \'from\' is missing: the names of what to join, as in ["branch", "trunk"]'
            )
        if len(before) > 1:
            names = ", ".join(before)
            raise Unreadable(f'the inputs are {names}; say which one it takes, as in "from": "{before[0]}"')
        return before
    value = entry["from"]
    if joins:
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise Unreadable(f"option 'from': expected a list of at least two names, got {shown(value)}")
        return list(value)
    if not isinstance(value, str):
        raise Unreadable(
            f"option 'from': expected one name, got {shown(value)}; several are joined by a layer of their "
            'own, as in {"join": "concat", "from": ["branch", "trunk"]}'
        )
    return [value]


def _found(value: Any, step: Step, names: Mapping[str, str], reached: set[str]) -> str:
    """The input, or the place of an earlier layer, that a name stands for."""
    if not isinstance(value, str):
        raise Unreadable(f"option 'from': expected a name, got {shown(value)}")
    if value not in names:
        raise Unreadable(f"option 'from': {unknown('name', value, list(names))}")
    source = names[value]
    if source not in reached:
        which = "its own answer" if source == step.name else f"the answer of {source}, which comes later"
        raise Unreadable(
            f"option 'from': {value!r} is {which}; a layer takes inputs and answers of earlier layers"
        )
    return source


def _not_a_layer(source: Any, places: Mapping[str, str], inputs: Sequence[str]) -> str:
    if not isinstance(source, str):
        return f"expected the name of a layer, got {shown(source)}"
    if source in inputs:
        return f"{source!r} is an input; an output is the answer of a layer"
    return unknown("name", source, list(places))
