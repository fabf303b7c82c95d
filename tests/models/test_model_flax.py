"""Flax modules hosted, of Linen and of NNX: names, batches, modes, state."""

import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import from_flax

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(2, 3, 2)).astype("float32")


@pytest.fixture(autouse=True)
def strict_numerics() -> Iterator[None]:
    """Not here: Flax's normalisation leaves the promotion of dtypes to JAX."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def linen_net(rate: float = 0.0) -> Any:
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        rate: float

        @nn.compact
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
            return nn.Dropout(self.rate, deterministic=not train)(x)

    return Net(rate)


def nnx_net(rate: float = 0.0) -> Any:
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, rngs: Any) -> None:
            self.dense = nnx.Linear(2, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.dropout = nnx.Dropout(rate, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.dropout(self.norm(self.dense(x)))

    return Net(nnx.Rngs(0))


NETS = {"linen": linen_net, "nnx": nnx_net}
both = pytest.mark.parametrize("kind", NETS)


def hosted(kind: str, rate: float = 0.0) -> tuple[Any, Any, Any]:
    model = from_flax(NETS[kind](rate), example=(2,))
    return model, model.initial_params(), model.initial_state()


def test_names_of_linen() -> None:
    model, _, _ = hosted("linen")
    assert dict(model.parameter_shapes) == {
        "BatchNorm_0.bias": (3,),
        "BatchNorm_0.scale": (3,),
        "Dense_0.bias": (3,),
        "Dense_0.kernel": (2, 3),
    }
    assert [*model.state_shapes] == ["batch_stats.BatchNorm_0.mean", "batch_stats.BatchNorm_0.var"]
    assert not np.array_equal(
        model.initial_params(1)["Dense_0.kernel"], model.initial_params()["Dense_0.kernel"]
    )


def test_names_of_nnx() -> None:
    model, _, _ = hosted("nnx")
    assert [*model.parameter_shapes] == ["dense.bias", "dense.kernel", "norm.bias", "norm.scale"]
    assert [*model.state_shapes] == ["norm.mean", "norm.var"]


@both
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_axes_in_eval_mode(kind: str, batch: tuple[int, ...], dtype: str) -> None:
    model, params, state = hosted(kind)
    params = {name: value.astype(dtype) for name, value in params.items()}
    x = np.resize(X, (*batch, 2)).astype(dtype)
    y, same = jax.jit(lambda p, s, x: model.apply(p, s, x, train=False))(params, state, x)
    assert (y.dtype, y.shape) == (dtype, (*batch, 3))
    kernel = next(value for name, value in params.items() if name.endswith("kernel"))
    np.testing.assert_allclose(y, x @ kernel / np.sqrt(1 + 1e-5), atol=1e-5)
    assert all(np.array_equal(same[name], state[name]) for name in state)


@both
def test_train_mode_normalises_over_all_batch_axes_and_leaves_new_state(kind: str) -> None:
    model, params, state = hosted(kind)
    y, new = jax.jit(lambda p, s: model.apply(p, s, X, train=True, key=KEY))(params, state)
    np.testing.assert_allclose(np.mean(y, axis=(0, 1)), np.zeros(3), atol=1e-5)
    assert [*new] == [*state]
    for name in state:
        assert not np.array_equal(new[name], state[name])
        assert new[name].dtype == state[name].dtype
    with pytest.raises(Refusal, match="got one example"):
        model.apply(params, state, X[0, 0], train=True, key=KEY)


@both
def test_dropout_follows_the_key(kind: str) -> None:
    model, params, state = hosted(kind, 0.5)

    def zeros(key: Any) -> Any:
        return (
            np.asarray(
                model.apply(params, state, np.ones((50, 2), "float32") * X[0, :1], train=True, key=key)[0]
            )
            == 0
        )

    assert 40 < zeros(KEY).sum() < 110
    np.testing.assert_array_equal(zeros(KEY), zeros(KEY))
    assert (zeros(KEY) != zeros(jax.random.key(1))).any()


@both
def test_derivatives_of_derivatives(kind: str) -> None:
    model, params, state = hosted(kind)

    def loss(params: Any) -> Any:
        gradient = jax.grad(lambda x: jnp.sum(model.apply(params, state, x, train=True, key=KEY)[0] ** 3))(X)
        return jnp.sum(gradient**2)

    gradients = jax.grad(loss)(params)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert any(np.abs(gradient).max() > 0 for gradient in gradients.values())


@both
def test_two_of_the_same_have_one_digest(kind: str) -> None:
    assert from_flax(NETS[kind](), example=(2,)) == from_flax(NETS[kind](), example=(2,))
    assert from_flax(NETS[kind](), example=(2,)) != from_flax(NETS[kind](0.5), example=(2,))


def test_what_cannot_be_hosted_says_so_at_once() -> None:
    pytest.importorskip("flax")
    with pytest.raises(ValueError, match="say the shape of one example"):
        from_flax(linen_net())
    with pytest.raises(ValueError, match="has an open one"):
        from_flax(linen_net(), example=(None, 2))
    with pytest.raises((TypeError, ValueError), match="does not work with x"):
        from_flax(nnx_net(), example=(3,))
    with pytest.raises(TypeError, match=r"module of flax\.linen or flax\.nnx"):
        from_flax(jnp.sin, example=(3,))


def test_an_answer_without_batch_axis() -> None:
    nn = pytest.importorskip("flax.linen")

    class Total(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return jnp.sum(nn.Dense(3)(x))

    with pytest.raises(ValueError, match="the batch axis comes first"):
        from_flax(Total(), example=(2,))


def test_without_flax_it_says_which_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install flax"):
        from_flax(object(), example=(2,))
