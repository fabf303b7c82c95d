"""What a training loop reported: numbers by step, and their curve."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nablad.training.messages import Report


@dataclass
class History:
    """The reports of a run as lists, one entry a report."""

    step: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    """Norm of the gradient by what is trained."""
    learning_rate: list[float | None] = field(default_factory=list)
    steps_per_second: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Append a report; one of a step that was reported before takes the place of all from there on."""
        while self.step and self.step[-1] >= report.step:
            for series in self._series():
                series.pop()
        for name in ("step", "value", "learning_rate", "steps_per_second", "seconds"):
            getattr(self, name).append(getattr(report, name))
        for name in ("terms", "weights", "norms"):
            for key, number in getattr(report, name).items():
                getattr(self, name).setdefault(key, []).append(number)

    def _series(self) -> Iterator[list[Any]]:
        for value in vars(self).values():
            yield from value.values() if isinstance(value, dict) else (value,)

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        if not self.step:
            return "<History, no report yet>"
        return f"<History of {len(self)} reports: step {self.step[-1]}, value {self.value[-1]:.6g}>"

    def columns(self) -> dict[str, list[Any]]:
        """All series by name: `step`, `value`, `terms.inside`, ..."""
        found: dict[str, list[Any]] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                found |= {f"{name}.{key}": series for key, series in value.items()}
            else:
                found[name] = value
        return found

    def write_csv(self, path: str | Path) -> None:
        """Save one line a report, with a line of names above."""
        columns = self.columns()
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def plot(self, axes: Any = None) -> Any:
        """Draw value and terms over the steps with matplotlib, on `axes` or new ones; gives the axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError:
                raise ImportError("history.plot() needs matplotlib: pip install matplotlib") from None
            axes = pyplot.subplots()[1]
        axes.plot(self.step, self.value, color="black", label="loss")
        for name, series in self.terms.items():
            axes.plot(self.step, series, lw=1, label=name)
        axes.set(xlabel="step", ylabel="loss")
        if all(number > 0 for number in self.value):
            axes.set_yscale("log")
        if self.terms:
            axes.legend(frameon=False)
        return axes
