"""The bar of a run on a terminal, by rich where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from nablad.training.messages import Report


class Show(Protocol):
    """Shows a report."""

    def __call__(self, report: Report, /) -> None: ...


def drawable() -> bool:
    """Whether a bar can be shown: standard error is a terminal, and rich is there."""
    if not sys.stderr.isatty():
        return False
    try:
        import rich.progress  # noqa: F401 - whether it can be imported is the question
    except ImportError:
        return False
    return True


@contextmanager
def bar(total: int | None, *, wanted: bool = True) -> Iterator[Show]:
    """A bar on standard error for the body of the `with`; without rich or a terminal, nothing."""
    if not (wanted and drawable()):
        yield lambda report: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("compiling", total=total)

        def show(report: Report) -> None:
            said = f"loss {report.value:.4g}  {report.steps_per_second:.0f} steps/s"
            progress.update(task, completed=report.step, description=said)

        yield show
