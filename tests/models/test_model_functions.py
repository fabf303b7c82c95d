"""A pair of functions hosted, and the identity of what is written in Python."""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import check_params, from_equinox, from_functions
from nablad_models.python.identity import digest_of

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(4, 2))


def init(key: Any) -> Any:
    return {"dense": [jax.random.normal(key, (2, 3), "float64")], "bias": jnp.zeros(3, "float64")}


def apply(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["dense"][0] + params["bias"])


def test_a_tree_of_parameters_by_dotted_names() -> None:
    model = from_functions(init, apply, inputs={"x": (2,)})
    assert dict(model.parameter_shapes) == {"bias": (3,), "dense.0": (2, 3)}
    params = model.initial_params()
    check_params(model, params)
    np.testing.assert_array_equal(params["dense.0"], init(jax.random.key(0))["dense"][0])
    assert not np.array_equal(model.initial_params(1)["dense.0"], params["dense.0"])
    for batch in ((), (4,), (2, 2)):
        x = np.resize(X, (*batch, 2))
        y, _ = model.apply(params, {}, x, train=False)
        np.testing.assert_allclose(y, apply({"dense": [params["dense.0"]], "bias": params["bias"]}, x))
    assert model.source == {"python": f"{__name__}:apply"}


def test_computing_follows_the_parameters() -> None:
    model = from_functions(init, apply, inputs={"x": (2,)})
    params = {name: value.astype("float32") for name, value in model.initial_params().items()}
    assert model.apply(params, {}, X.astype("float32"), train=False)[0].dtype == "float32"


def test_the_order_of_the_mapping_that_comes_does_not_matter() -> None:
    model = from_functions(init, apply)
    params = model.initial_params()
    y, _ = model.apply(params, {}, X, train=False)
    turned, _ = model.apply(dict(reversed(params.items())), {}, X, train=False)
    np.testing.assert_array_equal(y, turned)


def test_without_shapes_inputs_have_the_names_of_the_arguments() -> None:
    model = from_functions(lambda key: {}, lambda params, points, t, scale=2.0: points * t * scale)
    assert dict(model.input_shapes) == {"points": None, "t": None}
    np.testing.assert_allclose(model.apply({}, {}, X, X, train=False)[0], 2 * X**2)


def test_mode_key_and_state_where_they_are_asked_for() -> None:
    def step(params: Any, state: Any, x: Any, *, train: bool, key: Any) -> Any:
        noise = jax.random.normal(key, x.shape, x.dtype) if train else 0.0
        return {"y": params["w"] * x + noise}, {"seen": state["seen"] + x.shape[0]}

    model = from_functions(
        lambda key: {"w": jnp.ones((), "float64")},
        step,
        inputs={"x": (2,)},
        state={"seen": jnp.zeros((), "int32")},
        train=True,
        key=True,
    )
    assert dict(model.state_shapes) == {"seen": ()}
    params, state = model.initial_params(), model.initial_state()
    y, new = model.apply(params, state, X, train=True, key=KEY)
    assert (int(new["seen"]), int(state["seen"])) == (4, 0)
    assert not np.allclose(y["y"], X)
    y, new = model.apply(params, state, X, train=False)
    np.testing.assert_array_equal(y["y"], X)
    assert int(new["seen"]) == 0


def test_first_parameters_are_as_precise_as_where_they_were_written() -> None:
    with jax.enable_x64(False):
        model = from_functions(
            lambda key: {"w": jax.random.normal(key, (2,))}, lambda params, x: params["w"] * x
        )
    assert jax.config.jax_enable_x64
    assert model.initial_params()["w"].dtype == "float32"


def test_inputs_that_do_not_fit() -> None:
    model = from_functions(init, apply, inputs={"x": (2,)})
    with pytest.raises(Refusal) as refused:
        model.apply(model.initial_params(), {}, np.ones((4, 3)), train=False)
    assert refused.value.code == "shape_mismatch"


def with_params(params: Any) -> Any:
    return lambda: from_functions(lambda key: params, lambda params, x: x)


def answering(answer: Any) -> Any:
    return lambda: from_functions(init, lambda params, x: answer, inputs={"x": (2,)})


WRONG = {
    "whole numbers": (TypeError, "n is int64; parameters are arrays of floats", with_params({"n": 3})),
    "a text": (TypeError, "takes a key and gives a tree of arrays", with_params({"w": "tanh"})),
    "one bare array": (TypeError, "put it into a dict", with_params(jnp.ones(2))),
    "one name twice": (
        ValueError,
        "two arrays have the name 'a.b'",
        with_params({"a.b": jnp.ones(2), "a": {"b": jnp.ones(2)}}),
    ),
    "no function": (TypeError, "two functions", lambda: from_functions({"w": 1}, apply)),
    "no key": (TypeError, "takes a key", lambda: from_functions(dict, apply)),
    "no inputs": (ValueError, "at least one input", lambda: from_functions(init, lambda params: params)),
    "a tuple": (TypeError, "gives a tuple", answering((jnp.ones(2), jnp.ones(2)))),
    "a number": (TypeError, "gives a float", answering(1.0)),
    "nothing": (TypeError, "gives None", answering(None)),
    "a tree": (TypeError, "under 'a' it gives a list", answering({"a": [jnp.ones(2)]})),
    "wrong shapes": (
        TypeError,
        r"does not work with x \(2, 5\)",
        lambda: from_functions(init, apply, inputs={"x": (5,)}),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_hosted_says_so_at_once(case: str) -> None:
    kind, says, make = WRONG[case]
    with pytest.raises(kind, match=says):
        make()


def test_parameters_that_begin_with_nan_are_refused_when_they_are_drawn() -> None:
    model = from_functions(lambda key: {"w": jnp.full(2, jnp.nan)}, lambda params, x: x)
    with pytest.raises(ValueError, match="parameter w begins with NaN"):
        model.initial_params()


# -- identity


def scaled(factor: Any) -> str:
    return from_functions(init, lambda params, x: x * factor, inputs={"x": (2,)}).digest


def test_functions_that_compute_the_same_have_one_digest() -> None:
    assert scaled(2.0) == scaled(2.0)
    assert scaled(np.arange(2.0)) == scaled(np.arange(2.0))
    assert from_functions(init, apply) == from_functions(init, apply)


def test_functions_that_differ_in_code_or_in_what_they_close_over_do_not() -> None:
    digests = [
        scaled(2.0),
        scaled(3.0),
        scaled(np.arange(2.0)),
        scaled(np.ones(2)),
        from_functions(init, apply, inputs={"x": (2,)}).digest,
        from_functions(init, apply).digest,
        from_functions(init, lambda params, x: x + 1).digest,
        from_functions(init, lambda params, x: x + 2).digest,
        from_functions(init, functools.partial(apply)).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_modules_of_other_structure_differ_other_weights_do_not() -> None:
    def net(seed: int, width: int, activation: Any) -> str:
        module = eqx.nn.MLP(2, 1, width, 1, activation=activation, key=jax.random.key(seed))
        return from_equinox(module, example=(2,)).digest

    assert net(0, 8, jnp.tanh) == net(1, 8, jnp.tanh)
    assert len({net(0, 8, jnp.tanh), net(0, 9, jnp.tanh), net(0, 8, jnp.sin), net(0, 8, jax.nn.gelu)}) == 4


class Mute:
    __slots__ = ()


def test_what_cannot_be_described_is_only_equal_to_itself_by_chance() -> None:
    assert digest_of(Mute()) != digest_of(Mute())


def test_what_encloses_itself_is_described() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest_of(loop) != digest_of([1])


FILE = """
import equinox as eqx, jax, jax.numpy as jnp
from nablad_models import from_equinox, from_functions

class Net(eqx.Module):
    linear: eqx.nn.Linear
    def __call__(self, x):
        return jnp.tanh(self.linear(x))

MODELS = {
    "net": from_equinox(Net(eqx.nn.Linear(2, 3, key=jax.random.key(0))), example=(2,)),
    "pair": from_functions(lambda key: {"w": jnp.ones(2)}, lambda params, x: jax.nn.silu(params["w"] * x)),
}
"""


def test_the_digest_outlives_the_process_and_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my_models.py"

    def here(text: str) -> list[str]:
        file.write_text(text)
        spec = importlib.util.spec_from_file_location("my_models", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return [model.digest for model in module.MODELS.values()]

    script = "import jax, my_models; print(*[model.digest for model in my_models.MODELS.values()])"
    file.write_text(FILE)
    elsewhere = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"JAX_ENABLE_X64": "1", "PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
    ).stdout.split()
    first = here(FILE)
    assert first == elsewhere
    assert not set(here(FILE.replace("jnp.tanh", "jnp.sin"))) & set(first)
