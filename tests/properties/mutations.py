"""Texts that people, editors and careless programs make of good ones."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

LETTERS = "()[]{},.:=+-*/@<>\"'#\n\t \\%!&|^~;$?0123456789eEjxyJ_é\u00a0\r\f\x00\U0001f600"
WORDS = (
    *("x", "model", "net", "grad", "sum", "d", "vmap", "fori", "scan", "pi", "params", "shape", "T", "def"),
    *("return", "None", "True", "lambda", "for", "if", "in", "and", "not", "import", "axis", "mode", "stack"),
    *("jacobian", "hessian", "laplacian", "hutchinson", "where", "solve", "einsum", "zeros", "eye", "norm"),
    *(
        "0",
        "1",
        "-1",
        "2.5",
        "1e400",
        "99999",
        "...",
        '"ij"',
        "[]",
        "()",
        "{}",
        "x[0]",
        "x.T",
        "1j",
        "f3",
        "a1",
    ),
)


def dropped(draw: Any, text: str) -> str:
    start = draw(st.integers(0, max(len(text) - 1, 0)))
    return text[:start] + text[start + draw(st.integers(1, 6)) :]


def swapped(draw: Any, text: str) -> str:
    at = draw(st.integers(0, max(len(text) - 2, 0)))
    return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]


def inserted(draw: Any, text: str) -> str:
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.text(st.sampled_from(LETTERS), min_size=1, max_size=3)) + text[at:]


def renamed(draw: Any, text: str) -> str:
    """One word, number or string becomes another."""
    words = list(re.finditer(r"\w+", text)) or list(re.finditer(r"^", text))
    word = draw(st.sampled_from(words))
    return text[: word.start()] + draw(st.sampled_from(WORDS)) + text[word.end() :]


def unbracketed(draw: Any, text: str) -> str:
    """A bracket is lost, doubled or becomes another one."""
    brackets = list(re.finditer(r"[()\[\]]", text)) or list(re.finditer(r"^", text))
    bracket = draw(st.sampled_from(brackets))
    return (
        text[: bracket.start()]
        + draw(st.sampled_from(("", "((", "))", "[", "]", "(", ")")))
        + text[bracket.end() :]
    )


def another_part(draw: Any, text: str) -> str:
    """A bracket's contents are replaced by those of another bracket."""
    parts = list(re.finditer(r"\(([^()]*)\)", text)) or list(re.finditer(r"()", text))
    one, other = draw(st.sampled_from(parts)), draw(st.sampled_from(parts))
    return text[: one.start(1)] + other.group(1) + text[one.end(1) :]


def reordered(draw: Any, text: str) -> str:
    """A line is lost, repeated or moved."""
    rows = text.split("\n")
    at, to = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(rows)))
    row = rows[at]
    kept = rows if draw(st.booleans()) else [*rows[:at], *rows[at + 1 :]]
    return "\n".join([*kept[:to], *([row] if draw(st.booleans()) else []), *kept[to:]])


KINDS = (dropped, swapped, inserted, renamed, renamed, renamed, unbracketed, another_part, reordered)


@st.composite
def malformed(draw: Any, texts: st.SearchStrategy[str]) -> str:
    """A text after one to three of these."""
    text = draw(texts)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)):
        text = kind(draw, text)
    return text
