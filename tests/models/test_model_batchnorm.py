import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import build

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
RNG = np.random.default_rng(0)
PARAMS = {"layer_1.scale": RNG.normal(size=3), "layer_1.bias": RNG.normal(size=3)}
STATE = {"layer_1.running_mean": RNG.normal(size=3), "layer_1.running_var": RNG.uniform(0.5, 2, size=3)}


def arrays(leaves, dtype):
    return {name: np.asarray(value, dtype) for name, value in leaves.items()}


def run(model, params, state, x, train):
    return jax.jit(lambda params, state, x: model.apply(params, state, x, train=train))(params, state, x)


def by_hand(x, mean, var, eps=1e-5):
    return (x - mean) / np.sqrt(var + eps) * PARAMS["layer_1.scale"] + PARAMS["layer_1.bias"]


@both_dtypes
@pytest.mark.parametrize("batch", [(), (5,), (3, 5)])
def test_eval_mode_uses_the_running_statistics_and_leaves_them(dtype, batch):
    model = build({"layers": [{"batchnorm": 3}]})
    x = RNG.normal(size=(*batch, 3))
    y, state = run(model, arrays(PARAMS, dtype), arrays(STATE, dtype), x.astype(dtype), False)
    expected = by_hand(x, STATE["layer_1.running_mean"], STATE["layer_1.running_var"])
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, atol=1e-5 if dtype == "float32" else 1e-12)
    for name, value in arrays(STATE, dtype).items():
        np.testing.assert_array_equal(state[name], value)


@both_dtypes
@pytest.mark.parametrize("batch", [(7,), (3, 5)])
def test_train_mode_normalises_by_the_biased_and_keeps_the_unbiased_variance(dtype, batch):
    model = build({"layers": [{"batchnorm": 3}]})
    x = RNG.normal(size=(*batch, 3))
    y, state = run(model, arrays(PARAMS, dtype), arrays(STATE, dtype), x.astype(dtype), True)
    rows, atol = x.reshape(-1, 3), 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(y, by_hand(x, rows.mean(0), rows.var(0)), atol=atol)
    mean = 0.9 * STATE["layer_1.running_mean"] + 0.1 * rows.mean(0)
    var = 0.9 * STATE["layer_1.running_var"] + 0.1 * rows.var(0, ddof=1)
    np.testing.assert_allclose(state["layer_1.running_mean"], mean, atol=atol)
    np.testing.assert_allclose(state["layer_1.running_var"], var, atol=atol)
    assert {value.dtype for value in state.values()} == {jnp.dtype(dtype)}


def test_feature_maps_have_one_statistic_a_channel():
    model = build({"input": [3, None, None], "layers": [{"batchnorm": 3, "affine": False}]})
    x = RNG.normal(size=(4, 3, 5, 6))
    y, state = run(model, {}, arrays(STATE, "float64"), x, True)
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-12)
    unbiased = x.transpose(1, 0, 2, 3).reshape(3, -1).var(1, ddof=1)
    np.testing.assert_allclose(
        state["layer_1.running_var"], 0.9 * STATE["layer_1.running_var"] + 0.1 * unbiased
    )


def test_state_at_rest_in_another_dtype_does_not_promote_the_answer():
    model = build({"layers": [{"batchnorm": 3}]})
    for train in (False, True):
        y, state = run(
            model, arrays(PARAMS, "float32"), arrays(STATE, "float64"), np.ones((4, 3), "float32"), train
        )
        assert y.dtype == "float32"
        assert state["layer_1.running_var"].dtype == "float64"


def test_initial_state_is_mean_zero_and_variance_one():
    model = build({"layers": [{"batchnorm": 3}]})
    params, state = model.initial_params(), model.initial_state()
    np.testing.assert_array_equal(params["layer_1.scale"], np.ones(3, np.float32))
    np.testing.assert_array_equal(params["layer_1.bias"], np.zeros(3, np.float32))
    np.testing.assert_array_equal(state["layer_1.running_mean"], np.zeros(3, np.float32))
    np.testing.assert_array_equal(state["layer_1.running_var"], np.ones(3, np.float32))
    assert {value.dtype for value in (*params.values(), *state.values())} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("x", "why"), [(jnp.ones(3), "without a batch axis"), (jnp.ones((1, 3)), "at least two")]
)
def test_train_mode_without_a_batch_is_refused(x, why):
    model = build({"layers": [{"batchnorm": 3}]})
    with pytest.raises(Refusal, match=why) as refused:
        run(model, arrays(PARAMS, "float64"), arrays(STATE, "float64"), x, True)
    assert refused.value.code == "shape_mismatch"
    assert "layer_1 (batchnorm)" in refused.value.detail


def test_the_batch_statistics_are_differentiated_through():
    model = build({"layers": [{"batchnorm": 3, "affine": False}]})
    x = RNG.normal(size=(6, 3))

    def total(x):
        return jnp.sum(run(model, {}, arrays(STATE, "float64"), x, True)[0])

    # The answer sums to zero over a batch whatever x is.
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), np.zeros((6, 3)), atol=1e-12)
