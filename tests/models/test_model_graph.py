"""Several inputs, several answers, and layers that take the answers of others."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import build

RNG = np.random.default_rng(0)
BRANCH = {
    "chain": [{"dense": [9, 5], "activation": "tanh"}, {"dense": [5, 4]}],
    "from": "sensors",
    "name": "branch",
}
TRUNK_LAYER = {"dense": [2, 4], "activation": "tanh"}
TRUNK = {**TRUNK_LAYER, "from": "y", "name": "trunk"}
DOT = {"join": "dot", "from": ["branch", "trunk"]}
INPUTS = {"sensors": [9], "y": [2]}


def graph(*layers, **more):
    return {"inputs": INPUTS, "layers": [*layers], **more}


def random(shapes):
    return {name: RNG.normal(size=shape) for name, shape in shapes.items()}


def answer(model, params, *inputs):
    return model.apply(params, {}, *inputs, train=False)[0]


def by_hand(params, sensors, y):
    """The DeepONet of one function at one point."""
    p = {name.removeprefix("layer_"): value for name, value in params.items()}
    hidden = jnp.tanh(p["1.layer_1.weight"] @ sensors + p["1.layer_1.bias"])
    branch = p["1.layer_2.weight"] @ hidden + p["1.layer_2.bias"]
    trunk = jnp.tanh(p["2.layer_1.weight"] @ y + p["2.layer_1.bias"])
    return jnp.sum(branch * trunk) + p["4.bias"]


DEEPONET = build({"preset": "deeponet", "branch": [9, 5, 4], "trunk": [2, 4]})
PARAMS = random(DEEPONET.parameter_shapes)


def test_a_deeponet_names_its_leaves_by_place_and_its_inputs_as_declared():
    assert DEEPONET.input_shapes == {"sensors": (9,), "y": (2,)}
    assert list(DEEPONET.input_shapes) == ["sensors", "y"]
    assert DEEPONET.output_shapes == ()
    assert DEEPONET.parameter_shapes == {
        "layer_1.layer_1.weight": (5, 9),
        "layer_1.layer_1.bias": (5,),
        "layer_1.layer_2.weight": (4, 5),
        "layer_1.layer_2.bias": (4,),
        "layer_2.layer_1.weight": (4, 2),
        "layer_2.layer_1.bias": (4,),
        "layer_4.bias": (),
    }


@pytest.mark.parametrize(
    ("of_sensors", "of_y", "of_answer"),
    [
        ((), (), ()),
        ((3,), (), (3,)),
        ((), (4,), (4,)),
        ((3,), (3,), (3,)),
        ((3, 1), (4,), (3, 4)),
        ((3, 1), (3, 4), (3, 4)),
        ((2, 3, 1), (4,), (2, 3, 4)),
        ((1,), (0,), (0,)),
    ],
)
def test_batch_axes_broadcast_as_numpys(of_sensors, of_y, of_answer):
    sensors, y = RNG.normal(size=(*of_sensors, 9)), RNG.normal(size=(*of_y, 2))
    got = jax.jit(lambda *inputs: answer(DEEPONET, *inputs))(PARAMS, sensors, y)
    assert got.shape == of_answer
    assert got.dtype == "float64"
    every = jnp.vectorize(by_hand, excluded=(0,), signature="(s),(y)->()")
    if 0 not in of_answer:
        np.testing.assert_allclose(got, every(PARAMS, sensors, y), atol=1e-12)


def test_each_function_and_each_point_is_evaluated_once():
    """Nothing of size n * m but the answer: neither n * m trunks nor the products before the sum."""
    n, m = 50, 60
    traced = jax.make_jaxpr(lambda *inputs: answer(DEEPONET, *inputs))(
        PARAMS, np.ones((n, 1, 9)), np.ones((m, 2))
    )
    assert max(size_of(each) for each in equations(traced.jaxpr)) == n * m


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda each: isinstance(each, jax.extend.core.ClosedJaxpr)
        ):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                yield from equations(inner.jaxpr)


def size_of(variable):
    return variable.aval.size


def test_derivatives_through_a_deeponet_are_those_written_by_hand():
    """The Laplacian in y, and its gradients in parameters, sensors and y: third order in all."""
    sensors, y = RNG.normal(size=(3, 1, 9)), RNG.normal(size=(4, 2))

    def loss(operator):
        def laplacian(params, sensors, y):
            return jnp.trace(jax.hessian(operator, argnums=2)(params, sensors, y))

        points = jax.vmap(laplacian, (None, None, 0))
        every = jax.vmap(points, (None, 0, None))
        return lambda params, sensors, y: jnp.sum(jnp.square(every(params, sensors[:, 0], y)))

    def batched(params, sensors, y):
        def total(y):
            return jnp.sum(answer(DEEPONET, params, sensors, y))

        u = answer(DEEPONET, params, sensors, y)
        # Points do not mix: one direction for all of them.
        second = sum(
            jax.jvp(
                lambda y, v=v: jax.jvp(lambda y: answer(DEEPONET, params, sensors, y), (y,), (v,))[1],
                (y,),
                (v,),
            )[1]
            for v in (jnp.zeros_like(y).at[:, axis].set(1.0) for axis in range(2))
        )
        assert second.shape == u.shape == (3, 4)
        return jnp.sum(jnp.square(second))

    expected = jax.jit(jax.value_and_grad(loss(by_hand), argnums=(0, 1, 2)))(PARAMS, sensors, y)
    single = loss(lambda params, sensors, y: answer(DEEPONET, params, sensors, y))
    for way in (single, batched):
        got = jax.jit(jax.value_and_grad(way, argnums=(0, 1, 2)))(PARAMS, sensors, y)
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-9), got, expected)
    assert float(expected[0]) > 0


def test_outputs_of_a_deeponet_share_out_the_last_size():
    """Entry k of the answer is a DeepONet of rows k of the last layers."""
    model = build({"preset": "deeponet", "branch": [9, 5, 8], "trunk": [2, 8], "outputs": 2})
    params, sensors, y = random(model.parameter_shapes), RNG.normal(size=9), RNG.normal(size=2)
    got = answer(model, params, sensors, y)
    assert got.shape == (2,)
    cut = ("layer_1.layer_2.weight", "layer_1.layer_2.bias", "layer_2.layer_1.weight", "layer_2.layer_1.bias")
    for k in range(2):
        part = {name: value[4 * k : 4 * k + 4] if name in cut else value for name, value in params.items()}
        part["layer_4.bias"] = params["layer_4.bias"][k]
        np.testing.assert_allclose(got[k], by_hand(part, sensors, y), atol=1e-12)


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        ({"join": "concat"}, lambda a, b: np.concatenate(np.broadcast_arrays(a, b), -1)),
        ({"join": "sum"}, np.add),
        ({"join": "product"}, np.multiply),
        ({"join": "stack"}, lambda a, b: np.stack(np.broadcast_arrays(a, b), -2)),
        ({"join": "stack", "axis": 1}, lambda a, b: np.stack(np.broadcast_arrays(a, b), -1)),
        ({"join": "dot"}, lambda a, b: (a * b).sum(-1)),
        ({"join": "dot", "activation": "tanh"}, lambda a, b: np.tanh((a * b).sum(-1))),
    ],
)
def test_joins_broadcast_what_they_join(join, expected):
    layers = [
        {"activation": "sin", "from": "a"},
        {"activation": "cos", "from": "b"},
        {**join, "from": ["layer_1", "layer_2"]},
    ]
    model = build({"inputs": {"a": [3], "b": [3]}, "layers": layers})
    a, b = RNG.normal(size=(4, 1, 3)), RNG.normal(size=(5, 3))
    got = answer(model, {}, a, b)
    np.testing.assert_allclose(got, expected(np.sin(a), np.cos(b)), atol=1e-12)
    assert got.shape[2:] == model.output_shapes


def test_dot_of_more_than_two_is_the_sum_of_their_products():
    """Operators of several functions: Jin, Meng, Lu, "MIONet" (2022)."""
    layers = [{"join": "dot", "from": ["f", "g", "y"]}]
    model = build({"inputs": {"f": [3], "g": [3], "y": [3]}, "layers": layers})
    f, g, y = RNG.normal(size=(2, 1, 3)), RNG.normal(size=(2, 1, 3)), RNG.normal(size=(5, 3))
    np.testing.assert_allclose(answer(model, {}, f, g, y), np.einsum("nk,nk,mk->nm", f[:, 0], g[:, 0], y))


def test_answers_have_names_and_batch_axes_of_their_own():
    architecture = graph(
        BRANCH,
        TRUNK,
        DOT,
        {"dense": [4, 1], "from": "branch", "name": "charge_head"},
        outputs={"energy": "layer_3", "charge": "charge_head", "features": "trunk"},
    )
    model = build(architecture)
    assert model.output_shapes == {"energy": (), "charge": (1,), "features": (4,)}
    got = answer(model, random(model.parameter_shapes), np.ones((3, 1, 9)), np.ones((5, 2)))
    assert {name: each.shape for name, each in got.items()} == {
        "energy": (3, 5),
        "charge": (3, 1, 1),
        "features": (5, 4),
    }
    assert list(got) == ["energy", "charge", "features"]


def test_a_layer_may_take_what_came_long_before():
    """A skip connection with one input, which is called x."""
    layers = [
        {"dense": [3, 4], "activation": "tanh", "name": "down"},
        {"dense": [4, 3]},
        {"join": "concat", "from": ["layer_2", "down", "x"]},
        {"dense": [10, 1], "bias": False},
    ]
    model = build({"layers": layers})
    assert model.input_shapes == {"x": (3,)}
    params, x = random(model.parameter_shapes), RNG.normal(size=(5, 3))
    down = np.tanh(x @ params["layer_1.weight"].T + params["layer_1.bias"])
    up = down @ params["layer_2.weight"].T + params["layer_2.bias"]
    expected = np.concatenate([up, down, x], -1) @ params["layer_4.weight"].T
    np.testing.assert_allclose(answer(model, params, x), expected, atol=1e-12)


def test_a_block_is_a_graph_of_its_own():
    inner = [
        {"dense": [3, 3], "name": "gate", "activation": "sigmoid"},
        {"join": "product", "from": ["gate", "x"]},
    ]
    model = build({"layers": [{"residual": inner}]})
    params, x = random(model.parameter_shapes), RNG.normal(size=(5, 3))
    gate = 1 / (1 + np.exp(-x @ params["layer_1.layer_1.weight"].T - params["layer_1.layer_1.bias"]))
    np.testing.assert_allclose(answer(model, params, x), x + gate * x, atol=1e-12)


def test_batchnorm_takes_the_statistics_of_its_own_batch():
    layers = [
        {"batchnorm": 3, "from": "a"},
        {"batchnorm": 3, "from": "b"},
        {"join": "sum", "from": ["layer_1", "layer_2"]},
        {"batchnorm": 3},
    ]
    model = build({"inputs": {"a": [3], "b": [3]}, "layers": layers})
    a, b = RNG.normal(size=(4, 1, 3)), RNG.normal(size=(5, 3))
    params = {name: leaf.astype("float64") for name, leaf in model.initial_params().items()}

    def normal(x):
        return (x - x.mean((0, *range(1, x.ndim - 1)))) / np.sqrt(x.var((0, *range(1, x.ndim - 1))) + 1e-5)

    y, state = model.apply(params, model.initial_state(), a, b, train=True)
    both = normal(a) + normal(b)
    np.testing.assert_allclose(y, normal(both), atol=1e-12)
    np.testing.assert_allclose(state["layer_1.running_mean"], 0.1 * a.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(state["layer_2.running_mean"], 0.1 * b.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state["layer_4.running_mean"], 0, atol=1e-12)
    assert set(state) == set(model.state_shapes)
    with pytest.raises(Refusal, match=r"layer_2 \(batchnorm\) in train mode takes the statistics of a batch"):
        model.apply(params, model.initial_state(), a, b[0], train=True)


def test_dropout_draws_anew_for_each_layer_of_a_graph():
    layers = [
        {"dropout": 0.5, "from": "a", "name": "one"},
        {"dropout": 0.5, "from": "a", "name": "other"},
        {"join": "stack", "from": ["one", "other"]},
    ]
    model = build({"inputs": {"a": [200]}, "layers": layers})
    y, _ = model.apply({}, {}, np.ones(200), train=True, key=jax.random.key(0))
    assert set(np.unique(y)) == {0.0, 2.0}
    assert not np.array_equal(y[0], y[1])


def test_batches_that_do_not_broadcast_are_refused_with_both():
    with pytest.raises(Refusal) as refused:
        answer(DEEPONET, PARAMS, np.ones((3, 9)), np.ones((4, 2)))
    assert refused.value.code == "shape_mismatch"
    assert refused.value.detail == (
        'layer_3 (join "dot") joins batches that do not broadcast: (3,) from layer_1 "branch" (chain) and '
        '(4,) from layer_2 "trunk" (chain); where each of n is to meet each of m, give the inputs of one the '
        "batch axes (n, 1)."
    )


def test_an_input_that_does_not_fit_is_refused_by_its_name():
    with pytest.raises(Refusal) as refused:
        answer(DEEPONET, PARAMS, np.ones((3, 9)), np.ones((4, 3)))
    assert refused.value.detail == (
        "the model takes examples of 'y' of shape (2,), got an array of shape (4, 3)."
    )


def test_open_sizes_of_several_inputs_are_checked_when_data_arrive():
    model = build({"inputs": {"a": [None], "b": [None]}, "layers": [{"join": "sum", "from": ["a", "b"]}]})
    np.testing.assert_array_equal(answer(model, {}, np.ones(4), np.ones((2, 4))), np.full((2, 4), 2.0))
    with pytest.raises(Refusal) as refused:
        answer(model, {}, np.ones(4), np.ones((2, 3)))
    assert refused.value.detail == (
        'for shapes (4,), (2, 3), layer_1 (join "sum") cannot sum (4,) and (3,): the input "a" gives (4,) '
        'and the input "b" gives (3,).'
    )


def test_layers_tell_the_shapes_that_are_left_to_them():
    model = build({"inputs": {"sensors": None, "y": None}, "layers": [BRANCH, TRUNK, DOT]})
    assert model == build(graph(BRANCH, TRUNK, DOT))


def test_names_of_layers_mean_nothing_and_the_order_of_inputs_does():
    named = build(graph(BRANCH, TRUNK, DOT))
    unnamed = [{key: value for key, value in each.items() if key != "name"} for each in (BRANCH, TRUNK)]
    by_place = {"join": "dot", "from": ["layer_1", "layer_2"]}
    assert build(graph(*unnamed, by_place)) == named
    assert build({"inputs": dict(reversed(INPUTS.items())), "layers": [BRANCH, TRUNK, DOT]}) != named
    other = build(graph(BRANCH, TRUNK, DOT, outputs={"a": "layer_3"}))
    assert other != named
    for model in (named, other, DEEPONET):
        again = build(json.loads(json.dumps(model.architecture)))
        assert again == model
        assert again.architecture == model.architecture


def test_the_preset_is_what_one_would_write():
    assert (
        build(graph(BRANCH, {"chain": [TRUNK_LAYER], "from": "y", "name": "trunk"}, DOT, {"shift": []}))
        == DEEPONET
    )


def test_what_need_not_be_said_is_the_same_as_unsaid():
    plain = build({"layers": [{"dense": [2, 4]}, {"dense": [4, 1]}]})
    said = [{"dense": [2, 4], "from": "x", "name": "fc1"}, {"dense": [4, 1], "from": "fc1"}]
    assert build({"inputs": {"x": [2]}, "layers": said}) == plain
    assert build({"inputs": {"y": [2]}, "layers": [{"dense": [2, 4]}, {"dense": [4, 1]}]}) != plain
    assert "from" not in json.dumps(plain.architecture)


def test_a_potential_is_one_number_with_forces_and_their_derivatives():
    model = build({"preset": "potential", "sizes": [3, 4, 1]})
    params, x = random(model.parameter_shapes), RNG.normal(size=(5, 3))

    def energy(params, x):
        hidden = jnp.log1p(jnp.exp(params["layer_1.weight"] @ x + params["layer_1.bias"]))
        return (params["layer_2.weight"] @ hidden + params["layer_2.bias"])[0]

    def loss(energy):
        return lambda params: jnp.sum(jax.vmap(jax.grad(energy, 1), (None, 0))(params, x) ** 2)

    assert answer(model, params, x).shape == (5,)
    one, other = (
        jax.jit(jax.grad(loss(each)))(params) for each in (energy, lambda p, x: answer(model, p, x))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), one, other)


REFUSED = [
    (
        graph(BRANCH, TRUNK, {**DOT, "from": ["branch", "trnk"]}),
        "layer_3 (join \"dot\"): option 'from': unknown name 'trnk'; did you mean 'trunk'?",
    ),
    (graph(BRANCH, {**TRUNK, "from": "sensor"}, DOT), "did you mean 'sensors'?"),
    (
        graph(BRANCH, DOT, TRUNK),
        "layer_2 (join \"dot\"): option 'from': 'trunk' is the answer of layer_3, which comes later",
    ),
    (graph(BRANCH, TRUNK, {**DOT, "from": ["branch", "layer_3"]}), "'layer_3' is its own answer"),
    (graph(BRANCH, {**TRUNK, "from": "trunk"}, DOT), "'trunk' is its own answer"),
    (
        graph({"dense": [9, 4]}, TRUNK, DOT),
        "layer_1 (dense [9, 4]): the inputs are sensors, y; say which one it takes",
    ),
    (
        graph(BRANCH, {**TRUNK, "name": "branch"}, DOT),
        "layer_2 \"branch\" (dense [2, 4]): the name 'branch' is taken by layer_1",
    ),
    (graph(BRANCH, {**TRUNK, "name": "y"}, DOT), "the name 'y' is taken by an input"),
    (graph(BRANCH, {**TRUNK, "name": "layer_7"}, DOT), "layers are called 'layer_7' by their place"),
    (graph(BRANCH, {**TRUNK, "name": "a trunk"}, DOT), "layer_2 (dense): a name has letters, digits"),
    (graph(BRANCH, {**TRUNK, "name": 3}, DOT), "at most 128 of them, got 3"),
    (graph(BRANCH, TRUNK, {"join": "dot"}), "layer_3 (join \"dot\"): option 'from' is missing"),
    (graph(BRANCH, TRUNK, {**DOT, "from": "branch"}), "expected a list of at least two names, got 'branch'"),
    (graph(BRANCH, TRUNK, {**DOT, "from": ["branch"]}), "expected a list of at least two names"),
    (graph(BRANCH, TRUNK, {**DOT, "from": ["branch", 2]}), "expected a name, got 2"),
    (graph(BRANCH, {**TRUNK, "from": ["y"]}, DOT), "expected one name, got ['y']; several are joined by"),
    (graph(BRANCH, TRUNK, {**DOT, "join": "dto"}), "unknown join 'dto'; did you mean 'dot'?"),
    (graph(BRANCH), 'no layer takes the input "y"; say which does with "from": "y"'),
    (
        graph(BRANCH, TRUNK),
        'layer_1 "branch" (chain): no layer takes its answer, and it is not among the outputs',
    ),
    (graph(BRANCH, TRUNK, DOT, outputs={"a": "branch"}), 'layer_3 (join "dot"): no layer takes its answer'),
    (
        graph(BRANCH, TRUNK, DOT, outputs={"a": "brunch"}),
        "output 'a': unknown name 'brunch'; did you mean 'branch'?",
    ),
    (graph(BRANCH, TRUNK, DOT, outputs={"a": "y"}), "output 'a': 'y' is an input"),
    (graph(BRANCH, TRUNK, DOT, outputs={"a": 3}), "output 'a': expected the name of a layer, got 3"),
    (graph(BRANCH, TRUNK, DOT, outputs={"": "layer_3"}), "a name has letters"),
    (graph(BRANCH, TRUNK, DOT, outputs={}), '"outputs" looks like'),
    (graph(BRANCH, TRUNK, DOT, outputs=["layer_3"]), '"outputs" looks like'),
    (
        graph(BRANCH, {**TRUNK, "dense": [2, 3]}, DOT),
        'layer_3 (join "dot") cannot dot (4,) and (3,): layer_1 "branch" (chain) gives (4,) '
        'and layer_2 "trunk" (dense [2, 3]) gives (3,)',
    ),
    (
        graph(BRANCH, {**TRUNK, "dense": [3, 4]}, DOT),
        'layer_2 "trunk" (dense [3, 4]) takes (3,), but the input "y" gives (2,)',
    ),
    (
        graph(BRANCH, TRUNK, {"join": "concat", "axis": 1, "from": ["branch", "trunk"]}),
        "joins along axis 1, which (4,) and (4,) do not have",
    ),
    (
        {
            "layers": [
                {"dense": [2, 2]},
                {"join": "dot", "from": ["x", "layer_1"], "name": "a"},
                {"join": "dot", "from": ["a", "a"]},
            ]
        },
        "takes vectors, not the single numbers () and ()",
    ),
    (
        {"layers": [{"residual": [{"dense": [2, 2]}, {"dense": [2, 2], "from": "x"}]}]},
        "layer_1 (residual): layer_1 (dense [2, 2]): no layer takes its answer",
    ),
    (
        {"layers": [{"dense": [2, 2], "name": "a"}, {"residual": [{"join": "sum", "from": ["a", "x"]}]}]},
        "unknown name 'a'; known are layer_1, x",
    ),
    ({"inputs": {"mode": [1]}, "layers": [{"dense": [1, 1]}]}, "'mode' cannot name an input"),
    ({"inputs": {"layer_1": [1]}, "layers": [{"dense": [1, 1]}]}, "'layer_1' cannot name an input"),
    ({"inputs": {"a b": [1]}, "layers": [{"dense": [1, 1]}]}, "an input is named as a variable is"),
    ({"inputs": {"lambda": [1]}, "layers": [{"dense": [1, 1]}]}, "an input is named as a variable is"),
    ({"inputs": {"a": 1}, "layers": [{"dense": [1, 1]}]}, "input 'a' is the shape of one example"),
    ({"inputs": [], "layers": [{"dense": [1, 1]}]}, '"inputs" looks like'),
    ({"inputs": {"a": [1]}, "input": [1], "layers": [{"dense": [1, 1]}]}, "not by both"),
    (
        {"inputs": {"a": None, "b": [1]}, "layers": [{"join": "sum", "from": ["a", "b"]}]},
        "the shape of one example of 'a'",
    ),
]


@pytest.mark.parametrize(("architecture", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_join_is_said_where_it_is(architecture, words):
    with pytest.raises(Refusal) as refused:
        build(architecture)
    assert refused.value.code == "invalid_architecture"
    assert words in refused.value.detail
    assert len(refused.value.detail) < 600
