"""Every layer beside dense and batchnorm against NumPy written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import build

RNG = np.random.default_rng(0)


def run(layers, x, params=None, state=None, dtype="float64", **call):
    """The answer of a model of these layers at random parameters, and the parameters."""
    model = build(layers if isinstance(layers, dict) else {"layers": layers})
    params = params or {
        name: RNG.normal(size=shape).astype(dtype) for name, shape in model.parameter_shapes.items()
    }
    state = state or model.initial_state()
    x = np.asarray(x, dtype if np.issubdtype(np.asarray(x).dtype, np.floating) else None)
    y, _ = jax.jit(lambda p, s, x: model.apply(p, s, x, **{"train": False, **call}))(params, state, x)
    answer = y.shape[x.ndim - len(model.input_shapes["x"]) :]
    assert len(answer) == len(model.output_shapes)
    assert all(size in (None, got) for size, got in zip(model.output_shapes, answer, strict=True))
    return np.asarray(y), params


def convolve(x, weight, bias, stride=1, pad=0, dilation=1, groups=1):
    """PyTorch's convolution over two axes, by loops."""
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad)])
    out, _, *kernel = weight.shape
    reach = [dilation * (k - 1) + 1 for k in kernel]
    places = [(n - r) // stride + 1 for n, r in zip(x.shape[1:], reach, strict=True)]
    y = np.zeros((out, *places))
    per_in, per_out = x.shape[0] // groups, out // groups
    for o in range(out):
        part = x[o // per_out * per_in :][:per_in]
        for i, j in np.ndindex(*places):
            window = part[
                :,
                i * stride : i * stride + reach[0] : dilation,
                j * stride : j * stride + reach[1] : dilation,
            ]
            y[o, i, j] = (window * weight[o]).sum() + bias[o]
    return y


@pytest.mark.parametrize(
    ("options", "pad"),
    [
        ({}, 0),
        ({"stride": 2, "padding": 1}, 1),
        ({"dilation": 2, "padding": [2, 2]}, 2),
        ({"groups": 2, "padding": "valid"}, 0),
        ({"padding": "same"}, 1),
    ],
)
def test_conv_is_pytorchs(options, pad):
    x = RNG.normal(size=(3, 4, 7, 8))
    y, params = run([{"conv": [4, 6, 3], **options}], x)
    by_hand = [
        convolve(
            each,
            params["layer_1.weight"],
            params["layer_1.bias"],
            options.get("stride", 1),
            pad,
            options.get("dilation", 1),
            options.get("groups", 1),
        )
        for each in x
    ]
    np.testing.assert_allclose(y, by_hand, atol=1e-12)


@pytest.mark.parametrize(
    ("spatial", "options"),
    [
        ((9,), {"stride": 2}),
        ((9,), {"stride": 2, "padding": "same"}),
        ((9,), {"stride": 3, "padding": 1, "output_padding": 1, "dilation": 2}),
        ((5, 6), {"stride": [2, 3], "padding": [1, 0], "groups": 2}),
        ((4, 3, 5), {"groups": 2, "padding": "valid"}),
    ],
)
def test_conv_transpose_is_the_transpose_of_conv_with_the_same_weight(spatial, options):
    """<conv(x), y> = <x, conv_transpose(y)>: no reference needed, and it fixes layout, flip and groups."""
    dims = len(spatial)
    down = {"conv": [4, 6, 3], "dims": dims, "bias": False, **options}
    down.pop("output_padding", None)
    up = {"conv_transpose": [6, 4, 3], "dims": dims, "bias": False, **options}
    y = RNG.normal(size=(6, *spatial))
    back, params = run([up], y)
    x = RNG.normal(size=back.shape)
    forth, _ = run([down], x, params)
    assert forth.shape == y.shape
    assert np.vdot(forth, y) == pytest.approx(np.vdot(x, back), rel=1e-10)


def test_conv_transpose_adds_its_bias_to_each_channel():
    params = {"layer_1.weight": np.zeros((2, 3, 2)), "layer_1.bias": np.array([1.0, 2.0, 3.0])}
    y, _ = run([{"conv_transpose": [2, 3, 2], "dims": 1}], np.ones((2, 4)), params)
    np.testing.assert_array_equal(y, np.repeat([[1.0], [2.0], [3.0]], 5, axis=1))


def test_circular_padding_commutes_with_a_shift():
    x = RNG.normal(size=(2, 8))
    layer = [{"conv": [2, 3, 3], "dims": 1, "padding": "same", "padding_mode": "circular"}]
    y, params = run(layer, x)
    shifted, _ = run(layer, np.roll(x, 3, axis=-1), params)
    np.testing.assert_allclose(shifted, np.roll(y, 3, axis=-1), atol=1e-12)


def test_pools_summarise_their_windows():
    x = RNG.normal(size=(2, 3, 6, 8))
    blocks = x.reshape(2, 3, 3, 2, 4, 2)
    largest = run({"input": [3, None, None], "layers": [{"maxpool": 2}]}, x)[0]
    np.testing.assert_allclose(largest, blocks.max((3, 5)))
    average = run({"input": [3, None, None], "layers": [{"avgpool": 2}]}, x)[0]
    np.testing.assert_allclose(average, blocks.mean((3, 5)))
    layer = {"avgpool": 3, "dims": 1, "stride": 1, "padding": 1}
    line = run({"input": [1, 5], "layers": [layer]}, np.arange(5.0)[None])[0]
    np.testing.assert_allclose(line, [[1 / 3, 1, 2, 3, 7 / 3]])


@pytest.mark.parametrize("target", [1, 2, 3, 5])
def test_adaptive_pool_has_pytorchs_bins(target):
    x = RNG.normal(size=(2, 7))
    y, _ = run({"input": [2, None], "layers": [{"adaptive_avgpool": target, "dims": 1}]}, x)
    bins = [(i * 7 // target, -(-(i + 1) * 7 // target)) for i in range(target)]
    np.testing.assert_allclose(y, np.stack([x[:, a:b].mean(1) for a, b in bins], 1), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layernorm_normalises_each_vector(dtype):
    x = RNG.normal(size=(4, 5, 8))
    y, params = run({"input": [5, 8], "layers": [{"layernorm": 8}]}, x, dtype=dtype)
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    expected = (x - mean) / np.sqrt(var + 1e-5) * params["layer_1.weight"] + params["layer_1.bias"]
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, atol=1e-4 if dtype == "float32" else 1e-12)


def test_layernorm_over_two_axes_and_rmsnorm():
    x = RNG.normal(size=(4, 5, 8))
    y, _ = run([{"layernorm": [5, 8], "affine": False}], x)
    spread = np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, (x - x.mean((1, 2), keepdims=True)) / spread)
    y, params = run([{"rmsnorm": 8}], x)
    root = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, x / root * params["layer_1.weight"])


def test_layernorm_keeps_its_third_derivative_at_a_constant_example():
    """Where the variance is zero Equinox's layer has half of it."""
    model = build({"layers": [{"layernorm": 3, "affine": False, "eps": 1.0}]})
    direction, weight = jnp.array([1.0, -2.0, 4.0]), jnp.array([1.0, 2.0, 3.0])

    def along(t):
        return jnp.sum(weight * model.apply({}, {}, t * direction, train=False)[0])

    third = jax.jit(jax.jacfwd(jax.jacfwd(jax.jacfwd(along))))(0.0)
    # g t (1 + v t^2)^(-1/2) = g t - g v t^3 / 2 + ..., with v the variance of the direction.
    g = float(jnp.sum(weight * (direction - direction.mean())))
    assert float(third) == pytest.approx(-3 * g * float(direction.var()))


def test_groupnorm_normalises_groups_of_channels():
    x = RNG.normal(size=(2, 6, 4, 5))
    y, params = run({"input": [6, None, None], "layers": [{"groupnorm": [3, 6]}]}, x)
    groups = x.reshape(2, 3, 2, 4, 5)
    mean, var = groups.mean((2, 3, 4), keepdims=True), groups.var((2, 3, 4), keepdims=True)
    normal = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    scale, shift = (params[f"layer_1.{name}"][:, None, None] for name in ("weight", "bias"))
    np.testing.assert_allclose(y, normal * scale + shift, atol=1e-12)


def test_embedding_looks_up_rows():
    tokens = np.array([[0, 3, 1], [2, 2, 4]])
    y, params = run([{"embedding": [5, 3]}, {"position_embedding": [4, 3]}], tokens)
    expected = params["layer_1.weight"][tokens] + params["layer_2.weight"][:3]
    np.testing.assert_allclose(y, expected)
    with pytest.raises(Refusal, match="integer dtype, got float64"):
        run([{"embedding": [5, 3]}], np.ones(3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_is_pytorchs(causal, dtype):
    heads, size, length = 2, 6, 5
    x = RNG.normal(size=(3, length, size))
    y, params = run([{"attention": {"heads": heads, "size": size, "causal": causal}}], x, dtype=dtype)
    params = {name.removeprefix("layer_1."): value for name, value in params.items()}
    projected = x @ params["in_proj_weight"].T + params["in_proj_bias"]
    q, k, v = (
        part.reshape(3, length, heads, -1).transpose(0, 2, 1, 3) for part in np.split(projected, 3, axis=-1)
    )
    logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(size / heads)
    if causal:
        logits = np.where(np.tri(length, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    mixed = mixed.transpose(0, 2, 1, 3).reshape(3, length, size)
    assert y.dtype == dtype
    expected = mixed @ params["out_proj.weight"].T + params["out_proj.bias"]
    np.testing.assert_allclose(y, expected, atol=1e-4 if dtype == "float32" else 1e-12)


def test_fourier_features_are_waves_of_a_fixed_matrix():
    layer = {"fourier": {"in": 2, "features": 5, "scale": 3.0, "seed": 1}}
    model = build({"layers": [layer]})
    state = model.initial_state()
    assert model.parameter_shapes == {}
    assert model.state_shapes == {"layer_1.frequencies": (5, 2)}
    again, other = (build({"layers": [{"fourier": {**layer["fourier"], "seed": seed}}]}) for seed in (1, 2))
    np.testing.assert_array_equal(state["layer_1.frequencies"], again.initial_state()["layer_1.frequencies"])
    assert not np.array_equal(state["layer_1.frequencies"], other.initial_state()["layer_1.frequencies"])
    x = RNG.normal(size=(4, 2))
    phase = 2 * np.pi * x @ state["layer_1.frequencies"].T
    y, _ = run([layer], x)
    np.testing.assert_allclose(y, np.concatenate([np.cos(phase), np.sin(phase)], -1), atol=1e-12)
    assert (
        run([layer], x, state={"layer_1.frequencies": np.ones((5, 2))}, dtype="float32")[0].dtype == "float32"
    )


def test_periodic_coordinates_return_after_a_period():
    layers = [{"periodic": {"periods": [2.0, None], "harmonics": 2}}, {"dense": [5, 3], "activation": "tanh"}]
    x = RNG.normal(size=(4, 2))
    y, params = run(layers, x)
    np.testing.assert_allclose(run(layers, x + np.array([2.0, 0.0]), params)[0], y, atol=1e-12)
    assert not np.allclose(run(layers, x + np.array([0.0, 2.0]), params)[0], y)
    features, _ = run(layers[:1], x)
    waves = [f(k * np.pi * x[:, 0]) for k in (1, 2) for f in (np.cos, np.sin)]
    np.testing.assert_allclose(features, np.stack([*waves, x[:, 1]], -1), atol=1e-12)


def test_siren_is_a_sine_of_an_affine_map_with_its_own_spread():
    x = RNG.normal(size=(4, 2))
    y, params = run([{"siren": [2, 3], "omega": 20, "first": True}], x)
    expected = np.sin(20 * (x @ params["layer_1.weight"].T + params["layer_1.bias"]))
    np.testing.assert_allclose(y, expected, atol=1e-12)
    initial = build({"preset": "siren", "sizes": [2, 256, 256, 256, 1]}).initial_params()
    assert 0.45 < np.abs(initial["layer_1.weight"]).max() <= 1 / 2
    assert 0.9 < np.abs(initial["layer_2.weight"]).max() / (np.sqrt(6 / 256) / 30) <= 1


def test_arranging_layers_arrange():
    x = np.arange(24.0).reshape(2, 12)
    y, _ = run([{"reshape": [3, 4]}, {"transpose": [1, 0]}, {"mean": 1}], x)
    np.testing.assert_allclose(y, x.reshape(2, 3, 4).transpose(0, 2, 1).mean(-1))


def test_dropout_drops_in_train_mode_only_and_needs_a_key():
    layers = [{"dense": [50, 50]}, {"dropout": 0.25}]
    model = build({"layers": layers})
    params = model.initial_params()
    x = RNG.normal(size=(40, 50)).astype("float32")
    kept, _ = model.apply(params, {}, x, train=False)
    train = jax.jit(lambda key: model.apply(params, {}, x, train=True, key=key)[0])
    dropped, again = train(jax.random.key(0)), train(jax.random.key(0))
    np.testing.assert_array_equal(dropped, again)
    zero = np.asarray(dropped) == 0
    assert zero.mean() == pytest.approx(0.25, abs=0.05)
    assert len({row.tobytes() for row in zero}) == 40
    np.testing.assert_allclose(dropped[~zero], kept[~zero] / 0.75, rtol=1e-5, atol=1e-6)
    with pytest.raises(Refusal, match=r"layer_2 \(dropout\) in train mode draws at random and needs a key"):
        model.apply(params, {}, x, train=True)


def test_residual_adds_what_went_in():
    layers = [{"residual": [{"dense": [3, 3], "activation": "tanh"}], "activation": "relu"}]
    x = RNG.normal(size=(4, 3))
    y, params = run(layers, x)
    assert list(params) == ["layer_1.layer_1.weight", "layer_1.layer_1.bias"]
    inside = np.tanh(x @ params["layer_1.layer_1.weight"].T + params["layer_1.layer_1.bias"])
    np.testing.assert_allclose(y, np.maximum(inside + x, 0), atol=1e-12)


def test_a_shortcut_has_leaves_of_its_own():
    layers = [{"residual": [{"dense": [3, 2]}], "shortcut": [{"dense": [3, 2], "bias": False}]}]
    x = RNG.normal(size=(4, 3))
    y, params = run(layers, x)
    assert list(params) == [
        "layer_1.layer_1.weight",
        "layer_1.layer_1.bias",
        "layer_1.shortcut.layer_1.weight",
    ]
    body = x @ params["layer_1.layer_1.weight"].T + params["layer_1.layer_1.bias"]
    np.testing.assert_allclose(y, body + x @ params["layer_1.shortcut.layer_1.weight"].T)


@pytest.mark.parametrize(
    ("join", "by_hand"),
    [
        ("concat", lambda a, b: np.concatenate([a, b], -1)),
        ("sum", np.add),
        ("product", np.multiply),
        ("stack", lambda a, b: np.stack([a, b], 1)),
    ],
)
def test_parallel_joins_its_branches(join, by_hand):
    branches = [[{"dense": [3, 2], "bias": False}], [{"dense": [3, 2], "bias": False}, {"activation": "sin"}]]
    x = RNG.normal(size=(4, 3))
    y, params = run([{"parallel": branches, "join": join}], x)
    assert list(params) == ["layer_1.branch_1.layer_1.weight", "layer_1.branch_2.layer_1.weight"]
    first, second = (x @ weight.T for weight in params.values())
    np.testing.assert_allclose(y, by_hand(first, np.sin(second)), atol=1e-12)


def test_state_inside_a_block_is_moved():
    model = build({"layers": [{"residual": [{"batchnorm": 3}]}]})
    assert list(model.state_shapes) == ["layer_1.layer_1.running_mean", "layer_1.layer_1.running_var"]
    x = jnp.asarray(RNG.normal(size=(5, 3)), "float32")
    _, state = model.apply(model.initial_params(), model.initial_state(), x, train=True)
    np.testing.assert_allclose(state["layer_1.layer_1.running_mean"], 0.1 * x.mean(0), rtol=1e-5)
    assert set(state) == set(model.state_shapes)
