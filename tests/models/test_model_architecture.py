import json

import pytest
from nablad.problems import Refusal
from nablad_models import build

SEED = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"batchnorm": 4}, {"dense": [4, 2]}]}


def one(layer):
    return {"layers": [layer]}


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
    (one({"dense": [2, 4], "bias": 1}), "layer_1 (dense), 'bias': expected true or false, got 1"),
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
    ({"layers": [{"dense": [1, 1]}] * 5000}, "at most 4096 layers"),
    ({"input": [-1], **SEED}, "expected a positive whole number"),
    ({"input": 3, **SEED}, '"input" is the shape of one example'),
    ({"input": [3], **SEED}, "layer_1 (dense [2, 4]) takes (2,), but the input gives (3,)"),
    ({"input": [], **SEED}, "layer_1 (dense [2, 4]) takes (2,), but the input gives ()"),
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
