"""A place in a program's text."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Place(BaseModel):
    """Where in a program's text: 1-based line and column, up to `end_column` (exclusive) on the same line."""

    model_config = ConfigDict(frozen=True)

    line: int
    column: int
    end_column: int
    text: str
    """The offending piece, at most one line of it."""
