"""An artifact is the function it was exported from: values, and derivatives in any nesting with vmap."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablad.problems import Refusal
from nablad_models import export_model, load_exported
from nablad_models.stablehlo import model as hosting
from nablad_models.stablehlo.code import check_code
from nablad_models.stablehlo.examination import examine
from nablad_models.stablehlo.reading import read

pytest.importorskip("flatbuffers")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2))
IMAGES = RNG.normal(size=(2, 1, 6, 6))


def mlp(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["first"]["w"] + params["first"]["b"]) @ params["second"]["w"]


def conv(params: Any, x: Any) -> Any:
    y = jnp.tanh(jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME"))
    y = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    return y.reshape(-1, 27) @ params["w"]


MLP_PARAMS = {
    "first": {"w": RNG.normal(size=(2, 5)), "b": RNG.normal(size=5)},
    "second": {"w": RNG.normal(size=(5, 1))},
}
CONV_PARAMS = {"kernel": RNG.normal(size=(3, 1, 3, 3)), "w": RNG.normal(size=(27, 1))}


@pytest.fixture(autouse=True, scope="module")
def examined_here() -> Iterator[None]:
    """What the child would look at is looked at in this process: starting one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosting, "examine", lambda data, seconds: check_code(read(data)))
        yield


@dataclass(frozen=True)
class Pair:
    """The artifact and the function it was made from, called alike: `f(params, x)`, x with any batch axes."""

    artifact: Callable[[Any, Any], Any]
    original: Callable[[Any, Any], Any]
    params: Any
    x: Any

    def agree(self, derived: Callable[[Callable[[Any, Any], Any]], Any], tolerance: float = 1e-12) -> None:
        ours, theirs = (jax.tree.leaves(derived(f)) for f in (self.artifact, self.original))
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


KINDS = {"mlp": (mlp, MLP_PARAMS, X), "conv": (conv, CONV_PARAMS, IMAGES)}


@cache
def pair(kind: str, dtype: str, order: int) -> Pair:
    function, params, x = KINDS[kind]
    params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))
    data = export_model(function, params, {"x": x[0]}, derivative_order=order)
    model = load_exported(data, max_bytes=2**20)
    assert model.derivative_order == order

    def artifact(params: Any, x: Any) -> Any:
        flat = {
            jax.tree_util.keystr(path, simple=True, separator="."): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }
        return model.apply(flat, {}, x, train=False)[0]

    def original(params: Any, one: Any) -> Any:
        batch = one.shape[: one.ndim - x[0].ndim]
        return function(params, one.reshape(-1, *x[0].shape)).reshape(*batch, 1)

    return Pair(artifact, original, params, x)


@pytest.fixture(scope="module", params=["mlp", "conv"])
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param, "float64", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_process_that_tries_artifacts_lets_them_pass(kind: str) -> None:
    function, params, x = KINDS[kind]
    examine(export_model(function, params, {"x": x[0]}, derivative_order=2))


def test_an_artifact_knows_its_names_shapes_and_order() -> None:
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32"), MLP_PARAMS)
    data = export_model(mlp, shapes, {"points": jax.ShapeDtypeStruct((2,), "float32")}, derivative_order=0)
    model = load_exported(data, max_bytes=len(data))
    assert dict(model.parameter_shapes) == {"first.b": (5,), "first.w": (2, 5), "second.w": (5, 1)}
    assert dict(model.input_shapes) == {"points": (2,)}
    assert (model.state_shapes, model.initial_state(), model.derivative_order) == ({}, {}, 0)
    assert load_exported(data, max_bytes=len(data)) == model
    assert model.source["stablehlo"]["function"] == "mlp"
    with pytest.raises(Refusal, match="send params"):
        model.initial_params()


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 2)])
def test_values_with_any_batch_axes(both: Pair, batch: tuple[int, ...]) -> None:
    x = np.resize(both.x, (*batch, *both.x.shape[1:]))
    both.agree(lambda f: jax.jit(f)(both.params, x))


def test_gradients_in_parameters_and_inputs(both: Pair) -> None:
    both.agree(lambda f: jax.grad(lambda p, x: jnp.sum(f(p, x) ** 2), (0, 1))(both.params, both.x))


def test_the_gradient_of_a_gradient(both: Pair) -> None:
    def loss(f: Any, params: Any, x: Any) -> Any:
        return jnp.sum(jax.grad(lambda x: jnp.sum(f(params, x)))(x) ** 2)

    both.agree(lambda f: jax.jit(jax.grad(lambda p, x: loss(f, p, x), (0, 1)))(both.params, both.x))


def test_the_gradient_of_a_mapped_gradient(both: Pair) -> None:
    def loss(f: Any, params: Any, x: Any) -> Any:
        return jnp.sum(jax.vmap(jax.grad(lambda one: f(params, one)[0]))(x) ** 2)

    both.agree(lambda f: jax.jit(jax.grad(lambda p, x: loss(f, p, x), (0, 1)))(both.params, both.x))


def test_jacobians_by_mapped_pullbacks(both: Pair) -> None:
    both.agree(lambda f: jax.jit(jax.jacrev(lambda x: f(both.params, x)))(both.x))
    both.agree(lambda f: jax.jit(jax.jacrev(lambda p: f(p, both.x)))(both.params))


def test_the_gradients_of_each_example(both: Pair) -> None:
    def of_each(f: Any) -> Any:
        return jax.vmap(jax.grad(lambda p, x: f(p, x)[0]), (None, 0))

    both.agree(lambda f: jax.jit(of_each(f))(both.params, both.x))


def test_mapped_parameters(both: Pair) -> None:
    many = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf, -leaf]), both.params)
    both.agree(lambda f: jax.jit(jax.vmap(f, (0, None)))(many, both.x))
    both.agree(lambda f: jax.jit(jax.grad(lambda p: jnp.sum(jax.vmap(f, (0, None))(p, both.x) ** 2)))(many))


def test_maps_in_maps(both: Pair) -> None:
    x = np.stack([both.x, both.x + 1])
    both.agree(lambda f: jax.jit(jax.vmap(jax.vmap(jax.grad(lambda x: f(both.params, x)[0]))))(x))
    both.agree(lambda f: jax.jit(jax.vmap(lambda x: f(both.params, x), in_axes=1, out_axes=1))(x))


def test_inside_scan_and_checkpoint(both: Pair) -> None:
    def walk(f: Any, params: Any) -> Any:
        @jax.checkpoint
        def step(carry: Any, x: Any) -> Any:
            return carry + jnp.sum(jax.grad(lambda x: f(params, x)[0])(x) ** 2), None

        return jax.lax.scan(step, jnp.zeros(()), both.x)[0]

    both.agree(lambda f: jax.jit(jax.grad(lambda p: walk(f, p)))(both.params))


def test_a_residual_of_second_order_and_its_gradient() -> None:
    three = pair("mlp", "float64", 3)

    def loss(f: Any, params: Any, x: Any) -> Any:
        def residual(z: Any) -> Any:
            u = jax.grad(lambda z: f(params, z)[0])
            return f(params, z)[0] * u(z)[1] - jax.grad(lambda z: u(z)[0])(z)[0]

        return jnp.mean(jax.vmap(residual)(x) ** 2)

    three.agree(lambda f: jax.jit(jax.value_and_grad(lambda p: loss(f, p, three.x)))(three.params))


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_an_artifact_in_float32(kind: str) -> None:
    single = pair(kind, "float32", 2)

    def loss(f: Any, params: Any, x: Any) -> Any:
        return jnp.mean(jax.grad(lambda x: jnp.sum(f(params, x)))(x) ** 2)

    single.agree(lambda f: f(single.params, single.x), 1e-6)
    single.agree(lambda f: jax.grad(lambda p: loss(f, p, single.x))(single.params), 1e-5)


def test_one_derivative_too_many_is_refused_while_tracing() -> None:
    two = pair("mlp", "float64", 2)

    def third(x: Any) -> Any:
        first = jax.grad(lambda x: jnp.sum(two.artifact(two.params, x)))
        second = jax.grad(lambda x: jnp.sum(first(x) ** 2))
        return jnp.sum(second(x) ** 2)

    jax.eval_shape(third, X)
    with pytest.raises(Refusal, match=r"derivative 3 .* holds 2; .*derivative_order=3") as refused:
        jax.eval_shape(jax.grad(third), X)
    assert refused.value.code == "limit"


@pytest.mark.parametrize("compiled", [False, True])
def test_forward_mode_is_a_type_error_as_that_of_custom_vjp(compiled: bool) -> None:
    two = pair("mlp", "float64", 2)

    def pushed(x: Any) -> Any:
        return jax.jvp(lambda x: two.artifact(two.params, x), (x,), (x,))[1]

    with pytest.raises(TypeError, match="can't apply forward-mode"):
        (jax.jit(pushed) if compiled else pushed)(jnp.asarray(X))


def test_other_dtypes_and_shapes_are_refused() -> None:
    two = pair("mlp", "float64", 2)
    with pytest.raises(Refusal, match=r"computes in float64, .* float32 .*: send all") as refused:
        two.artifact(two.params, X.astype("float32"))
    assert refused.value.code == "wrong_dtype"
    for wrong in (np.ones(3), np.ones((4, 3)), np.ones(())):
        with pytest.raises(Refusal, match=r"takes examples of shape \(2,\)") as refused:
            two.artifact(two.params, wrong)
        assert refused.value.code == "shape_mismatch"
    with pytest.raises(Refusal, match="at least one example"):
        two.artifact(two.params, np.ones((0, 2)))
    # Whole numbers are as good as floats.
    two.agree(lambda f: f(two.params, np.ones((4, 2), "int32").astype("float64")))
    assert two.artifact(two.params, np.ones((4, 2), "int32")).shape == (4, 1)


def test_inputs_and_answers_by_name_in_their_order_and_whole_numbers() -> None:
    def function(params: Any, points: Any, kinds: Any, angle: Any) -> Any:
        y = jnp.sin(points @ params["w"] + angle[:, None]) * params["table"][kinds]
        return {"wave": y, "energy": jnp.sum(y**2, axis=1)}

    params = {"table": RNG.normal(size=(3, 2)), "w": RNG.normal(size=(2, 2))}
    inputs = {"points": np.zeros(2), "kinds": np.zeros((), "int32"), "angle": np.zeros(())}
    model = load_exported(export_model(function, params, inputs), max_bytes=2**20)
    assert list(model.input_shapes.items()) == [("points", (2,)), ("kinds", ()), ("angle", ())]

    kinds, angle = np.array([0, 2, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    answer, _ = model.apply(params, {}, X, kinds, angle, train=True)
    for name, expected in function(params, X, kinds, angle).items():
        np.testing.assert_allclose(answer[name], expected, atol=1e-12)
    # An input without batch axes is that of all examples.
    shared, _ = model.apply(params, {}, X, kinds, np.array(0.1), train=False)
    np.testing.assert_allclose(
        shared["energy"], function(params, X, kinds, np.full(4, 0.1))["energy"], atol=1e-12
    )

    def loss(f: Any, params: Any, angle: Any) -> Any:
        return jnp.sum(jax.grad(lambda angle: jnp.sum(f(params, angle)["energy"]))(angle) ** 2)

    def ours(params: Any, angle: Any) -> Any:
        return model.apply(params, {}, X, kinds, angle, train=False)[0]

    def theirs(params: Any, angle: Any) -> Any:
        return function(params, X, kinds, angle)

    found, expected = (jax.grad(lambda p, f=f: loss(f, p, angle))(params) for f in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found, expected)


MIXING = {
    "the mean": lambda x: x - jnp.mean(x, axis=0),
    "what came before": lambda x: x - jnp.concatenate([0 * x[:1], x[:-1]]),
    "a far neighbour": lambda x: x + jnp.roll(x, 3, axis=0),
    "far out only": lambda x: x * (1 + jax.nn.relu(jnp.mean(x) - 3)),
}


@pytest.mark.parametrize("kind", MIXING)
def test_examples_that_mix_are_mapped_one_by_one(kind: str) -> None:
    def centred(params: Any, x: Any) -> Any:
        return MIXING[kind](params["w"] * x)

    params = {"w": np.array(3.0)}
    model = load_exported(export_model(centred, params, {"x": X[0]}), max_bytes=2**20)

    def apply(x: Any) -> Any:
        return model.apply(params, {}, x, train=False)[0]

    np.testing.assert_allclose(apply(X), centred(params, X), atol=1e-12)
    np.testing.assert_allclose(jax.vmap(apply)(X), [centred(params, one[None])[0] for one in X], atol=1e-12)
    x = 5 * RNG.normal(size=(3, 4, 2))
    np.testing.assert_allclose(jax.vmap(apply)(x), [centred(params, one) for one in x], atol=1e-12)


def test_plain_jax_export_with_no_batch_axis() -> None:
    def potential(params: Any, x: Any) -> Any:
        return jnp.sum(params["k"] * x**2)

    params = {"k": np.array([1.0, 2.0])}
    exported = jax.export.export(jax.jit(potential))(params, X[0])
    model = load_exported(bytes(exported.serialize(vjp_order=2)), max_bytes=2**20)
    assert (dict(model.input_shapes), model.derivative_order) == ({"x": (2,)}, 2)

    def loss(params: Any) -> Any:
        force = jax.grad(lambda x: jnp.sum(model.apply(params, {}, x, train=False)[0]))(X)
        return jnp.sum(force**2)

    np.testing.assert_allclose(jax.grad(loss)(params)["k"], 8 * params["k"] * np.sum(X**2, axis=0))
    answer, _ = model.apply(params, {}, X.reshape(2, 2, 2), train=False)
    np.testing.assert_allclose(answer, np.sum(params["k"] * X**2, axis=1).reshape(2, 2))
