"""Where things stand in a program's text, and refusals that point there."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nablad.place import Place
from nablad.problems import Refusal

LONGEST_EXCERPT = 80


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text: 1-based lines, 0-based offsets in bytes of UTF-8, as `ast` counts them."""

    line: int
    start: int
    end_line: int
    end: int

    @classmethod
    def of(cls, node: ast.expr | ast.stmt) -> Span:
        """The span of a parsed piece."""
        return cls(node.lineno, node.col_offset, node.end_lineno or node.lineno, node.end_col_offset or 0)


def place(text: str, span: Span) -> Place:
    """The place of `span` in `text`, counted in characters; of several lines it shows the first."""
    # `ast` splits lines at \n, \r and \r\n alone; str.splitlines would split at form feeds too.
    line = text.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[span.line - 1]
    end = span.end if span.end_line == span.line else len(line)
    piece = line[span.start : end].decode(errors="replace")
    column = len(line[: span.start].decode(errors="replace")) + 1
    excerpt = piece if len(piece) <= LONGEST_EXCERPT else piece[: LONGEST_EXCERPT - 3] + "..."
    return Place(line=span.line, column=column, end_column=column + len(piece), text=excerpt)


def refusal(code: str, detail: str, text: str, span: Span | None = None, **extra: Any) -> Refusal:
    """A refusal that points at `span`."""
    return Refusal(code, detail, place(text, span) if span else None, extra or None)


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'tanh'?"` where a known name is close, else nothing."""
    if len(name) > 100:  # no name that anyone typed; comparing it with all others would take its time
        return ""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
