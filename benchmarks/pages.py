"""Goals, tables, pages and plots: how the benchmarks of the wire say what they found."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import Clock, machine, platform

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks"
GREY, BLUE, ORANGE, GREEN, RED = "#555555", "#1f6fb4", "#d95f02", "#9ccc9c", "#e0a0a0"
PURPLE = "#7b4fa3"


@dataclass(frozen=True)
class Goal:
    """A figure that must not be above its limit, or not below it."""

    what: str
    found: float
    limit: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is kept."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def line(self) -> str:
        """Met or missed, in a sentence."""
        word, rule = "met" if self.met else "MISSED", "at least" if self.at_least else "at most"
        return f"- {word}: {self.what} {self.found:.3g}{self.unit}, {rule} {self.limit:g}{self.unit}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class Report:
    """All that a benchmark has to say."""

    name: str
    """Of its program and of its page."""
    title: str
    method: str
    """What was measured, and how."""
    tables: str
    goals: Sequence[Goal]
    document: dict[str, Any]
    draw: Callable[[Any], None]
    """Fills a matplotlib figure."""
    plot: str
    """What the figure shows."""
    notes: Sequence[str] = ()
    """What was left out, and where we lose."""

    def goal_lines(self) -> str:
        """One line a goal, then what was left out."""
        return "\n".join([*(goal.line() for goal in self.goals), *(f"- {note}" for note in self.notes)])

    def page(self, ran_on: str) -> str:
        """The page of the documentation."""
        return f"""# {self.title}

`python benchmarks/{self.name}.py` (with `pip install "nablad[dev]"`) on: {ran_on}.
`--quick` takes little of everything and writes nothing, `--json FILE` writes the figures as JSON.

{self.method}

{beside(self.name)}

## Goals

{self.goal_lines()}

![{self.plot}]({page_of(self.name, platform()).with_suffix(".png").name})

## All figures

{self.tables}
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page_of(name: str, kind: str) -> Path:
    """Where the page of a kind of device is kept."""
    return FOLDER / (f"{name}.md" if kind == "cpu" else f"{name}_{kind}.md")


def beside(name: str) -> str:
    """Where the same was measured on another device."""
    other = "cpu" if platform() != "cpu" else "gpu"
    if page_of(name, other).exists():
        return f"The same on another device: [{other}]({page_of(name, other).name})."
    return f"No {other.upper()} was at hand; the program writes a page of its own there, beside this one."


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all share."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    found.add_argument("--quick", action="store_true", help="little of everything; nothing is written")
    found.add_argument("--json", metavar="FILE", type=Path, help="the figures as JSON")
    return found


@contextmanager
def ready_to_measure() -> Iterator[Callable[[argparse.Namespace, Report], int]]:
    """Watches the machine; what it gives prints a report and writes its page."""
    # The benchmark and its server share a GPU: neither may take all memory at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Whoever ends the benchmark ends what it started too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = Clock.now()

    def publish(options: argparse.Namespace, report: Report) -> int:
        ran_on = f"{machine()};\n{Clock.now().others_since(began)}"
        print(f"\n{report.tables}\n\n{report.goal_lines()}\n\n{ran_on}")
        if options.json:
            goals = [goal.document() for goal in report.goals]
            found = {"machine": ran_on, "goals": goals, "notes": list(report.notes), **report.document}
            options.json.write_text(json.dumps(found, indent=1))
        if not options.quick:
            path = page_of(report.name, platform())
            path.write_text(report.page(ran_on))
            _draw(report, path.with_suffix(".png"))
        return 0

    yield publish


def _draw(report: Report, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure()
    report.draw(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def dots(axes: Any, names: Sequence[str], marks: dict[str, tuple[str, str, Sequence[float | None]]]) -> None:
    """A line a row on a logarithmic axis: for each label its mark, its colour and a figure a row."""
    places = list(range(len(names), 0, -1))
    for label, (mark, colour, figures) in marks.items():
        there = [(figure, place) for figure, place in zip(figures, places, strict=True) if figure is not None]
        xs, ys = zip(*there, strict=True) if there else ((), ())
        axes.scatter(xs, ys, 110 if mark == "|" else 38, marker=mark, color=colour, label=label, zorder=3)
    axes.set_yticks(places, names)
    axes.set_ylim(0.3, len(names) + 0.7)
    axes.set_xscale("log")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(marks), frameon=False)
