import json

import jax.numpy as jnp
import pytest

from nablad.problems import Refusal
from nablad_models import build

SEED = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"batchnorm": 4}, {"dense": [4, 2]}]}


def one(layer):
    return {"layers": [layer]}


def nested(depth):
    layer = {"dense": [2, 2]}
    for _ in range(depth):
        layer = {"residual": [layer]}
    return layer


REFUSED = [
    ([], "an architecture looks like"),
    (None, "an architecture looks like"),
    ({"layer": []}, "an architecture looks like"),
    ({"layers": []}, "at least one layer"),
    ({"layers": {"dense": [2, 4]}}, "a list of at least one layer"),
    ({**SEED, "nmae": 1}, "unknown key 'nmae'"),
    (one({"dence": [2, 4]}), "layer_1: unknown layer 'dence'; did you mean 'dense'?"),
    (one({"zzzzzz": 1}), "known are "),
    (one({}), "layer_1: the object is empty"),
    (one("dense"), "layer_1: a layer is an object"),
    (one({"dense": [2, 4], "batchnorm": 4}), "one entry is one layer, this one names dense and batchnorm"),
    (one({"dense": [2]}), "layer_1 (dense): expected [in, out], positive whole numbers, got [2]"),
    (one({"dense": [2, 0]}), "got [2, 0]"),
    (one({"dense": [2, -1]}), "got [2, -1]"),
    (one({"dense": [2, 4.0]}), "got [2, 4.0]"),
    (one({"dense": [2, True]}), "got [2, True]"),
    (one({"dense": "2, 4"}), "got '2, 4'"),
    (one({"dense": [2, 4], "bias": 1}), "layer_1 (dense): option 'bias': expected true or false, got 1"),
    (one({"dense": [2, 4], "bais": True}), "unknown option 'bais'; did you mean 'bias'?"),
    (one({"dense": [2, 4], "init": "glorot"}), "did you mean 'glorot_"),
    (one({"dense": [2, 4], "activation": "tahn"}), "unknown activation 'tahn'; did you mean 'tanh'?"),
    (one({"dense": [2, 4], "activation": 3}), "an activation is a name"),
    (one({"dense": [2, 4], "activation": {"tanh": 2}}), "'tanh' takes no number"),
    (one({"dense": [2, 4], "activation": {"sin": 0}}), "may not be 0"),
    (one({"dense": [2, 4], "activation": {"sin": float("nan")}}), "expected a finite number, got nan"),
    (one({"batchnorm": 4, "momentum": 2}), "expected a number from 0 to 1, got 2"),
    (one({"batchnorm": 4, "eps": 0}), "expected a number above zero"),
    (one({"flatten": True}), "the layers do not tell the shape of one example"),
    (one({"flatten": 1}), "expected true, got 1"),
    (one({"dense": [2**31, 2**31]}), "at most 2147483648 are hosted"),
    (one({"dense": [2**40, 1]}), "positive whole numbers"),
    ({"layers": [{"dense": [1, 1]}] * 5000}, "more than 20000 values"),
    ({"input": [-1], **SEED}, "expected a positive whole number"),
    ({"input": 3, **SEED}, '"input" is the shape of one example'),
    ({"input": [3], **SEED}, "layer_1 (dense [2, 4]) takes (2,), but the input gives (3,)"),
    ({"input": [], **SEED}, "layer_1 (dense [2, 4]) takes (2,), but the input gives ()"),
    (one(nested(100)), "nested deeper than 64"),
    (one({"residual": []}), "layer_1 (residual): expected a list of at least one layer, got []"),
    (
        one({"residual": [{"dense": [2, 2]}, {"dence": 1}]}),
        "layer_1 (residual): layer_2: unknown layer 'dence'",
    ),
    (one({"residual": [{"dense": [2, 3]}]}), "adds (3,) from its layers to (2,) from its shortcut"),
    (
        one({"residual": [{"dense": [2, 3]}, {"dense": [4, 2]}]}),
        "in layer_1 (residual), layer_2 (dense [4, 2]) takes (4,), but layer_1 (dense [2, 3]) gives (3,)",
    ),
    (
        one({"residual": [{"dense": [2, 2]}], "shortcut": [1]}),
        "option 'shortcut': layer_1: a layer is an object",
    ),
    (one({"parallel": []}), "at least one branch"),
    (one({"parallel": 3}), "expected a list of branches"),
    (
        one({"parallel": [[{"dense": [2, 3]}], [{"dense": [2]}]]}),
        "branch_2: layer_1 (dense): expected [in, out]",
    ),
    (
        one({"parallel": [[{"dense": [2, 3]}], [{"dense": [4, 3]}]]}),
        "in branch_2, layer_1 (dense [4, 3]) takes",
    ),
    (one({"parallel": [[{"dense": [2, 3]}], [{"dense": [2, 4]}]], "join": "sum"}), "cannot sum"),
    (one({"parallel": [[{"dense": [2, 3]}]], "axis": 1}), "joins along axis 1"),
    (one({"conv": [1, 8]}), "expected [in, out, kernel], got [1, 8]"),
    (one({"conv": [1, 8, [3, 3]], "dims": 3}), "kernel [3, 3] has 2 numbers, but there are 3 spatial axes"),
    (one({"conv": [1, 8, 3], "dims": 4}), "dims) is 1, 2 or 3, got 4"),
    (one({"conv": [1, 8, 3], "padding": "smae"}), "did you mean 'same'?"),
    (one({"conv": [1, 8, 3], "padding": 10**9}), "option 'padding': expected whole numbers up to 4096"),
    (one({"conv": [1, 8, 3], "stride": 0}), "option 'stride': expected a positive whole number"),
    (one({"conv": [3, 8, 3], "groups": 2}), "groups 2 must divide both 3 channels in and 8 channels out"),
    (one({"conv_transpose": [3, 8, 3], "output_padding": 1}), "must be smaller than stride 1"),
    ({"input": [1, 2, 2], **one({"conv": [1, 8, 3]})}, "has a window larger than the array"),
    ({"input": [1, 4, 4], **one({"maxpool": 2, "padding": 2})}, "at most half of the kernel"),
    (
        {"input": [1, 6, 6], "layers": [{"conv": [1, 8, 3]}, {"flatten": True}, {"dense": [100, 1]}]},
        "layer_3 (dense [100, 1]) takes (100,), but layer_2 (flatten) gives (128,)",
    ),
    (one({"maxpool": 2}), "the layers do not tell the shape of one example"),
    (one({"groupnorm": [3, 4]}), "must divide the number of channels"),
    (one({"attention": {"heads": 3, "size": 8}}), "must divide the size, got 3 and 8"),
    (one({"attention": {"heads": 3}}), "layer_1 (attention): option 'size' is missing"),
    (one({"attention": {"heads": 2, "size": 8, "casual": True}}), "did you mean 'causal'?"),
    (one({"attention": [2, 8]}), 'expected {"heads": 4, "size": 32}'),
    ({"input": [8], **one({"attention": {"heads": 2, "size": 8}})}, "takes (?, 8), but the input gives (8,)"),
    (
        {"input": [9], "layers": [{"embedding": [5, 2]}, {"position_embedding": [8, 2]}]},
        "or shorter sequences",
    ),
    (one({"fourier": {"in": 2}}), "option 'features' is missing"),
    (one({"fourier": {"in": 2, "features": 4, "seed": -1}}), "option 'seed': expected a whole number from 0"),
    (one({"periodic": {"periods": [0]}}), "expected a number above zero"),
    (one({"periodic": {"periods": []}}), "a list with a period, or null, for each coordinate"),
    (one({"dropout": 1}), "expected a number below 1"),
    (one({"transpose": [0, 2]}), "the axes of an example in a new order"),
    (
        {"input": [6], **one({"reshape": [2, 2]})},
        "layer_1 (reshape [2, 2]) takes 4 values, but the input gives (6,)",
    ),
    (one({"dense": [2, 4], "join": "sum"}), "one entry is one layer, this one names dense and join"),
    (one({"name": "fc1"}), "layer_1: the object is empty"),
    ({"layers": [{"dense": [2, 4]}, {"shift": [3]}]}, "layer_2 (shift [3]) takes (3,), but layer_1"),
    (one({"chain": []}), "layer_1 (chain): expected a list of at least one layer"),
    ({"preset": "potential", "sizes": [2, 8, 3]}, "option 'sizes': a potential is one number"),
    ({"preset": "potential", "sizes": [2, 8, 1], "activation": "relu"}, "'relu' is not smooth"),
    ({"preset": "potential", "sizes": [2, 1], "activation": {"elu": 0.5}}, "'elu' is not smooth"),
    ({"preset": "deeponet", "branch": [9, 4], "trunk": [2, 3]}, "branch [9, 4] gives (4,) and trunk [2, 3]"),
    (
        {"preset": "deeponet", "branch": [9, 4], "trunk": [2, 4], "outputs": 3},
        "preset deeponet: outputs 3 must divide the last size of branch and trunk, 4",
    ),
    ({"preset": "deeponet", "branch": [9, 4]}, "option 'trunk' is missing"),
    ({"preset": "mlpp"}, "unknown preset 'mlpp'; did you mean 'mlp'?"),
    ({"preset": ["mlp"]}, "a preset is named by a string"),
    ({"preset": "mlp"}, "preset mlp: option 'sizes' is missing"),
    ({"preset": "mlp", "sizes": [2]}, "at least 2 sizes"),
    ({"preset": "mlp", "sizes": [2, 1], "depth": 3}, "preset mlp: unknown option 'depth'"),
    ({"preset": "mlp", "layers": []}, "unknown option 'layers'"),
    ({"preset": "transformer_small", "vocabulary": 9, "length": 9, "depth": 10**6}, "up to 4096"),
    (
        {"layers": [{"dense": [2, 4]}, {"dense": [5, 3]}]},
        "layer_2 (dense [5, 3]) takes (5,), but layer_1 (dense [2, 4]) gives (4,)",
    ),
    (
        {"layers": [{"dense": [2, 4]}, {"activation": "tanh"}, {"batchnorm": 3}]},
        'layer_3 (batchnorm 3) takes (3,), but layer_2 (activation "tanh") gives (4,)',
    ),
]


@pytest.mark.parametrize(("architecture", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_said_where_it_is(architecture, words):
    with pytest.raises(Refusal) as refused:
        build(architecture)
    assert refused.value.code == "invalid_architecture"
    assert words in refused.value.detail
    assert len(refused.value.detail) < 600


def test_defaults_are_written_out_and_building_again_gives_the_same_model():
    model = build(SEED)
    assert model.architecture["layers"][0] == {
        "dense": [2, 4],
        "bias": True,
        "init": "uniform",
        "activation": "tanh",
    }
    again = build(json.loads(json.dumps(model.architecture)))
    assert again == model
    assert again.digest == model.digest
    assert hash(again) == hash(model)


def test_the_digest_is_the_meaning_and_not_the_spelling():
    spelled = {
        "layers": [{"activation": "tanh", "bias": True, "dense": (2, 4)}, {"batchnorm": 4, "eps": 0.00001}]
    }
    plain = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"batchnorm": 4}]}
    assert build(spelled).digest == build(plain).digest
    assert build(SEED).digest != build(plain).digest
    assert len(build(plain).digest) == 64


def test_sizes_left_open_are_checked_when_data_arrive():
    layers = [{"conv": [1, 2, 3]}, {"flatten": True}, {"dense": [18, 1]}]
    model = build({"layers": layers})
    assert model.input_shapes == {"x": (1, None, None)}
    params = model.initial_params()
    assert model.apply(params, {}, jnp.ones((4, 1, 5, 5), "float32"), train=False)[0].shape == (4, 1)
    with pytest.raises(Refusal) as refused:
        model.apply(params, {}, jnp.ones((4, 1, 6, 5), "float32"), train=False)
    assert refused.value.code == "shape_mismatch"
    assert refused.value.detail == (
        "for an array of shape (4, 1, 6, 5), layer_3 (dense [18, 1]) takes (18,), "
        "but layer_2 (flatten) gives (24,)."
    )


def test_layers_that_keep_the_shape_leave_it_to_the_next_that_does_not():
    conv = {"conv": [3, 4, 3], "dims": 1}
    for first in ({"activation": "tanh"}, {"batchnorm": 3}, {"dropout": 0.1}):
        assert build({"layers": [first, conv]}).input_shapes["x"] == (3, None)
    assert build({"layers": [{"batchnorm": 3}, {"activation": "tanh"}]}).input_shapes["x"] == (3,)
