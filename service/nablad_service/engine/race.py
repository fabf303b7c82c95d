"""Which variant is fastest: what to time, round after round. It asks for times, and takes none itself.

A first round has the variants that counting leaves; a second one the fastest strategies in chunks of
examples; a last one the three fastest and the default, with more runs, since among many noisy times the
least is often luck.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from nablad_service.engine.planner import EXAMPLES, Choices, Variant, chunk_sizes, worth_timing

RUNS = 3
"""Of each variant in a round, after one that warms up; in turn, so that what else runs meets all alike."""
RUNS_AT_LAST = 9
SECONDS = 0.2
"""A round goes on until its runs have taken so long together: short times need more of them."""
SECONDS_AT_LAST = 1.0
MOST_RUNS = 100
LAST = 3
"""How many of the fastest meet the default in the last round."""
MOST_IN_SECOND_ROUND = 4
CLEARLY = 0.97
"""Share of the default's time that a variant must stay under to take its place: less is noise."""


@dataclass(frozen=True)
class Round:
    """Variants, by position, to be run in turn; the answer is the median time of each."""

    variants: tuple[int, ...]
    runs: int
    seconds: float

    def timing(self) -> Generator[int, float, dict[int, float]]:
        """Which variant to run next, again and again, given the seconds of each run; the medians at the end.

        The first run of each warms up, and does not count.
        """
        times: dict[int, list[float]] = {index: [] for index in self.variants}
        turn, spent = 0, 0.0
        while not self.enough(turn - 1, spent):
            for index in self.variants:
                seconds = yield index
                if turn:
                    times[index].append(seconds)
                    spent += seconds
            turn += 1
        return {index: statistics.median(runs) for index, runs in times.items()}

    def enough(self, runs: int, seconds: float) -> bool:
        """Whether so many runs of each, which took so many seconds together, will do."""
        return runs >= MOST_RUNS or (runs >= self.runs and seconds >= self.seconds)


@dataclass(frozen=True)
class Result:
    """All variants that were looked at, the times of some by position, and the one to run."""

    variants: list[Variant]
    times: dict[int, float]
    chosen: int


def race(
    found: Sequence[Variant],
    count: Callable[[list[Choices]], list[Variant]],
    examples: int | None,
    memory_limit: int | None = None,
) -> Generator[tuple[list[Variant], Round], Mapping[int, float], Result]:
    """Rounds to be timed, with the variants that their positions mean; returns the result.

    `count` gives the variants of further choices with their costs, as far as they can be traced.
    """
    variants = list(found)
    first = worth_timing(variants, memory_limit)
    if len(first) < 2:
        return Result(variants, {}, first[0] if first else 0)
    times = dict((yield variants, Round(tuple(first), RUNS, SECONDS)))
    more = count(second_round(variants, times, examples))
    fit = [one for one in more if memory_limit is None or one.cost.peak_bytes <= memory_limit]
    if fit:
        best = min(times, key=times.__getitem__)
        again = dict.fromkeys((first[0], best))  # times of one round are not those of another
        new = range(len(variants), len(variants) + len(fit))
        variants += fit
        times |= yield variants, Round((*again, *new), RUNS, SECONDS)
    last = tuple(dict.fromkeys((first[0], *sorted(times, key=times.__getitem__)[:LAST])))
    at_last = yield variants, Round(last, RUNS_AT_LAST, SECONDS_AT_LAST)
    chosen = min(at_last, key=at_last.__getitem__)
    clearly = at_last[chosen] < CLEARLY * at_last[first[0]]
    return Result(variants, {**times, **at_last}, chosen if clearly else first[0])


def second_round(found: Sequence[Variant], times: Mapping[int, float], examples: int | None) -> list[Choices]:
    """What to time next, given the times of some variants: the fastest strategies in chunks of examples."""
    if not examples:
        return []
    ranked = sorted(times, key=times.__getitem__)
    at_once = dict(found[ranked[0]].choices).get(EXAMPLES)
    tried = {one.choices for one in found}
    trials: list[Choices] = []
    for index in ranked[:3]:
        sizes = (at_once,) if at_once else chunk_sizes(found[index].cost.peak_bytes, examples)
        for size in sizes:
            choices = {**found[index].strategies, EXAMPLES: str(size)}
            if tuple(sorted(choices.items())) not in tried and choices not in trials:
                trials.append(choices)
    return trials[:MOST_IN_SECOND_ROUND]
