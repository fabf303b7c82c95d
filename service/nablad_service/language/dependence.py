"""What flows through a variable: the part of a graph that a derivative evaluates again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nablad_service.language.graph import Apply, Constant, Identity, Index, Node, Unpack

# These read the shape of an array only, never its entries: nothing flows through them.
SHAPE_ONLY = frozenset({"shape", "zeros_like", "ones_like"})


@dataclass(frozen=True, slots=True)
class Path:
    """`nodes` lead from the variable to the value, in order; `captured` is what else they read."""

    nodes: tuple[int, ...]
    captured: tuple[int, ...]


def path(
    nodes: Sequence[Node], value: int, variable: int, leaves: Collection[int], leaf: str | None = None
) -> Path | None:
    """The path from `variable` to `value`, or None where the value does not depend on the variable.

    `leaves` are held fixed: inside a `def` its arguments are variables of their own, whatever they were
    computed from outside. With `leaf`, the variable is that array of a tree: what reads another array of the
    tree by its name does not depend on it.
    """
    if value == variable:
        return Path((), ())
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        if index != variable and index not in leaves:
            waiting.extend(_flow(nodes[index]))
    moving = {variable}
    for index in sorted(seen):
        if index in leaves or _reads_other_leaf(nodes, index, variable, leaf):
            continue
        if any(read in moving for read in _flow(nodes[index])):
            moving.add(index)
    if value not in moving:
        return None
    on_path = tuple(sorted(moving - {variable}))
    captured = {read for index in on_path for read in nodes[index].reads} - moving
    return Path(on_path, tuple(sorted(captured)))


def parent_that_flows(
    nodes: Sequence[Node], value: int, variable: int, leaves: Collection[int]
) -> int | None:
    """What `variable` was cut out of, or is another name of, where `value` was computed from that instead."""
    index = variable
    while isinstance(nodes[index], Index | Unpack | Identity):
        index = nodes[index].reads[0]
        if path(nodes, value, index, leaves) is not None:
            return index
    return None


def _flow(node: Node) -> tuple[int, ...]:
    if isinstance(node, Apply) and node.operator in SHAPE_ONLY:
        return ()
    return node.reads


def _reads_other_leaf(nodes: Sequence[Node], index: int, variable: int, leaf: str | None) -> bool:
    match nodes[index]:
        case Index(value=value, entries=(int() as entry,)) if leaf is not None and value == variable:
            name = nodes[entry]
            return isinstance(name, Constant) and isinstance(name.value, str) and name.value != leaf
    return False
