"""What `POST /v1/plan` answers, and its picture in letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One way to compute a derivative: what the whole program costs with it, all else being as planned."""

    strategy: str
    chosen: bool
    flops: float | None
    peak_bytes: int | None
    milliseconds: float | None
    """None until the server has timed the program."""


@dataclass(frozen=True)
class DerivativeReport:
    """An inner derivative, where it stands, and the strategy that was chosen for it."""

    line: int
    column: int
    text: str
    operator: str
    wrt: str
    order: int
    strategy: str
    reason: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class PlanReport:
    """What would run and why; `print(report)` draws it."""

    flops: float
    peak_bytes: int
    milliseconds: float | None
    derivatives: tuple[DerivativeReport, ...]
    cautions: tuple[dict[str, Any], ...]
    measured: bool

    @classmethod
    def read(cls, answer: dict[str, Any]) -> PlanReport:
        """The report in an answer."""
        derivatives = tuple(
            DerivativeReport(**{**one, "candidates": tuple(Candidate(**each) for each in one["candidates"])})
            for one in answer["derivatives"]
        )
        return cls(
            answer["flops"],
            answer["peak_bytes"],
            answer["milliseconds"],
            derivatives,
            tuple(answer["plan"]["cautions"]),
            answer["measured"],
        )

    def __str__(self) -> str:
        return "\n".join(drawn(self))


def drawn(report: PlanReport) -> list[str]:
    """The report as a tree of lines: derivatives, and below each its candidates."""
    lines = [f"the program  {figures(report.flops, report.peak_bytes, report.milliseconds)}"]
    for place, one in enumerate(report.derivatives):
        last = place == len(report.derivatives) - 1
        branch, below = ("└─", "   ") if last else ("├─", "│  ")
        lines.append(f"{branch} line {one.line}: {one.text}")
        width = max(len(candidate.strategy) for candidate in one.candidates)
        for candidate in one.candidates:
            mark = "●" if candidate.chosen else "○"
            cost = figures(candidate.flops, candidate.peak_bytes, candidate.milliseconds)
            lines.append(f"{below}   {mark} {candidate.strategy:{width}}  {cost}".rstrip())
        lines.append(f"{below}   {one.reason}")
    if not report.derivatives:
        lines.append("└─ no inner derivatives")
    lines += [f"caution, line {one['line']}: {one['text']}: {one['message']}" for one in report.cautions]
    return lines


def figures(flops: float | None, peak_bytes: int | None, milliseconds: float | None) -> str:
    """Operations, memory and time in bearable numbers."""
    if flops is None or peak_bytes is None:
        return ""
    words = f"{scaled(flops, 'flop')}  {scaled(peak_bytes, 'B')}"
    return words if milliseconds is None else f"{words}  {milliseconds:.2f} ms"


def scaled(number: float, unit: str) -> str:
    """`49.7 Mflop`: three digits and a prefix."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:6.4g} {prefix}{unit}"
        number /= 1000
    return f"{number:6.4g} P{unit}"
