"""Python's parser, by one thread at a time."""

from __future__ import annotations

import ast
import threading

# CPython counts the depth of the tree that it makes for all threads together, and fails with a SystemError
# where another one makes a tree in between: a collection of garbage with a callback is enough; JAX has one.
_ALONE = threading.Lock()


def module_of(text: str) -> ast.Module:
    """As `ast.parse`; raises what that raises."""
    with _ALONE:
        return ast.parse(text)


def expression_of(text: str) -> ast.expr:
    """The same of a text that is one expression."""
    with _ALONE:
        return ast.parse(text, mode="eval").body
