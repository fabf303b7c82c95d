"""The race between variants: which rounds it asks for, and whom it lets win."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from nablad_service.engine.costs import Cost
from nablad_service.engine.planner import EXAMPLES, Choices, Variant
from nablad_service.engine.race import (
    MOST_RUNS,
    RUNS,
    RUNS_AT_LAST,
    SECONDS,
    SECONDS_AT_LAST,
    Result,
    Round,
    race,
    second_round,
)

COST = Cost(1.0, 64 << 20)
Change = tuple[tuple[int, str], ...]


def variant(**choices: str) -> Variant:
    names = {"a": 1, "b": 2, "examples": EXAMPLES}
    return Variant(tuple(sorted((names[name], choice) for name, choice in choices.items())), COST)


def run(
    found: list[Variant], times: Mapping[Change, float], examples: int | None = None, limit: int | None = None
) -> tuple[Result, list[Round]]:
    """The race when every variant takes the time that `times` says, and all others ten."""

    def count(trials: list[Choices]) -> list[Variant]:
        return [Variant(tuple(sorted(choices.items())), COST) for choices in trials]

    contest, rounds = race(found, count, examples, limit), []
    variants, asked = next(contest)
    while True:
        rounds.append(asked)
        try:
            answer = {index: times.get(variants[index].choices, 10.0) for index in asked.variants}
            variants, asked = contest.send(answer)
        except StopIteration as end:
            return end.value, rounds


def test_the_winner_meets_the_default_and_the_second_best_again() -> None:
    found = [variant(), variant(a="x"), variant(a="y"), variant(b="z")]
    result, rounds = run(found, {(): 5.0, ((1, "x"),): 3.0, ((1, "y"),): 2.0, ((2, "z"),): 9.0})
    assert rounds == [
        Round((0, 1, 2, 3), RUNS, SECONDS),
        Round((0, 2, 1), RUNS_AT_LAST, SECONDS_AT_LAST),
    ]
    assert result.chosen == 2
    assert result.times == {0: 5.0, 1: 3.0, 2: 2.0, 3: 9.0}


def test_short_runs_are_repeated_until_they_have_taken_a_while() -> None:
    asked = Round((0, 1), 3, 0.2)
    assert not asked.enough(2, 10.0)
    assert asked.enough(3, 0.2)
    assert not asked.enough(3, 0.1)
    assert asked.enough(MOST_RUNS, 0.0)


@pytest.mark.parametrize(("time", "chosen"), [(0.98, 0), (0.96, 1)])
def test_the_default_stays_unless_another_is_clearly_faster(time: float, chosen: int) -> None:
    result, _ = run([variant(), variant(a="x")], {(): 1.0, ((1, "x"),): time})
    assert result.chosen == chosen


def test_luck_in_the_first_round_is_found_out_in_the_last() -> None:
    contest = race([variant(), variant(a="x")], lambda trials: [], None)
    next(contest)
    contest.send({0: 1.0, 1: 0.5})
    with pytest.raises(StopIteration) as end:
        contest.send({0: 1.0, 1: 1.1})
    assert end.value.value.chosen == 0


def test_a_program_with_one_way_is_not_timed() -> None:
    with pytest.raises(StopIteration) as end:
        next(race([variant()], lambda trials: [], 1024))
    assert end.value.value == Result([variant()], {}, 0)


def test_what_is_over_the_memory_limit_does_not_run() -> None:
    small = Variant(((1, "x"),), Cost(1.0, 1 << 20))
    other = Variant(((1, "y"),), Cost(1.0, 1 << 20))
    result, rounds = run([variant(), small, other], {((1, "y"),): 1.0}, examples=1024, limit=2 << 20)
    assert all(0 not in one.variants for one in rounds)
    assert all(one.cost.peak_bytes <= 2 << 20 for index, one in enumerate(result.variants) if index)
    assert result.chosen == 2


def test_the_second_round_takes_the_fastest_strategies_in_the_best_chunks() -> None:
    found = [variant(), variant(examples="16"), variant(a="x"), variant(b="z")]
    assert second_round(found, {0: 5.0, 1: 1.0, 2: 4.0, 3: 3.0}, 1024) == [
        {2: "z", EXAMPLES: "16"},
        {1: "x", EXAMPLES: "16"},
    ]
    assert second_round(found, {0: 5.0, 2: 1.0}, 1024) == [
        {1: "x", EXAMPLES: "16"},
        {1: "x", EXAMPLES: "64"},
        {EXAMPLES: "64"},
    ]
    assert second_round(found, {0: 5.0, 2: 1.0}, None) == []
    _, rounds = run(found[:3], {((1, "x"),): 3.0, ((EXAMPLES, "16"), (1, "x")): 1.0}, examples=1024)
    assert [one.runs for one in rounds] == [RUNS, RUNS, RUNS_AT_LAST]
    assert rounds[1].variants == (0, 2, 3, 4, 5)


def test_a_round_runs_all_in_turn_and_gives_the_medians_without_the_first() -> None:
    timing = Round((4, 7), 3, 0.0).timing()
    asked, seconds = [next(timing)], iter([9.0, 9.0, 1.0, 2.0, 5.0, 3.0, 2.0, 8.0])
    medians = None
    try:
        while True:
            asked.append(timing.send(next(seconds)))
    except StopIteration as end:
        medians = end.value
    assert asked == [4, 7] * 4
    assert medians == {4: 2.0, 7: 3.0}
