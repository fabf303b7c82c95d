"""Records of what timing taught: what is listed of them."""

from __future__ import annotations

import pytest

from nablad_service.planning.learned_plans import LearnedPlan, Timed

SLOW, FAST = Timed((), 10.0, 100, 4.0), Timed(((3, "reverse"),), 20.0, 200, 1.0)
UNTIMED = Timed(((3, "forward"),), 90.0, 100, None)

CASES = {
    "a faster one": ((SLOW, FAST, UNTIMED), 1, "1 ms, the least of 2 timed; the static rule's takes 4 ms"),
    "none faster": ((FAST, SLOW), 0, "of 2 timed, none is clearly faster"),
    "nothing to time": ((UNTIMED,), 0, "no other variant was worth timing"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_record_marks_what_runs_and_says_why(case: str) -> None:
    variants, chosen, why = CASES[case]
    record = LearnedPlan("key", "x", "cpu", variants, chosen)
    listed = record.listed()
    assert [one["chosen"] for one in listed["variants"]] == [
        index == chosen for index in range(len(variants))
    ]
    assert listed["why"].startswith(why)
    assert LearnedPlan.read(record.document()) == record
    assert LearnedPlan.read(listed) == record
