"""An expression as text, with the parentheses that Python's precedence asks for and no others."""

from collections.abc import Callable
from typing import NamedTuple

from nablad.tracing.graph import Expression, Part, Scope, Variable


class Piece(NamedTuple):
    """Text, and how tightly it binds."""

    text: str
    precedence: int


def render(part: Part, spell: Callable[[Variable | Scope], Piece]) -> Piece:
    """Return `part` as text; `spell` says how its variables and defs are written."""
    if not isinstance(part, Expression):
        return spell(part)
    if not part.parts:
        return Piece(part.template, part.precedence)
    texts = []
    for child, need in zip(part.parts, part.needs, strict=True):
        text, precedence = render(child, spell)
        texts.append(text if precedence >= need else f"({text})")
    return Piece(part.template.format(*texts), part.precedence)
