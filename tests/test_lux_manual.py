"""Every number of the manual's five examples, through a real server, in both body formats."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from lux_manual import EXAMPLES, architecture, compute, load

import nablad

# Of the largest entry of the whole array: small entries carry the rounding of large ones.
TOLERANCE = {"float32": 3e-6, "float64": 1e-6}
NESTINGS = ("auto", "reverse_over_reverse", "forward_over_reverse")
_computed: dict[Any, dict[str, Any]] = {}


def computed(client: nablad.Client, name: str, dtype: str, nesting: str = "auto") -> dict[str, Any]:
    key = (repr(client), client._calls._media, name, dtype, nesting)
    if key not in _computed:
        _computed[key] = compute(client, name, dtype, nesting)
    return _computed[key]


@cache
def arrays(name: str) -> dict[str, Any]:
    data = load(name)
    inputs = {f"input.{key}": np.array(value) for key, value in data["inputs"].items()}
    return inputs | {key: np.array(value) for key, value in data["reference_float64"].items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_float32_gives_every_number_that_the_manual_prints(any_client: nablad.Client, name: str) -> None:
    found = computed(any_client, name, "float32")
    compared = 0
    for printed in load(name)["printed"]:
        if printed["kind"] not in ("float32", "six_digits"):
            continue
        quantity, index = printed["quantity"], tuple(printed["index"])
        largest = np.abs(arrays(name)[quantity]).max()
        ours = float(np.asarray(found[quantity])[index])
        tolerance = 3e-6 * largest if printed["kind"] == "float32" else 5e-7
        assert abs(ours - printed["value"]) <= tolerance, (quantity, index)
        compared += 1
    assert compared == {"loss_function_batched": 1, "hutchinson_trace": 3, "loss_function1": 47}.get(name, 88)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_entry_agrees_with_the_float64_reference(
    any_client: nablad.Client, name: str, dtype: str
) -> None:
    found = computed(any_client, name, dtype)
    reference = load(name)["reference_float64"]
    gradients = [key for key in reference if key.startswith("grad.")]
    assert gradients
    for quantity, expected in reference.items():
        expected, ours = np.asarray(expected), np.asarray(found[quantity])
        assert ours.shape == expected.shape, quantity
        if quantity in gradients:
            assert ours.dtype == dtype
        largest = np.abs(expected).max()
        assert np.abs(ours - expected).max() <= TOLERANCE[dtype] * largest, quantity


@pytest.mark.parametrize("nesting", NESTINGS[1:])
@pytest.mark.parametrize("name", EXAMPLES)
def test_all_nestings_agree_to_rounding(client: nablad.Client, name: str, nesting: str) -> None:
    expected, found = (computed(client, name, "float64", one) for one in ("auto", nesting))
    for quantity, array in expected.items():
        largest = np.abs(array).max()
        assert np.abs(found[quantity] - array).max() <= 1e-13 * max(largest, 1.0), quantity


def test_the_three_traces_of_hutchinson_agree(client: nablad.Client) -> None:
    found = computed(client, "hutchinson_trace", "float64")
    assert found["trace_vjp"] == pytest.approx(found["trace_jvp"], rel=1e-14)
    assert found["trace_vjp"] == pytest.approx(found["trace_full_jacobian"], rel=1e-14)


def test_hutchinson_trace_operator_gives_the_same_sum(client: nablad.Client) -> None:
    computed(client, "hutchinson_trace", "float64")
    inputs = {key: np.array(value).T for key, value in load("hutchinson_trace")["inputs"].items()}
    result = client.evaluate(
        "sum(hutchinson_trace(model(x), x, v))", inputs=inputs, model="hutchinson_trace_float64"
    ).result
    expected = load("hutchinson_trace")["reference_float64"]["loss"]
    assert float(result) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", EXAMPLES)
def test_check_shows_differences_far_below_the_manuals(client: nablad.Client, name: str) -> None:
    computed(client, name, "float32")
    example, data = EXAMPLES[name], load(name)
    inputs = {key: np.array(value, "float32").T for key, value in data["inputs"].items()}
    inputs |= {key: value for key, value in data.get("constants", {}).items() if key in example.inputs}
    checked = client.check(
        example.program, inputs=inputs, model=f"{name}_float32", wrt=example.wrt, mode=example.mode
    )
    # The manual's own differences, in float32, are about 5e-4.
    assert set(checked.arguments) == set(example.wrt)
    assert checked.worst < 1e-9
    for key, argument in checked.arguments.items():
        if key != "params":
            assert argument.compared == np.size(inputs[key])


# The older edition of the manual: no factor on J, everything else the same.
OLDER = {
    "loss_function1": "yhat = model(x)\nJ = jacobian(yhat, x)\nsum((yhat - y)**2) + norm(J)**2\n",
    "loss_function_batched": (
        "yhat = model(x)\nJ = batched_jacobian(yhat, x)\nsum((yhat - y)**2) + norm(J)**2\n"
    ),
}


@pytest.mark.parametrize("name", OLDER)
def test_the_older_edition_differs_by_the_factor_alone(client: nablad.Client, name: str) -> None:
    computed(client, name, "float64")
    example, data = EXAMPLES[name], load(name)
    inputs = {key: np.array(value).T for key, value in data["inputs"].items()}
    asked: dict[str, Any] = {"model": f"{name}_float64", "wrt": example.wrt, "mode": example.mode}
    older = client.gradient(OLDER[name], inputs=inputs, **asked)
    newer = client.gradient(example.program, inputs={**inputs, "jac_scale": 1.0}, **asked)
    assert older.value == pytest.approx(newer.value, rel=1e-14)
    np.testing.assert_allclose(older.gradients["x"], newer.gradients["x"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["loss_function2", "loss_function3", "hutchinson_trace"])
def test_the_rest_of_the_older_edition_is_unchanged(client: nablad.Client, name: str) -> None:
    assert "scale" not in EXAMPLES[name].program
    found = computed(client, name, "float64")
    assert found["loss"] == pytest.approx(load(name)["reference_float64"]["loss"], rel=1e-12)


def test_programs_stay_as_short_as_the_manuals_functions() -> None:
    for name, example in EXAMPLES.items():
        assert len(example.program.splitlines()) <= 6, name
        assert architecture(load(name))["layers"]
