import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad_models import build
from nablad_models.activations import ACTIVATIONS, SCALED
from nablad_models.mlps import KINKED

POINTS = np.array([-2.5, -0.7, -1e-3, 0.3, 1.9])
STEP = 1e-5
EVERYWHERE = np.concatenate([POINTS, POINTS - STEP, POINTS + STEP, [-1000.0, 0.0, 1000.0]])
erf = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


BY_HAND = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: np.log(sigmoid(x)),
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * sigmoid(x),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tanh_shrink": lambda x: x - np.tanh(x),
    "exp": np.exp,
    "square": np.square,
    "gaussian": lambda x: np.exp(-(x**2)),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "log_softmax": lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
    "sin": np.sin,
    "cos": np.cos,
    "swish": lambda x: x * sigmoid(x),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "celu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
}
WITH_A_NUMBER = [
    ({"sin": 30}, lambda x: np.sin(30 * x)),
    ({"cos": 2.5}, lambda x: np.cos(2.5 * x)),
    ({"swish": 2}, lambda x: x * sigmoid(2 * x)),
    ({"softplus": 3}, lambda x: np.log1p(np.exp(3 * x)) / 3),
    ({"elu": 0.5}, lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
    ({"celu": 0.5}, lambda x: np.where(x > 0, x, 0.5 * np.expm1(x / 0.5))),
    ({"leaky_relu": 0.2}, lambda x: np.where(x > 0, x, 0.2 * x)),
]
CASES = [*BY_HAND.items(), *WITH_A_NUMBER]


def test_every_activation_has_a_closed_form_here():
    assert {*ACTIVATIONS, *SCALED} == set(BY_HAND)


def elementwise(activation):
    """The activation as a function of a vector of examples of one number."""
    model = build({"input": [1], "layers": [{"activation": activation}]})
    return lambda x: model.apply({}, {}, x[:, None], train=False)[0][:, 0]


def test_activations_are_their_closed_forms():
    x = np.stack([POINTS, POINTS[::-1] / 2])
    models = [build({"input": [5], "layers": [{"activation": activation}]}) for activation, _ in CASES]
    answers = jax.jit(lambda x: [model.apply({}, {}, x, train=False)[0] for model in models])(x)
    for (activation, by_hand), got in zip(CASES, answers, strict=True):
        np.testing.assert_allclose(got, by_hand(x), rtol=1e-12, atol=1e-12, err_msg=str(activation))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [activation for activation, _ in CASES], ids=str)
def test_activations_keep_the_dtype(activation, dtype):
    model = build({"input": [5], "layers": [{"activation": activation}]})
    x = jax.ShapeDtypeStruct((2, 5), dtype)
    assert jax.eval_shape(lambda x: model.apply({}, {}, x, train=False)[0], x).dtype == dtype


@pytest.fixture(scope="module")
def derivatives():
    """By activation, its value and three derivatives at each of `EVERYWHERE`."""

    def tower(u, x):
        def first(x):
            return jax.grad(lambda x: jnp.sum(u(x)))(x)

        def second(x):
            return jax.jvp(first, (x,), (jnp.ones_like(x),))[1]

        return jnp.stack([u(x), first(x), *jax.jvp(second, (x,), (jnp.ones_like(x),))])

    # One program for all: compiling is what takes time here.
    return jax.jit(lambda x: {name: tower(elementwise(name), x) for name in BY_HAND})(EVERYWHERE)


@pytest.mark.parametrize("name", BY_HAND)
def test_derivatives_to_third_order_are_those_of_differences(name, derivatives):
    at, below, above, _ = np.split(np.asarray(derivatives[name]), [5, 10, 15], axis=1)
    np.testing.assert_allclose(at[1:], ((above - below) / (2 * STEP))[:-1], atol=1e-5)


@pytest.mark.parametrize("name", sorted({*BY_HAND} - {"exp"}))
def test_derivatives_far_out_and_at_zero_are_finite(name, derivatives):
    assert np.isfinite(derivatives[name]).all()


def test_kinked_activations_are_those_with_a_jump_in_a_derivative():
    """Left and right of where any of them has its kink, to the second derivative."""
    beside = np.array([0.0, 1.0, -1.0, 3.0, -3.0, 6.0])[:, None] + np.array([1e-9, -1e-9])

    @jax.jit
    def jumps(x):
        def of(name):
            def total(x):
                return jnp.sum(elementwise(name)(x))

            one = jax.grad(total)
            return one(x), jax.jvp(one, (x,), (jnp.ones_like(x),))[1]

        return {name: of(name) for name in BY_HAND}

    for name, orders in jumps(beside.reshape(-1)).items():
        largest = max(np.abs(np.diff(each.reshape(-1, 2))).max() for each in np.asarray(orders))
        assert largest > 0.01 if name in KINKED else largest < 1e-5, name


def test_an_activation_beside_a_layer_comes_after_it():
    params = {"layer_1.weight": jnp.array([[2.0]]), "layer_1.bias": jnp.array([1.0])}
    for layers in ([{"dense": [1, 1], "activation": "cos"}], [{"dense": [1, 1]}, {"activation": "cos"}]):
        got, _ = build({"layers": layers}).apply(params, {}, jnp.array([0.5]), train=False)
        assert float(got[0]) == pytest.approx(np.cos(2.0))
