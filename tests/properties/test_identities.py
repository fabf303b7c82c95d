"""Each derivative agrees with the others that it can be composed of, on random values, gradients included."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from ask import NESTINGS, gradient
from asked import examples, largest, models_of, parameters
from drawing import INPUTS
from fragments import FAMILIES, Fragment, fragments
from hypothesis import given
from hypothesis import strategies as st


def answer(fragment: Fragment, nesting: str) -> dict[str, Any]:
    numbers = np.random.default_rng(0)
    inputs = {name: numbers.uniform(-1.3, 1.3, shape) for name, shape in INPUTS.items()}
    names = fragment.program.names
    return gradient(
        fragment.text,
        {name: array for name, array in inputs.items() if name in names},
        models=models_of(fragment.program),
        wrt=fragment.wrt,
        terms=fragment.terms,
        outputs=fragment.outputs,
        term_gradients="full",
        nesting=nesting,
    )


def close(found: Any, expected: Any, scale: float) -> None:
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        assert np.abs(left - right).max(initial=0.0) <= 1e-10 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_of_an_identity_have_equal_entries_and_gradients(family: str) -> None:
    parameters()

    @examples(5)
    @given(fragments(FAMILIES[family]), st.sampled_from(NESTINGS))
    def holds(fragment: Fragment, nesting: str) -> None:
        found = answer(fragment, nesting)
        scale = max(1.0, largest(found["outputs"]), largest(found["term_gradients"]))
        for i in range(fragment.count):
            close(found["outputs"][f"L{i}"], found["outputs"][f"R{i}"], scale)
            close(found["term_gradients"][f"left{i}"], found["term_gradients"][f"right{i}"], scale)
        # The loss is the weighted sum of the terms, and so is its gradient.
        weights = fragment.terms
        weighted = [
            jax.tree.map(lambda leaf, weight=weight: weight * leaf, found["term_gradients"][name])
            for name, weight in weights.items()
        ]
        close(found["gradients"], jax.tree.map(lambda *leaves: sum(leaves), *weighted), scale)
        assert (
            abs(found["value"] - sum(weights[name] * found["terms"][name] for name in weights))
            <= 1e-10 * scale
        )

    holds()
