"""Names and what they stand for while a program is read."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Variable:
    """A name for a node."""

    index: int


@dataclass(frozen=True, slots=True)
class Model:
    """A bound model."""

    name: str


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the operator table, by its first name."""

    name: str


@dataclass(frozen=True, slots=True)
class Function:
    """A `def`, with the scope that it was written in."""

    statement: ast.FunctionDef
    scope: Scope = field(repr=False)


@dataclass(frozen=True, slots=True)
class Mapped:
    """`vmap(function, in_axes)`."""

    function: Callable
    in_axes: tuple[int | None, ...] | None


Callable: TypeAlias = Model | Operator | Function | Mapped
Meaning: TypeAlias = Variable | Callable


@dataclass(slots=True)
class Scope:
    """The names of one `def`, or of the top level, and the scope around it."""

    parent: Scope | None
    names: dict[str, Meaning] = field(default_factory=dict)

    def find(self, name: str) -> Meaning | None:
        """What `name` means here: the innermost definition."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None

    def known(self) -> set[str]:
        """Every name that is visible here."""
        return set(self.names) | (self.parent.known() if self.parent else set())


@dataclass(frozen=True, slots=True)
class Frame:
    """The `def` calls and maps around a node."""

    leaves: frozenset[int] = frozenset()
    """Arguments of the calls: variables of their own to derivatives inside."""
    active: tuple[ast.FunctionDef, ...] = ()
    mapped: bool = False
