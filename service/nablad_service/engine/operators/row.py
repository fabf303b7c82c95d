"""A row of the operator table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nablad_service.engine.values import Value
from nablad_service.language.signatures import Family, OperatorSignature


@dataclass(frozen=True)
class Row:
    """An operator: how it is called, what it says of itself, and the function behind it.

    `apply` gets the arguments as the text gives them. Rows with `takes_dtype` also get `dtype`, the float
    type of the program, because their result has none of its own (`zeros(3)`); rows with `takes_key` get
    `key`, the request's random key.
    """

    signature: OperatorSignature
    apply: Callable[..., Value]
    takes_dtype: bool = False
    takes_key: bool = False


def row(
    text: str,
    doc: str,
    family: Family,
    apply: Callable[..., Value],
    *,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    takes_dtype: bool = False,
    takes_key: bool = False,
) -> Row:
    """A row; its name is what stands before the bracket of `text`, unless it is written infix."""
    signature = OperatorSignature(name or text.split("(")[0], text, doc, family, aliases)
    return Row(signature, apply, takes_dtype, takes_key)
