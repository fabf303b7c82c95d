"""An Equinox module hosted: named leaves, mapped batch axes, modes, state, and what is refused."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import from_equinox

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def strict_numerics() -> Iterator[None]:
    """Not here: Equinox's BatchNorm multiplies floats by a number of batches."""
    with jax.numpy_dtype_promotion("standard"):
        yield


RNG = np.random.default_rng(0)


def mlp(**options: Any) -> eqx.nn.MLP:
    return eqx.nn.MLP(2, 3, 4, 1, activation=jnp.tanh, key=KEY, **options)


class Two(eqx.Module):
    """Two inputs, arrays by name."""

    linear: eqx.nn.Linear
    scale: float

    def __call__(self, x: Any, t: Any) -> Any:
        y = self.linear(x) * t * self.scale
        return {"field": y, "energy": jnp.sum(y**2)}


class Normalised(eqx.Module):
    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, rate: float = 0.0) -> None:
        self.linear = eqx.nn.Linear(2, 3, key=KEY)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(rate)

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        y, state = self.norm(self.linear(x), state)
        return self.dropout(y, key=key), state


def stateful(rate: float = 0.0) -> Any:
    module, state = eqx.nn.make_with_state(Normalised)(rate)
    return from_equinox(module, example=jnp.zeros(2), state=state)


def test_leaves_are_named_by_their_places_and_begin_as_the_module_has_them() -> None:
    module = mlp()
    model = from_equinox(module, example=jnp.zeros(2))
    assert dict(model.parameter_shapes) == {
        "layers.0.weight": (4, 2),
        "layers.0.bias": (4,),
        "layers.1.weight": (3, 4),
        "layers.1.bias": (3,),
    }
    assert (dict(model.input_shapes), dict(model.state_shapes)) == ({"x": (2,)}, {})
    assert model.derivative_order is None
    np.testing.assert_array_equal(model.initial_params(7)["layers.0.weight"], module.layers[0].weight)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_batch_axes_are_mapped_in_the_dtype_of_the_parameters(batch: tuple[int, ...], dtype: str) -> None:
    module = mlp()
    model = from_equinox(module, example=(2,))
    params = {name: value.astype(dtype) for name, value in model.initial_params().items()}
    x = RNG.normal(size=(*batch, 2)).astype(dtype)
    y, state = jax.jit(lambda p, x: model.apply(p, {}, x, train=False))(params, x)
    assert (y.dtype, y.shape, state) == (dtype, (*batch, 3), {})
    rows = [module(row.astype("float64")) for row in x.reshape(-1, 2)]
    np.testing.assert_allclose(y.reshape(-1, 3), rows, atol=1e-5)


def test_several_inputs_of_which_one_is_shared_and_answers_by_name() -> None:
    module = Two(eqx.nn.Linear(2, 3, key=KEY), 2.0)
    model = from_equinox(module, inputs={"x": (2,), "t": ()})
    x, t = RNG.normal(size=(4, 2)), RNG.normal(size=4)
    params = model.initial_params()
    each, _ = model.apply(params, {}, x, t, train=False)
    assert {name: part.shape for name, part in each.items()} == {"field": (4, 3), "energy": (4,)}
    np.testing.assert_allclose(each["energy"][1], module(x[1], t[1])["energy"], atol=1e-12)
    shared, _ = model.apply(params, {}, x, t[0], train=False)
    np.testing.assert_allclose(shared["field"][1], module(x[1], t[0])["field"], atol=1e-12)


def test_derivatives_to_any_order_are_those_of_the_module() -> None:
    module = mlp()
    model = from_equinox(module, example=(2,))
    params = model.initial_params()
    x = RNG.normal(size=2)
    found = jax.jacfwd(jax.jacrev(lambda x: model.apply(params, {}, x, train=False)[0]))(x)
    np.testing.assert_allclose(found, jax.jacfwd(jax.jacrev(module))(x), atol=1e-12)


def test_dropout_draws_another_mask_for_each_example_in_train_mode_only() -> None:
    module = eqx.nn.Sequential([eqx.nn.Linear(2, 50, key=KEY), eqx.nn.Dropout(0.5)])
    model = from_equinox(module, example=(2,))
    params, x = model.initial_params(), np.ones((3, 2))
    rest, _ = model.apply(params, {}, x, train=False)
    np.testing.assert_allclose(rest[0], module[0](x[0]), atol=1e-12)
    trained, _ = model.apply(params, {}, x, train=True, key=KEY)
    masks = np.asarray(trained) == 0
    assert 10 < masks[0].sum() < 40
    assert (masks[0] != masks[1]).any()
    again, _ = model.apply(params, {}, x, train=True, key=KEY)
    np.testing.assert_array_equal(trained, again)


def test_batchnorm_in_train_mode_normalises_and_leaves_new_state() -> None:
    model = stateful()
    params, state = model.initial_params(), model.initial_state()
    assert all(name.startswith("norm.") for name in model.state_shapes)
    x = RNG.normal(size=(2, 5, 2))
    y, new = model.apply(params, state, x, train=True, key=KEY)
    np.testing.assert_allclose(np.mean(y, axis=(0, 1)), np.zeros(3), atol=1e-6)
    assert {name: value.shape for name, value in new.items()} == dict(model.state_shapes)
    assert {name: value.dtype for name, value in new.items()} == {n: v.dtype for n, v in state.items()}
    changed = [name for name in state if not np.array_equal(state[name], new[name])]
    assert changed
    # The second time from the new state, the first state untouched.
    model.apply(params, new, x, train=True, key=KEY)
    np.testing.assert_array_equal(model.initial_state()[changed[0]], state[changed[0]])


def test_state_at_rest_in_another_precision() -> None:
    model = stateful()
    params = {name: value.astype("float32") for name, value in model.initial_params().items()}
    for train in (True, False):
        y, new = model.apply(params, model.initial_state(), np.ones((4, 2), "float32"), train=train, key=KEY)
        assert y.dtype == "float32"
        assert {name: value.dtype for name, value in new.items()} == {
            name: value.dtype for name, value in model.initial_state().items()
        }


def test_a_stateful_module_needs_a_batch_in_train_mode() -> None:
    model = stateful()
    params, state = model.initial_params(), model.initial_state()
    assert model.apply(params, state, np.ones(2), train=False)[0].shape == (3,)
    with pytest.raises(Refusal, match="got one example") as refused:
        model.apply(params, state, np.ones(2), train=True, key=KEY)
    assert refused.value.code == "shape_mismatch"


@pytest.mark.parametrize("shape", [(3,), (4, 3), ()])
def test_inputs_that_do_not_fit(shape: tuple[int, ...]) -> None:
    model = from_equinox(mlp(), example=(2,))
    with pytest.raises(Refusal, match=r"examples of shape \(2,\) as x") as refused:
        model.apply(model.initial_params(), {}, np.ones(shape), train=False)
    assert refused.value.code == "shape_mismatch"


def test_batch_axes_that_do_not_broadcast() -> None:
    model = from_equinox(Two(eqx.nn.Linear(2, 3, key=KEY), 2.0), inputs={"x": (2,), "t": ()})
    with pytest.raises(Refusal, match=r"do not broadcast: x \(4,\), t \(3,\)") as refused:
        model.apply(model.initial_params(), {}, np.ones((4, 2)), np.ones(3), train=False)
    assert refused.value.code == "shape_mismatch"


class Pair(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        return self.linear(x), x


class Broken(eqx.Module):
    weight: jax.Array

    def __call__(self, x: Any) -> Any:
        return self.weight * x


def broken(value: Any) -> Any:
    return from_equinox(Broken(jnp.asarray(value)), example=(2,))


WRONG = {
    "no shape": (ValueError, "say the shape of one example", lambda: from_equinox(mlp())),
    "both": (ValueError, "not both", lambda: from_equinox(mlp(), example=(2,), inputs={"x": (2,)})),
    "another shape": (TypeError, "does not work with x", lambda: from_equinox(mlp(), example=(3,))),
    "not a shape": (TypeError, "say the shape", lambda: from_equinox(mlp(), example="two")),
    "a name": (ValueError, "cannot be the name", lambda: from_equinox(mlp(), inputs={"params": (2,)})),
    "two answers": (
        TypeError,
        "gives a tuple",
        lambda: from_equinox(Pair(eqx.nn.Linear(2, 2, key=KEY)), example=(2,)),
    ),
    "complex": (TypeError, "weight is complex128", lambda: broken([1j, 2.0])),
    "NaN": (ValueError, "weight begins with NaN", lambda: broken([np.nan, 2.0])),
    "a class": (TypeError, "takes an Equinox module", lambda: from_equinox(eqx.nn.MLP, example=(2,))),
    "a function": (TypeError, "takes an Equinox module", lambda: from_equinox(jnp.sin, example=(2,))),
    "state forgotten": (
        ValueError,
        "make_with_state",
        lambda: from_equinox(eqx.nn.make_with_state(Normalised)()[0], example=(2,)),
    ),
    "state for none": (
        ValueError,
        "has no state",
        lambda: from_equinox(mlp(), example=(2,), state=eqx.nn.make_with_state(Normalised)()[1]),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_hosted_says_so_at_once(case: str) -> None:
    kind, says, make = WRONG[case]
    with pytest.raises(kind, match=says):
        make()
