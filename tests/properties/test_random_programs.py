"""Random programs against JAX by hand, and each nesting against the others.

Every file here has a short form, the same programs each time, and a long one, run by hand:

    NABLAD_PROPERTIES=20 python -m pytest tests/properties

draws twenty times as many, others each time. A failure shows the smallest program that fails, as text.
"""

from __future__ import annotations

from ask import NESTINGS
from asked import agree, asked, by_hand, examples
from drawing import programs
from hypothesis import given
from hypothesis import strategies as st
from program_tree import Program

from nablad.problems import Refusal


@examples(16)
@given(programs(), st.integers(0, 5), st.sampled_from(NESTINGS))
def test_value_and_gradients_are_those_computed_by_hand(program: Program, seed: int, nesting: str) -> None:
    agree(asked(program, seed, nesting), by_hand(program, seed), 1e-10)


@examples(5)
@given(programs(depth=3), st.integers(0, 5))
def test_all_nestings_agree(program: Program, seed: int) -> None:
    auto, *others = (asked(program, seed, nesting) for nesting in NESTINGS)
    for other in others:
        agree(other, auto, 1e-10)


@examples(30)
@given(programs(unsure=True, depth=3, order=2), st.integers(0, 5))
def test_where_examples_may_mix_an_operator_by_examples_is_refused_or_right(
    program: Program, seed: int
) -> None:
    try:
        found = asked(program, seed)
    except Refusal as refusal:
        if refusal.code != "couples_examples":
            raise
    else:
        agree(found, by_hand(program, seed), 1e-10)
