"""What a trace records: expressions over variables, in scopes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

# How tightly a piece of text binds, loosest first. What a derivative is taken with respect to must be a NAME.
ANY, COMPARISON, SUM, PRODUCT, UNARY, POWER, ATOM, NAME = range(8)

Part: TypeAlias = "Expression | Variable | Scope"
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Expression:
    """Text with holes: `template` filled with `parts`, in parentheses where a part binds less than its need.

    `words` are the operators (and `pi`) that the template names: a user's name must not hide them.
    """

    template: str
    parts: tuple[Part, ...] = ()
    needs: tuple[int, ...] = ()
    precedence: int = ATOM
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Variable:
    """One value of the program: an input or argument (no expression), or what an expression gives.

    A component is one of several values given together: `whole` is the variable that has the expression.
    """

    scope: "Scope"
    expression: Expression | None = None
    wish: str = ""
    whole: "Variable | None" = None
    shape: Shape | dict[str, Shape] | None = None
    boolean: bool = False


@dataclass(eq=False)
class Scope:
    """The program or one `def`: its arguments, and in order of creation its variables and defs."""

    title: str = ""
    parent: "Scope | None" = None
    arguments: list[Variable] = field(default_factory=list)
    items: "list[Variable | Scope]" = field(default_factory=list)
    locals: dict[str, Variable] = field(default_factory=dict)
    results: tuple[Part, ...] = ()
    open: bool = True

    @property
    def depth(self) -> int:
        """How many defs this scope stands in, itself included."""
        return 0 if self.parent is None else self.parent.depth + 1

    def within(self, other: "Scope") -> bool:
        """Whether this scope is `other` or stands somewhere inside it."""
        return self is other or (self.parent is not None and self.parent.within(other))


def leaves(part: Part, need: int = ANY) -> Iterator[tuple["Variable | Scope", int]]:
    """Yield the variables and defs that `part` reads, one a reading, with the binding each place asks for."""
    if not isinstance(part, Expression):
        yield part, need
        return
    for child, child_need in zip(part.parts, part.needs, strict=True):
        yield from leaves(child, child_need)


def words(part: Part) -> Iterator[str]:
    """Yield the operators that `part` names."""
    if isinstance(part, Expression):
        yield from part.words
        for child in part.parts:
            yield from words(child)
