"""A program as a graph: nodes in definition order, each naming the nodes it is computed from by their index.

`def`s are gone: every call stands here as the nodes of its body, so nothing can recurse and each call is
checked with its own shapes. A `vmap` or a loop keeps its body, the nodes before itself. A derivative
knows its *path*, the nodes between the variable and the value, which are evaluated again as a function of the
variable, and what it *captures*, everything else that these nodes read. So nothing is ever closed over in
silence, and the engine decides how each derivative is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nablad.place import Place
from nablad_service.language.places import Span, place


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value of the program. `reads` are the nodes that must be known before it."""

    index: int
    span: Span | None

    @property
    def reads(self) -> tuple[int, ...]:
        """Indices of the nodes that this one is computed from."""
        return ()

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The functions that it evaluates."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Node):
    """A number, a truth value, None or a string of the text."""

    value: float | int | bool | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Node):
    """An input of the request: an array, a number, or a tree of arrays."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters(Node):
    """All parameters of a bound model: a tree."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument(Node):
    """An argument of a mapped function: one example of what it is mapped over."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Node):
    """A variable that equals another: `b = a`, or a `def`'s argument where it is called."""

    value: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply(Node):
    """A row of the operator table applied to values."""

    operator: str
    arguments: tuple[int, ...]
    keywords: tuple[tuple[str, int], ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.arguments, *(value for _, value in self.keywords))


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeTuple(Node):
    """Values side by side: `(a, b)` or `[a, b]`."""

    items: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        return self.items


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """`start:stop:step` of an index; each is a node or absent."""

    start: int | None
    stop: int | None
    step: int | None

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(part for part in (self.start, self.stop, self.step) if part is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index(Node):
    """`value[...]`. Each entry is a node, a slice, None (a new axis) or Ellipsis."""

    value: int
    entries: tuple[Any, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        parts: list[int] = [self.value]
        for entry in self.entries:
            if isinstance(entry, Slice):
                parts.extend(entry.reads)
            elif isinstance(entry, int):
                parts.append(entry)
        return tuple(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack(Node):
    """The `position`-th of `count` parts: `a, b = value`."""

    value: int
    position: int
    count: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall(Node):
    """`model(x)`; parameters are those of `params`, a tree."""

    model: str
    arguments: tuple[int, ...]
    named: tuple[tuple[str, int], ...]
    """Inputs that are given by their names."""
    params: int
    mode: str | None
    mapped: bool
    """Whether it stands inside a `vmap` or a loop: such calls do not update the running state."""

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.arguments, *(index for _, index in self.named), self.params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A function that is evaluated many times: some of the nodes before the one that holds it."""

    parameters: tuple[int, ...]
    result: int
    nodes: tuple[int, ...]
    """Those that the result needs, in order."""
    free: tuple[int, ...]
    """Nodes outside that it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Map(Node):
    """A function over the examples of its arguments."""

    arguments: tuple[int, ...]
    in_axes: tuple[int | None, ...] | None
    body: Body

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.arguments, *self.body.free)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop(Node):
    """`fori(n, body, init)` or `scan(body, init, xs)`; `arguments` are all but the body, in order."""

    operator: str
    arguments: tuple[int, ...]
    body: Body

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.arguments, *self.body.free)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered(Node):
    """A call of a function that the operator of the server registered; functions may be arguments."""

    function: str
    arguments: tuple[int | Body, ...]
    keywords: tuple[tuple[str, int | Body], ...]

    @property
    def bodies(self) -> tuple[Body, ...]:
        given = (*self.arguments, *(value for _, value in self.keywords))
        return tuple(value for value in given if isinstance(value, Body))

    @property
    def reads(self) -> tuple[int, ...]:
        given = (*self.arguments, *(value for _, value in self.keywords))
        values = tuple(value for value in given if isinstance(value, int))
        return (*values, *(index for body in self.bodies for index in body.free))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Probes that an estimate draws for itself: so many, or at most so many `until` its error is small."""

    kind: str
    probes: int
    seed: int
    until: int | None

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.probes, self.seed, *(() if self.until is None else (self.until,)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivative(Node):
    """A derivative of `value` with respect to the variable `wrt`, or to one `leaf` of that tree."""

    operator: str
    value: int
    wrt: int
    leaf: str | None
    wrt_name: str
    vectors: tuple[int, ...]
    path: tuple[int, ...]
    captured: tuple[int, ...]
    drawing: Drawing | None = None

    @property
    def reads(self) -> tuple[int, ...]:
        drawn = self.drawing.reads if self.drawing else ()
        return (self.wrt, *self.vectors, *drawn, *self.captured)


@dataclass(frozen=True)
class Program:
    """A parsed text: its nodes, the names at its top level, and which node is the result."""

    text: str
    nodes: tuple[Node, ...]
    names: Mapping[str, int]
    """Every top-level name: inputs and named values."""
    inputs: Mapping[str, int]
    parameters: Mapping[str, int]
    result: int | None
    """The last expression; None where the text ends with an assignment."""
    result_span: Span | None
    """Where the last expression stands: a name there is a place of its own."""
    orders: tuple[int, ...] = field(repr=False)
    """Derivatives inside one another, by node."""

    def place_of(self, index: int) -> Place | None:
        """Where a node stands in the text; None for what no text wrote."""
        span = self.nodes[index].span if index < len(self.nodes) else None
        return place(self.text, span) if span else None

    def schedule(self, targets: Iterable[int]) -> tuple[int, ...]:
        """The nodes to evaluate, in order, so that all of `targets` are known."""
        return needed(self.nodes, targets)

    def inside(self, derivative: Derivative) -> set[int]:
        """What a derivative evaluates again: its path, and the bodies of maps and loops on it."""
        found: set[int] = set()
        waiting = [*derivative.path, derivative.value]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                for body in self.nodes[index].bodies:
                    waiting.extend(body.nodes)
        return found

    def used(self, targets: Iterable[int]) -> frozenset[int]:
        """All nodes that `targets` rest on, those inside derivatives and mapped bodies included."""
        seen: set[int] = set()
        waiting = list(targets)
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            node = self.nodes[index]
            waiting.extend(node.reads)
            if isinstance(node, Derivative):
                waiting.extend(node.path)
                waiting.append(node.value)
            for body in node.bodies:
                waiting.extend(body.nodes)
                waiting.extend(body.parameters)
        return frozenset(seen)


def needed(nodes: tuple[Node, ...] | list[Node], targets: Iterable[int]) -> tuple[int, ...]:
    """`targets` and everything they read, in definition order."""
    seen: set[int] = set()
    waiting = list(targets)
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting.extend(nodes[index].reads)
    return tuple(sorted(seen))
