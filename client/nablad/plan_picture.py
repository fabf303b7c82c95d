"""A plan as a picture: SVG, legible on light and dark pages, drawn without a library."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from nablad.quantities import scaled

if TYPE_CHECKING:
    from nablad.plans import Candidate, DerivativeReport, ExamplesReport, PlanReport

WIDTH = 860
ROW = 25
"""Height of a line."""
TRUNK, DOT, NAME, BAR = 34, 62, 78, 304
"""Where the tree's trunk stands, and the columns of a candidate begin."""
LONGEST_BAR = 220
FLOPS, MEMORY, TIME = 640, 740, 832
"""Where the columns of figures end."""
LETTERS = 116
"""In a line of prose; SVG does not wrap text."""

# Light first; a page that is read on a dark screen takes the second colours. The ground is the picture's own,
# since a page may be light on a dark screen.
STYLE = """
.ground{fill:#fff} .ink{fill:#1f2328} .dim{fill:#656d76} .tree{stroke:#c4ccd4;fill:none}
.bar{fill:#d5dee8} .best{fill:#1f6feb} .ring{stroke:#8c959f;fill:none} .care{fill:#9a6700}
@media (prefers-color-scheme:dark){.ground{fill:#15181e} .ink{fill:#e6edf3} .dim{fill:#8d96a0}
.tree{stroke:#3d444d} .bar{fill:#323c48} .best{fill:#58a6ff} .ring{stroke:#6e7681} .care{fill:#d29922}}
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif} .code{font-family:ui-monospace,'SFMono-Regular',
Menlo,Consolas,'DejaVu Sans Mono',monospace} .small{font-size:12px} .strong{font-weight:600}
.figure{text-anchor:end;font-variant-numeric:tabular-nums}
"""


def picture(report: PlanReport) -> str:
    """The report as an SVG document: each derivative with its candidates, a bar for what each one costs.

    The bars show milliseconds once the program was timed, operations before. All have one scale: a candidate
    stands for the whole program.
    """
    marks: list[str] = []
    y = 30
    marks.append(text(BAR, y, "time" if report.measured else "operations", "dim small"))
    marks += [text(x, y, word, "dim small figure") for x, word in columns(report)]
    y += ROW
    marks += [text(24, y, "the program", "ink strong"), *figures(y, report)]
    top = ends = y + 10
    measure: Callable[[Candidate], float | None] = (
        (lambda one: one.milliseconds) if report.measured else (lambda one: one.flops)
    )
    known = [measure(one) or 0.0 for _, _, branch in report.branches for one in branch.candidates]
    scale = LONGEST_BAR / max([*known, 1e-300])
    for place, what, branch in report.branches:
        y += ROW + 6
        ends = y - 5
        marks.append(f'<path class="tree" d="M{TRUNK} {ends}h14"/>')
        marks.append(text(DOT - 6, y, place, "dim"))
        marks.append(text(DOT + 6 + 7 * len(place), y, shown(what), "ink code strong"))
        below, y = candidates(branch, y, scale, measure)
        marks += below
    if not report.branches:
        y += ROW
        marks.append(text(DOT - 6, y, "no inner derivatives", "dim"))
    for caution in report.cautions:
        y += 10
        for line in prose(f"caution, line {caution['line']}: {caution['text']}: {caution['message']}"):
            y += 19
            marks.append(text(24, y, line, "care"))
    trunk = f'<path class="tree" d="M{TRUNK} {top}V{ends}"/>' if report.branches else ""
    height = y + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img"><title>What would run, and why</title><style>{STYLE}</style>\n'
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>\n{trunk}\n'
        + "\n".join(marks)
        + "\n</svg>\n"
    )


def candidates(
    branch: DerivativeReport | ExamplesReport,
    y: int,
    scale: float,
    measure: Callable[[Candidate], float | None],
) -> tuple[list[str], int]:
    """The marks below a branch, and how far down the picture has come."""
    marks = []
    for one in branch.candidates:
        y += ROW
        dot, radius, ink = ("best", 5, "ink strong") if one.chosen else ("ring", 4.5, "ink")
        marks.append(f'<circle class="{dot}" cx="{DOT}" cy="{y - 4}" r="{radius}"/>')
        marks.append(text(NAME, y, one.strategy, f"code {ink}"))
        if value := measure(one):
            kind, length = "best" if one.chosen else "bar", f"{value * scale:.1f}"
            marks.append(f'<rect class="{kind}" x="{BAR}" y="{y - 11}" width="{length}" height="13" rx="3"/>')
        marks += figures(y, one)
        if one.note and not one.chosen:
            if value:
                y += 17
            marks.append(text(BAR, y, shown(one.note), "dim small"))
    for line in prose(branch.reason):
        y += 21
        marks.append(text(NAME, y, line, "dim"))
    return marks, y


def figures(y: int, one: PlanReport | Candidate) -> list[str]:
    """Operations, memory and time in their columns, as far as they are known."""
    if one.flops is None or one.peak_bytes is None:
        return []
    marks = [text(FLOPS, y, scaled(one.flops, "flop"), "dim figure")]
    marks.append(text(MEMORY, y, scaled(one.peak_bytes, "B"), "dim figure"))
    if one.milliseconds is not None:
        marks.append(text(TIME, y, f"{one.milliseconds:.2f} ms", "ink figure"))
    return marks


def columns(report: PlanReport) -> list[tuple[int, str]]:
    """Headings of the figures."""
    return [(FLOPS, "operations"), (MEMORY, "memory"), *([(TIME, "time")] if report.measured else [])]


def text(x: int, y: int, words: str, kind: str) -> str:
    """One line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def shown(words: str) -> str:
    """A piece of a program on one line of bearable length."""
    return textwrap.shorten(words, 84, placeholder=" …")


def prose(words: str) -> list[str]:
    """A sentence in lines."""
    return textwrap.wrap(words, LETTERS)
