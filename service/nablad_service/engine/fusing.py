"""Derivatives in parameters that a program reads for their squares, or for their products, alone.

`J = jacobian(y, model.params)` may have a million columns where `sum(J**2, axis=1)` and `J @ J.T` have none,
and both can be found without it. So where every reader of a Jacobian (or of a gradient) squares and sums it,
the derivative becomes one that gives the sums, and what its readers did falls away. Each stays in its place
and keeps its reads: paths and bodies hold what they held before, and a value that the caller asks for is
never one of those that change.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from nablad_service.language import graph

Form: TypeAlias = Literal["entries", "squares", "turned"]
"""What a node held before: the derivative's entries, their squares, or the transpose."""
OPERATORS = {
    ("jacobian", "norms"): "jacobian_norms",
    ("jacobian", "means"): "jacobian_mean_squares",
    ("jacobian", "gram"): "jacobian_gram",
    ("grad", "norms"): "gradient_norm",
}
"""The derivative that replaces one, by its operator and by what its readers make of it."""
ELSEWHERE = -1
"""Reads a node that is a variable, a body's result or the like: nothing that can be replaced."""


def fused(program: graph.Program, kept: Collection[int], operators: Collection[str]) -> graph.Program:
    """The program with such derivatives of `operators` replaced; the values of `kept` stay what they are."""
    candidates = [
        node
        for node in program.nodes
        if isinstance(node, graph.Derivative)
        and node.operator in operators
        and isinstance(program.nodes[node.wrt], graph.Parameters)
    ]
    if not candidates:
        return program
    readers = _readers(program)
    changed: dict[int, graph.Node] = {}
    for node in candidates:
        changed.update(_Fusing(program, readers, kept, node).nodes())
    if not changed:
        return program
    return replace(program, nodes=tuple(changed.get(node.index, node) for node in program.nodes))


def _readers(program: graph.Program) -> Mapping[int, list[int]]:
    """Who reads a node as a value of its own, not only on the way through a path or a body."""
    found: dict[int, list[int]] = {}
    for node in program.nodes:
        for read in _directly(node):
            found.setdefault(read, []).append(node.index)
        for body in node.bodies:
            found.setdefault(body.result, []).append(ELSEWHERE)
        if isinstance(node, graph.Derivative):
            found.setdefault(node.value, []).append(ELSEWHERE)
    return found


def _directly(node: graph.Node) -> tuple[int, ...]:
    match node:
        case graph.Derivative():
            return (node.wrt, *node.vectors)
        case graph.Map() | graph.Loop():
            return node.arguments
        case graph.Registered():
            given = (*node.arguments, *(value for _, value in node.keywords))
            return tuple(value for value in given if isinstance(value, int))
    return node.reads


class _NotFused(Exception):
    """A reader needs the entries themselves."""


@dataclass
class _Fusing:
    """One derivative, and what becomes of its readers."""

    program: graph.Program
    readers: Mapping[int, list[int]]
    kept: Collection[int]
    derivative: graph.Derivative
    changed: dict[int, graph.Node] = field(default_factory=dict)
    makes: set[str] = field(default_factory=set)
    ends: dict[int, graph.Node] = field(default_factory=dict)
    """Readers that give what they gave before."""

    def nodes(self) -> Mapping[int, graph.Node]:
        """The nodes that change, none where a reader needs the entries."""
        tree = self.derivative.operator == "grad" and self.derivative.leaf is None
        try:
            self._follow(self.derivative.index, "entries", tree)
        except _NotFused:
            return {}
        made = self.makes.pop() if len(self.makes) == 1 else ""
        operator = OPERATORS.get((self.derivative.operator, made))
        if operator is None:
            return {}
        (span,) = (
            {node.span for node in self.ends.values()} if len(self.ends) == 1 else {self.derivative.span}
        )
        self.changed[self.derivative.index] = replace(self.derivative, operator=operator, span=span)
        return self.changed

    def _follow(self, index: int, form: Form, tree: bool) -> None:
        """Replace the readers of a node that holds a form of the derivative; `tree` where that is a tree."""
        if index in self.kept or index == self.program.result:
            raise _NotFused
        for reader in dict.fromkeys(self.readers.get(index, ())):
            node = None if reader == ELSEWHERE else self.program.nodes[reader]
            match node:
                case graph.Identity():
                    self._follow(reader, form, tree)
                case graph.Apply(operator="ravel") if self.derivative.operator == "grad" and form != "turned":
                    self._becomes(node, index)
                    self._follow(reader, form, False)
                case graph.Apply() if form == "entries":
                    self._of_entries(node, index, tree)
                case graph.Apply() if form == "squares" and not tree:
                    self._of_squares(node, index)
                case graph.Apply(operator="matmul") if form == "turned":
                    self._need(self._holds(node.arguments[0]) == "entries" and node.arguments[1] == index)
                case _:
                    raise _NotFused

    def _of_entries(self, node: graph.Apply, index: int, tree: bool) -> None:
        is_jacobian = self.derivative.operator == "jacobian"
        if self._squares(node, index):
            self._becomes(node, index)
            self._follow(node.index, "squares", tree)
        elif node.operator == "dot" and self._both(node, index):
            self._ends(node, "norms", self._sum(node, index))
        elif node.operator == "norm":
            self._norm(node, index)
        elif is_jacobian and node.operator == "transpose" and self._alone(node):
            self._becomes(node, index)
            self._follow(node.index, "turned", tree)
        elif is_jacobian and self.derivative.leaf is None and node.operator == "matmul":
            self._need(node.arguments[0] == index and self._holds(node.arguments[1]) == "turned")
            self._ends(node, "gram", self._same(node, index))
        else:
            raise _NotFused

    def _of_squares(self, node: graph.Apply, index: int) -> None:
        self._need(node.operator in ("sum", "mean") and node.arguments[:1] == (index,))
        axis = self._axis(node)
        made = "norms" if node.operator == "sum" else "means"
        # What is left to sum over are the rows, if they are summed at all.
        self._ends(node, made, node if axis is None else self._same(node, index))

    def _norm(self, node: graph.Apply, index: int) -> None:
        """A root of the sum; where only its square is read, no root is taken."""
        axis, eps = self._axis(node, "eps"), dict(node.keywords).get("eps")
        above = self.readers.get(node.index, ())
        squared = node.index not in self.kept and eps is None and bool(above)
        for reader in above:
            square = None if reader == ELSEWHERE else self.program.nodes[reader]
            squared &= isinstance(square, graph.Apply) and self._squares(square, node.index)
        if squared:
            self.changed[node.index] = self._sum(node, index) if axis is None else self._same(node, index)
            for reader in dict.fromkeys(above):
                end = self.program.nodes[reader]
                self._ends(end, "norms", self._same(end, node.index))
            return
        keywords = tuple((name, read) for name, read in node.keywords if name == "eps" or axis is not None)
        operator = "norm_of_squares"
        new = replace(node, operator=operator, arguments=(index,), keywords=keywords)
        self._ends(node, "norms", new)

    def _axis(self, node: graph.Apply, *others: str) -> int | None:
        """The axis of a reduction: None for all; that of the rows is refused, and what is not understood."""
        keywords = dict(node.keywords)
        self._need(len(node.arguments) == 1 and set(keywords) <= {"axis", *others})
        if "axis" not in keywords:
            return None
        axis = self._number(keywords["axis"])
        whole = self.derivative.operator == "jacobian" and self.derivative.leaf is None
        self._need(whole and axis in (1, -1))
        return int(axis)

    def _squares(self, node: graph.Apply, index: int) -> bool:
        match node.operator:
            case "power":
                return node.arguments[0] == index and self._number(node.arguments[1]) == 2
            case "multiply":
                return self._both(node, index)
            case "square":
                return node.arguments == (index,)
        return False

    def _both(self, node: graph.Apply, index: int) -> bool:
        """Whether both arguments are one value, by whatever names."""
        return len(node.arguments) == 2 and {self._origin(one) for one in node.arguments} == {
            self._origin(index)
        }

    def _origin(self, index: int) -> int:
        node = self.program.nodes[index]
        return self._origin(node.value) if isinstance(node, graph.Identity) else index

    def _number(self, index: int) -> float:
        """A number of the text; NaN for anything else."""
        match self.program.nodes[index]:
            case graph.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return value
            case graph.Apply(operator="negative", arguments=(inner,)):
                return -self._number(inner)
        return float("nan")

    def _alone(self, node: graph.Apply) -> bool:
        return len(node.arguments) == 1 and not node.keywords

    def _holds(self, index: int) -> Form | None:
        """Whether a node is the derivative or its transpose."""
        node = self.program.nodes[index]
        if index == self.derivative.index:
            return "entries"
        if isinstance(node, graph.Identity):
            return self._holds(node.value)
        if isinstance(node, graph.Apply) and node.operator == "transpose" and self._alone(node):
            return "turned" if self._holds(node.arguments[0]) == "entries" else None
        return None

    def _need(self, holds: bool) -> None:
        if not holds:
            raise _NotFused

    def _becomes(self, node: graph.Apply, index: int) -> None:
        self.changed[node.index] = self._same(node, index)

    def _ends(self, node: graph.Node, made: str, new: graph.Node) -> None:
        self.makes.add(made)
        self.ends[node.index] = node
        self.changed[node.index] = new

    def _same(self, node: graph.Node, index: int) -> graph.Node:
        return graph.Identity(index=node.index, span=node.span, value=index)

    def _sum(self, node: graph.Node, index: int) -> graph.Node:
        return graph.Apply(index=node.index, span=node.span, operator="sum", arguments=(index,))


def asked_for(program: graph.Program, names: Collection[str]) -> Iterator[int]:
    """The nodes of the named values that a request asks back."""
    return (program.names[name] for name in names if name in program.names)
