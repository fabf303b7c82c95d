"""Which derivatives of a program are computed together: found in the graph, before anything is traced.

`d(u, t)`, `d(u, x)` and `d(u, x, x)` of one u are three derivatives of one value; those of two outputs of one
model rest on one computation. Where a body, or the program itself, evaluates several of them, they form a
group. A chain `d(d(u, x), t)` is one member, of a multi-index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise

from nablad_service.engine.derivatives import Orders
from nablad_service.language import graph

OPERATOR = "d"
DEAR = (graph.ModelCall, graph.Derivative, graph.Map, graph.Loop, graph.Registered)
"""Values that share one of these are worth computing together."""


@dataclass(frozen=True)
class Chain:
    """`d(d(u, x), t)`: `links` are its derivatives, innermost first."""

    value: int
    links: tuple[graph.Derivative, ...]

    @property
    def index(self) -> int:
        """The derivative that the others are inside of."""
        return self.links[-1].index

    @property
    def path(self) -> frozenset[int]:
        """The nodes between the variables and the value."""
        inner = {link.index for link in self.links}
        return frozenset(index for link in self.links for index in link.path) - inner

    @property
    def variables(self) -> dict[int, graph.Derivative]:
        """The variables, each with a derivative that is taken in it."""
        return {link.wrt: link for link in self.links}


@dataclass(frozen=True)
class Group:
    """Derivatives of some values in some variables, none of which depends on another."""

    values: tuple[int, ...]
    variables: Mapping[int, graph.Derivative]
    path: tuple[int, ...]
    captured: tuple[int, ...]
    members: Mapping[int, tuple[int, Orders]]
    """By derivative: the position of its value, and its multi-index. A value that others read is one of 0."""
    inner: Mapping[int, tuple[int, ...]]
    """By derivative: those inside it that the tower stands for."""

    of_derivatives: bool
    """Whether a value is itself made of such derivatives."""

    @property
    def leader(self) -> int:
        """The derivative whose strategy is that of all."""
        return min(self.derivatives)

    @property
    def derivatives(self) -> tuple[int, ...]:
        """The members that are no values."""
        return tuple(self.inner)

    @property
    def order(self) -> int:
        """The highest order."""
        return max(sum(orders) for _, orders in self.wanted)

    @property
    def wanted(self) -> tuple[tuple[int, Orders], ...]:
        """Each derivative once, though the text may name it twice."""
        return tuple(dict.fromkeys(self.members.values()))


def groups(program: graph.Program, scope: Collection[int]) -> dict[int, Group]:
    """The groups among the nodes of `scope`, which are evaluated side by side, by each of their members.

    A value in `scope` is read by more than its derivatives. It is computed with them, where that can be done
    when its turn comes: what is pulled back through it then costs no pass of its own.
    """
    scope = frozenset(scope)
    gathered: list[list[Chain]] = []
    for index in sorted(scope):
        node = program.nodes[index]
        if not isinstance(node, graph.Derivative) or obstacle(program, node) is not None:
            continue
        one = chain(program, node)
        for chains in gathered:
            if any(_related(program, one, other) for other in chains) and _fit(program, [*chains, one]):
                chains.append(one)
                break
        else:
            gathered.append([one])
    found: dict[int, Group] = {}
    for chains in gathered:
        group = _group(program, chains, scope)
        found.update(dict.fromkeys(group.members, group))
    return found


def chain(program: graph.Program, node: graph.Derivative) -> Chain:
    """`node` with the derivatives that it is directly taken of."""
    links = [node]
    while isinstance(inner := program.nodes[links[-1].value], graph.Derivative):
        if inner.operator != OPERATOR or inner.index not in links[-1].path or inner.leaf is not None:
            break
        links.append(inner)
    return Chain(links[-1].value, tuple(reversed(links)))


def obstacle(program: graph.Program, node: graph.Derivative) -> str | None:
    """Why a derivative can be part of no tower; None where it can."""
    if node.operator != OPERATOR:
        return f"it is no {OPERATOR}"
    if node.leaf is not None:
        return "the variable is a leaf of a tree"
    one = chain(program, node)
    if one.value in one.variables:
        return "the value is the variable itself"
    if not _independent([one]):
        return "one of its variables is computed from another"
    return None


def _independent(chains: list[Chain]) -> bool:
    paths = {index for one in chains for index in one.path}
    return not any(variable in paths for one in chains for variable in one.variables)


def _fit(program: graph.Program, chains: list[Chain]) -> bool:
    """Whether all can be computed when the first of them is wanted, as functions of all variables."""
    return _known(program, chains, min(one.index for one in chains)) and _independent(chains)


def _known(program: graph.Program, chains: list[Chain], before: int) -> bool:
    """Whether all that the derivatives read comes before a node."""
    reads = {read for one in chains for link in one.links for read in link.reads}
    return all(read < before or isinstance(program.nodes[read], graph.Constant) for read in reads)


def _related(program: graph.Program, one: Chain, other: Chain) -> bool:
    """Whether two chains differentiate one value, or values that share the dear part of their computation."""
    if one.value == other.value:
        return True
    return any(isinstance(program.nodes[index], DEAR) for index in one.path & other.path)


def _group(program: graph.Program, chains: list[Chain], scope: Collection[int]) -> Group:
    values = tuple(dict.fromkeys(one.value for one in chains))
    variables = {variable: link for one in chains for variable, link in one.variables.items()}
    path = {index for one in chains for index in one.path}
    reads = {read for index in path for read in program.nodes[index].reads}
    members, inner = {}, {}
    for one in chains:
        taken = [link.wrt for link in one.links]
        members[one.index] = values.index(one.value), tuple(taken.count(variable) for variable in variables)
        inner[one.index] = tuple(link.index for link, _ in pairwise(one.links))
    read = [value for value in values if value in scope]
    if read and _known(program, chains, min(read)):
        members |= {value: (values.index(value), (0,) * len(variables)) for value in read}
    return Group(
        values,
        variables,
        tuple(sorted(path)),
        tuple(sorted(reads - path - set(variables))),
        members,
        inner,
        any(_is_partial(program.nodes[index]) for index in path),
    )


def _is_partial(node: graph.Node) -> bool:
    return isinstance(node, graph.Derivative) and node.operator == OPERATOR
