"""A `state_dict` as PyTorch makes it gives PyTorch's answers and gradients; `torch_reference` holds them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import build, check_params, check_state, from_torch, is_torch

HERE = Path(__file__).parent / "torch_reference"
CASES = json.loads((HERE / "cases.json").read_text())
with np.load(HERE / "reference.npz") as _stored:
    REFERENCE = dict(_stored)
RUNS = [(case, mode) for case in CASES for mode in ("eval", "train") if f"{case}/{mode}/output" in REFERENCE]
MLP = {"layers": [{"dense": [2, 3], "activation": "tanh"}, {"batchnorm": 3}, {"dense": [3, 1]}]}
SEQUENTIAL = {
    "0.weight": np.ones((3, 2)),
    "0.bias": np.ones(3),
    "2.weight": np.full(3, 2.0),
    "2.bias": np.zeros(3),
    "2.running_mean": np.full(3, 4.0),
    "2.running_var": np.full(3, 5.0),
    "2.num_batches_tracked": np.array(7),
    "3.weight": np.ones((1, 3)),
    "3.bias": np.ones(1),
}


def below(prefix):
    return {name.removeprefix(prefix): value for name, value in REFERENCE.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def answers():
    """By case and mode: the answer, the new state, and gradients in inputs and parameters."""
    models = {case: build(CASES[case]["architecture"]) for case in CASES}
    leaves = {case: from_torch(model, below(f"{case}/state_dict/")) for case, model in models.items()}
    inputs = {case: list(below(f"{case}/input/").values()) for case in CASES}

    def run(case, mode, params, state, inputs):
        def total(params, inputs):
            y, new = models[case].apply(params, state, *inputs, train=mode == "train")
            return jnp.sum(jnp.sin(y)), (y, new)

        whole = all(jnp.issubdtype(x.dtype, jnp.floating) for x in inputs)
        gradients, (y, new) = jax.grad(total, argnums=(0, 1) if whole else (0,), has_aux=True)(params, inputs)
        return y, new, gradients

    # One program for all: compiling is what takes time here.
    return jax.jit(
        lambda leaves, inputs: {
            (case, mode): run(case, mode, *leaves[case], inputs[case]) for case, mode in RUNS
        }
    )(leaves, inputs)


def close(got, expected):
    # Gradients that are zero but for rounding are compared with the others' size.
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("case", "mode"), RUNS)
def test_a_state_dict_gives_pytorchs_answer_and_state(case, mode, answers):
    y, new, _ = answers[case, mode]
    close(y, REFERENCE[f"{case}/{mode}/output"])
    assert y.dtype == "float64"
    if mode == "train":
        model = build(CASES[case]["architecture"])
        after = below(f"{case}/state_dict/") | below(f"{case}/train/state/")
        expected = from_torch(model, after)[1]
        assert set(new) == set(expected) != set()
        for name, value in expected.items():
            close(new[name], value)


@pytest.mark.parametrize(("case", "mode"), RUNS)
def test_a_state_dict_gives_pytorchs_gradients(case, mode, answers):
    _, _, (of_params, *of_inputs) = answers[case, mode]
    expected = below(f"{case}/{mode}/gradient/")
    model = build(CASES[case]["architecture"])
    buffers = {
        name: each for name, each in below(f"{case}/state_dict/").items() if f"params/{name}" not in expected
    }
    named = {name.removeprefix("params/"): each for name, each in expected.items() if "params/" in name}
    for name, value in from_torch(model, named | buffers)[0].items():
        close(of_params[name], value)
    for place, got in enumerate(of_inputs[0] if of_inputs else []):
        close(got, expected[f"input/{place}"])


@pytest.mark.parametrize("case", CASES)
def test_the_names_are_known_for_pytorchs_and_the_models_own_are_not(case):
    model = build(CASES[case]["architecture"])
    assert is_torch(model, below(f"{case}/state_dict/"))
    assert not is_torch(model, model.parameter_shapes)


def test_a_sequential_is_counted_by_its_modules_with_arrays():
    params, state = from_torch(build(MLP), SEQUENTIAL)
    assert list(params) == list(build(MLP).parameter_shapes)
    assert params["layer_2.scale"] is SEQUENTIAL["2.weight"]
    assert params["layer_3.weight"] is SEQUENTIAL["3.weight"]
    assert state == {
        "layer_2.running_mean": SEQUENTIAL["2.running_mean"],
        "layer_2.running_var": SEQUENTIAL["2.running_var"],
    }
    check_params(build(MLP), params)
    check_state(build(MLP), state)


@pytest.mark.parametrize("prefix", ["net.", "module.model.", "layer_1x."])
def test_what_all_names_have_in_front_is_left_out(prefix):
    prefixed = {f"{prefix}{name}": value for name, value in SEQUENTIAL.items()}
    assert is_torch(build(MLP), prefixed)
    params, _ = from_torch(build(MLP), prefixed)
    assert params["layer_3.weight"] is SEQUENTIAL["3.weight"]


def test_numbers_are_counted_and_not_spelled():
    layers = [{"dense": [1, 1], "bias": False}] * 11
    params, _ = from_torch(build({"layers": layers}), {f"{i}.weight": np.full((1, 1), i) for i in range(11)})
    assert [int(leaf[0, 0]) for leaf in params.values()] == [*range(11)]


def test_modules_may_have_the_models_own_names():
    own = {"0": "layer_1", "2": "layer_2", "3": "layer_3"}
    given = {f"{own[name[0]]}{name[1:]}": value for name, value in SEQUENTIAL.items()}
    assert is_torch(build(MLP), given)
    params, state = from_torch(build(MLP), given)
    assert params["layer_2.scale"] is SEQUENTIAL["2.weight"]
    assert state["layer_2.running_var"] is SEQUENTIAL["2.running_var"]


NAMED = {
    "layers": [
        {"dense": [2, 2], "name": "fc"},
        {
            "residual": [{"dense": [2, 2]}, {"dense": [2, 2]}],
            "shortcut": [{"dense": [2, 2]}],
            "name": "block",
        },
        {"parallel": [[{"dense": [2, 1]}], [{"dense": [2, 1]}]], "name": "heads"},
        {"shift": [2], "name": "offset"},
        {"dense": [2, 1], "name": "fc.out"},
    ]
}
NAMES = {
    "layer_1.weight": "fc.weight",
    "layer_1.bias": "fc.bias",
    "layer_2.layer_1.weight": "block.0.weight",
    "layer_2.layer_1.bias": "block.0.bias",
    "layer_2.layer_2.weight": "block.2.weight",
    "layer_2.layer_2.bias": "block.2.bias",
    "layer_2.shortcut.layer_1.weight": "block.shortcut.0.weight",
    "layer_2.shortcut.layer_1.bias": "block.shortcut.0.bias",
    "layer_3.branch_1.layer_1.weight": "heads.0.0.weight",
    "layer_3.branch_1.layer_1.bias": "heads.0.0.bias",
    "layer_3.branch_2.layer_1.weight": "heads.1.0.weight",
    "layer_3.branch_2.layer_1.bias": "heads.1.0.bias",
    "layer_4.bias": "offset",
    "layer_5.weight": "fc.out.weight",
    "layer_5.bias": "fc.out.bias",
}


def test_names_in_the_architecture_are_names_of_modules():
    model = build(NAMED)
    assert list(model.parameter_shapes) == list(NAMES)
    given = {NAMES[name]: np.zeros(shape) for name, shape in model.parameter_shapes.items()}
    params, state = from_torch(model, given)
    assert all(params[name] is given[NAMES[name]] for name in NAMES)
    assert state == {}


WRONG = [
    ({"0.weight": None}, "layer_1.weight would be 0.weight, which is missing"),
    ({"3.bias": None, "3.weight": None}, "those with arrays are 0, 2"),
    ({"7.weight": np.ones(1)}, "those with arrays are 0, 2, 3, 7"),
    ({"2.running_var": None}, "layer_2.running_var would be 2.running_var, which is missing"),
    ({"0.num_batches_tracked": np.array(1)}, "layer_1 has no place for 0.num_batches_tracked"),
    ({"0.weight.more": np.ones(1)}, "layer_1 has no place for 0.weight.more"),
    ({"scale": np.ones(1)}, "no layer takes scale"),
    ({"": np.ones(1), ".": np.ones(1)}, "no layer takes "),
    ({"3.weight": np.ones((3, 1))}, "layer_3.weight has shape (3, 1) where (1, 3) is expected"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_listed(changes, words):
    given = {name: value for name, value in (SEQUENTIAL | changes).items() if value is not None}
    with pytest.raises(Refusal) as refused:
        from_torch(build(MLP), given)
    assert refused.value.code == "invalid_params"
    assert words in refused.value.detail


def test_the_models_own_names_misspelled_are_not_pytorchs():
    model = build(MLP)
    names = [*model.parameter_shapes]
    assert not is_torch(model, names)
    assert not is_torch(model, names[1:])
    assert not is_torch(model, [*names, "layer_9.weight"])
    assert is_torch(model, ["0.weight"])
    assert not is_torch(model, [])
