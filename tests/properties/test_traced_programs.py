"""A random program, run as a Python function and traced, is a text with the same value and gradients."""

from __future__ import annotations

from as_python import as_function
from asked import agree, asked, examples, inputs_of, models_of
from drawing import programs
from hypothesis import given, note
from hypothesis import strategies as st
from program_tree import Program

import nablad


@examples(10)
@given(programs(plain=True), st.integers(0, 5))
def test_a_traced_function_means_what_its_text_does(program: Program, seed: int) -> None:
    inputs, models = inputs_of(program, seed), models_of(program)
    function = as_function(program.text, [*inputs, *models])
    traced = nablad.trace(function, inputs=inputs, models=list(models))
    note(f"traced:\n{traced.text}")
    found = asked(program, seed, text=traced.text, constants=traced.constants)
    agree(found, asked(program, seed), 1e-11)
