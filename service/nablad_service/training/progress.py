"""How far a run has come: which steps it reports on, and whether one of them is its last."""

from __future__ import annotations

import math

import numpy as np

from nablad.training.messages import Stop, TrainRequest
from nablad_service.training.loop import Records


class Progress:
    """The last step that counts, its value, and the lowest reported one with its step.

    Where a run ends follows from the values alone, not from how it was cut into calls: of a call that went
    further than that, only the steps up to there count.
    """

    def __init__(
        self,
        request: TrainRequest,
        end: int,
        *,
        step: int = 0,
        value: float | None = None,
        best: tuple[float, int] | None = None,
    ) -> None:
        self._every = request.report_every
        self._stop = request.stop or Stop()
        self._end = end
        self.step = step
        self.value = value
        self.best = best

    def after(self, first: int, records: Records) -> tuple[list[int], str | None]:
        """Take steps into account, of which the first has the number `first`, all of them finite.

        Returns:
            Which of them to report on, counted from the first; and why the run ends, where it does.
        """
        below = -math.inf if self._stop.value_below is None else self._stop.value_below
        reached = np.flatnonzero(records.value < below)
        last = int(reached[0]) if reached.size else len(records.value) - 1
        reason = f"the value {records.value[last]:.6g} is below {below:g}" if reached.size else None
        reports = []
        for index in self._reported(first, last, ends=reason is not None):
            step, value = first + index + 1, float(records.value[index])
            reports.append(index)
            if self.best is None or value < self.best[0]:
                self.best = value, step
            if (
                reason is None
                and self._stop.no_better_for
                and step - self.best[1] >= self._stop.no_better_for
            ):
                reason = f"no reported value was lower than {self.best[0]:.6g} of step {self.best[1]}"
                last = index
                break
        self.step = first + last + 1
        if last >= 0:
            self.value = float(records.value[last])
        return reports, reason

    def _reported(self, first: int, last: int, *, ends: bool) -> list[int]:
        """The first step of all, every so many, and the last."""
        found = set(range(-(first + 1) % self._every, last + 1, self._every))
        if first == 0 and last >= 0:
            found.add(0)
        if last >= 0 and (ends or first + last + 1 == self._end):
            found.add(last)
        return sorted(found)


def first_of(records: Records, count: int) -> Records:
    """The records of the first `count` steps."""
    return Records(
        records.value[:count],
        {name: entries[:count] for name, entries in records.terms.items()},
        {name: entries[:count] for name, entries in records.norms.items()},
        records.learning_rate[:count],
        records.finite[:count],
    )
