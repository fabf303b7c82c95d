"""What `POST /v1/plan` answers, drawn in letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nablad.plan_picture import picture
from nablad.quantities import scaled


@dataclass(frozen=True)
class Candidate:
    """One way to compute a derivative: what the whole program costs with it, all else being as planned."""

    strategy: str
    chosen: bool
    flops: float | None
    peak_bytes: int | None
    milliseconds: float | None
    """None until the server has timed the program."""
    note: str = ""
    """Why it was chosen, or why it has no figures."""


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
class ExamplesReport:
    """How many of the examples go at once."""

    number: int
    at_once: int
    reason: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class PlanReport:
    """What would run and why; `print(report)` draws it in letters, `svg` as a picture."""

    flops: float
    peak_bytes: int
    milliseconds: float | None
    derivatives: tuple[DerivativeReport, ...]
    cautions: tuple[dict[str, Any], ...]
    measured: bool
    examples: ExamplesReport | None = None
    """None where they go all at once, and nothing else was considered."""

    @classmethod
    def read(cls, answer: dict[str, Any]) -> PlanReport:
        """The report in an answer."""

        def with_candidates(one: dict[str, Any]) -> dict[str, Any]:
            return {**one, "candidates": tuple(Candidate(**each) for each in one["candidates"])}

        derivatives = tuple(DerivativeReport(**with_candidates(one)) for one in answer["derivatives"])
        examples = answer.get("examples")
        return cls(
            answer["flops"],
            answer["peak_bytes"],
            answer["milliseconds"],
            derivatives,
            tuple(answer["plan"]["cautions"]),
            answer["measured"],
            ExamplesReport(**with_candidates(examples)) if examples else None,
        )

    @property
    def branches(self) -> list[tuple[str, str, DerivativeReport | ExamplesReport]]:
        """Everything that was decided: where, what, and the decision."""
        found: list[tuple[str, str, DerivativeReport | ExamplesReport]] = [
            (f"line {one.line}", one.text, one) for one in self.derivatives
        ]
        if self.examples is not None:
            found.append(("examples", str(self.examples.number), self.examples))
        return found

    def __str__(self) -> str:
        return "\n".join(drawn(self))

    def svg(self) -> str:
        """The same as a picture, an SVG document; notebooks show it."""
        return picture(self)

    _repr_svg_ = svg


def drawn(report: PlanReport) -> list[str]:
    """The report as a tree of lines: derivatives, and below each its candidates."""
    lines = [f"the program  {figures(report.flops, report.peak_bytes, report.milliseconds)}"]
    for position, (place, what, one) in enumerate(report.branches):
        last = position == len(report.branches) - 1
        branch, below = ("└─", "   ") if last else ("├─", "│  ")
        lines.append(f"{branch} {place}: {what}")
        width = max(len(candidate.strategy) for candidate in one.candidates)
        for candidate in one.candidates:
            name = candidate.strategy.ljust(width)
            mark = "●" if candidate.chosen else "○"
            cost = figures(candidate.flops, candidate.peak_bytes, candidate.milliseconds)
            note = "" if candidate.chosen else candidate.note
            lines.append(f"{below}   {mark} {'  '.join(filter(None, (name, cost, note)))}".rstrip())
        lines.append(f"{below}   {one.reason}")
    if not report.branches:
        lines.append("└─ no inner derivatives")
    lines += [f"caution, line {one['line']}: {one['text']}: {one['message']}" for one in report.cautions]
    return lines


def figures(flops: float | None, peak_bytes: int | None, milliseconds: float | None) -> str:
    """Operations, memory and time in bearable numbers."""
    if flops is None or peak_bytes is None:
        return ""
    words = f"{scaled(flops, 'flop'):>11}  {scaled(peak_bytes, 'B'):>8}"
    return words if milliseconds is None else f"{words}  {milliseconds:.2f} ms"
