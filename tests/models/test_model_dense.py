import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import build, check_params, check_state

SEED = {"layers": [{"dense": [2, 4], "activation": "tanh"}, {"batchnorm": 4}, {"dense": [4, 2]}]}
LUX = json.loads((Path(__file__).parents[2] / "examples" / "lux_manual" / "loss_function1.json").read_text())
TOLERANCE = {"float32": 3e-6, "float64": 1e-6}

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def arrays(leaves, dtype):
    return {name: np.asarray(value, dtype) for name, value in leaves.items()}


def test_names_and_shapes_are_those_of_the_design():
    model = build(SEED)
    assert model.parameter_shapes == {
        "layer_1.weight": (4, 2),
        "layer_1.bias": (4,),
        "layer_2.scale": (4,),
        "layer_2.bias": (4,),
        "layer_3.weight": (2, 4),
        "layer_3.bias": (2,),
    }
    assert list(model.parameter_shapes)[:2] == ["layer_1.weight", "layer_1.bias"]
    assert model.state_shapes == {"layer_2.running_mean": (4,), "layer_2.running_var": (4,)}
    assert len(model.input_shapes["x"]) == 1


@both_dtypes
def test_forward_pass_in_eval_mode_gives_the_lux_manuals_loss(dtype):
    model = build(SEED)
    params, state = arrays(LUX["params"], dtype), arrays(LUX["states"], dtype)
    x, y = (np.asarray(LUX["inputs"][name], dtype).T for name in "xy")

    scale = np.asarray(LUX["constants"]["jac_scale"], dtype)

    @jax.jit
    def loss_of(params, x):
        def predict(x):
            return model.apply(params, state, x, train=False)[0]

        return jnp.sum((predict(x) - y) ** 2) + jnp.sum((scale * jax.jacobian(predict)(x)) ** 2)

    loss = loss_of(params, x)
    assert loss.dtype == dtype
    assert float(loss) == pytest.approx(LUX["reference_float64"]["loss_testmode"], rel=TOLERANCE[dtype])


def test_gradients_in_train_mode_are_the_lux_manuals():
    dtype = "float64"
    model = build(SEED)
    params, state = arrays(LUX["params"], dtype), arrays(LUX["states"], dtype)
    x, y = (np.asarray(LUX["inputs"][name], dtype).T for name in "xy")
    scale = np.asarray(LUX["constants"]["jac_scale"], dtype)

    def loss(params, x):
        def predict(x):
            return model.apply(params, state, x, train=True)[0]

        return jnp.sum((predict(x) - y) ** 2) + jnp.sum((scale * jax.jacobian(predict)(x)) ** 2)

    of_params, of_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    for name, got in {**of_params, "x": of_x.T}.items():
        expected = np.asarray(LUX["reference_float64"][f"grad.{name}"])
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, atol=TOLERANCE[dtype] * np.abs(expected).max(), rtol=0)


@both_dtypes
@pytest.mark.parametrize("batch", [(), (2, 3, 5), (0,)])
def test_dense_layers_are_matrix_products_over_any_batch_axes(dtype, batch):
    model = build({"layers": [{"dense": [3, 4], "activation": "tanh"}, {"dense": [4, 2], "bias": False}]})
    params = model.initial_params(seed=7)
    x = np.random.default_rng(0).normal(size=(*batch, 3)).astype(dtype)
    got, state = jax.jit(lambda p, x: model.apply(p, {}, x, train=False))(arrays(params, dtype), x)
    hidden = np.tanh(x @ params["layer_1.weight"].T + params["layer_1.bias"])
    assert "layer_2.bias" not in model.parameter_shapes
    assert state == {}
    assert got.dtype == dtype
    assert got.shape == (*batch, 2)
    np.testing.assert_allclose(got, hidden @ params["layer_2.weight"].T, rtol=0, atol=TOLERANCE[dtype])


def test_flatten_makes_a_vector_of_each_example():
    model = build({"input": [2, 3], "layers": [{"flatten": True}, {"dense": [6, 1]}]})
    params = model.initial_params()
    x = np.arange(24.0).reshape(4, 2, 3)
    got = jax.jit(lambda p, x: model.apply(p, {}, x, train=False)[0])(arrays(params, "float64"), x)
    expected = x.reshape(4, 6) @ params["layer_2.weight"].T
    np.testing.assert_allclose(got, expected + params["layer_2.bias"])


def test_derivatives_exist_to_any_order():
    model = build({"layers": [{"dense": [1, 1], "activation": "sin"}]})
    params = {"layer_1.weight": jnp.array([[2.0]]), "layer_1.bias": jnp.array([0.3])}

    def u(x):
        return model.apply(params, {}, x[None], train=False)[0][0]

    fourth = u
    for _ in range(4):
        fourth = jax.grad(fourth)
    assert float(jax.jit(fourth)(jnp.array(0.7))) == pytest.approx(16 * np.sin(2 * 0.7 + 0.3), rel=1e-12)


def test_initial_parameters_are_reproducible_bounded_and_independent():
    model = build({"layers": [{"dense": [100, 50]}, {"dense": [50, 50]}, {"dense": [50, 50]}]})
    first, again, other = model.initial_params(1), model.initial_params(1), model.initial_params(2)
    assert list(first) == list(model.parameter_shapes)
    for name, value in first.items():
        assert value.dtype == np.float32
        assert value.shape == model.parameter_shapes[name]
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
    bound = 1 / np.sqrt(100)
    assert 0.9 * bound < np.abs(first["layer_1.weight"]).max() <= bound
    assert abs(np.corrcoef(first["layer_2.weight"].ravel(), first["layer_3.weight"].ravel())[0, 1]) < 0.1


def test_a_layer_more_at_the_end_leaves_the_others_as_they_were():
    short, long = [{"dense": [2, 3]}], [{"dense": [2, 3]}, {"dense": [3, 1]}]
    before, after = (build({"layers": layers}).initial_params(3) for layers in (short, long))
    np.testing.assert_array_equal(before["layer_1.weight"], after["layer_1.weight"])


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("glorot_normal", np.sqrt(2 / 500)),
        ("glorot_uniform", np.sqrt(2 / 500)),
        ("he_normal", np.sqrt(2 / 300)),
        ("he_uniform", np.sqrt(2 / 300)),
    ],
)
def test_initialisation_has_the_deviation_of_its_paper_and_no_bias(init, deviation):
    params = build({"layers": [{"dense": [300, 200], "init": init}]}).initial_params()
    assert params["layer_1.weight"].std() == pytest.approx(deviation, rel=0.02)
    assert not params["layer_1.bias"].any()


def test_wrong_feature_size_is_refused_with_both_shapes():
    model = build(SEED)
    with pytest.raises(Refusal) as refused:
        model.apply({}, {}, jnp.ones((10, 3)), train=False)
    assert refused.value.code == "shape_mismatch"
    assert refused.value.detail == "the model takes examples of shape (2,), got an array of shape (10, 3)."
    with pytest.raises(Refusal, match=r"got an array of shape \(\)"):
        model.apply({}, {}, jnp.ones(()), train=False)


def test_every_missing_extra_and_misshapen_leaf_is_listed():
    model = build(SEED)
    params = model.initial_params()
    check_params(model, params)
    del params["layer_1.bias"]
    params["layer_3.weight"] = params["layer_3.weight"].T
    params["layer_9.weight"] = params["layer_2.scale"]
    with pytest.raises(Refusal) as refused:
        check_params(model, params)
    assert refused.value.code == "invalid_params"
    assert "layer_1.bias (4,) is missing" in refused.value.detail
    assert "layer_9.weight is not one of the model's" in refused.value.detail
    assert "layer_3.weight has shape (4, 2) where (2, 4) is expected" in refused.value.detail
    check_state(model, model.initial_state())
    with pytest.raises(Refusal) as refused:
        check_state(model, {})
    assert refused.value.code == "invalid_state"
