"""What holds for every kind of layer, each in one small architecture."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nablad_models
from nablad_models import build, check_params, check_state
from nablad_models.activations import ACTIVATIONS, SCALED
from nablad_models.initialisers import RULES
from nablad_models.kinds import KINDS
from nablad_models.presets import PRESETS

README = (Path(nablad_models.__file__).parent / "README.md").read_text()
PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
ARCHITECTURES = re.findall(r"```json\n(.*?)```", README + PAGE, re.DOTALL) + re.findall(
    r"`(\{\"(?:preset|layers|inputs)\": .*?\})`", README + PAGE
)
IMAGE = [2, 6, 6]

# kind: (architecture, the shape of one example)
EXAMPLES = {
    "dense": ([{"dense": [3, 2]}], [3]),
    "siren": ([{"siren": [3, 2]}], [3]),
    "conv": ([{"conv": [2, 3, 3], "padding": "same", "activation": "tanh"}], IMAGE),
    "conv_transpose": ([{"conv_transpose": [2, 3, 3], "stride": 2, "activation": "tanh"}], IMAGE),
    "maxpool": ([{"activation": "tanh"}, {"maxpool": 2, "activation": "square"}], IMAGE),
    "avgpool": ([{"avgpool": 2, "activation": "tanh"}], IMAGE),
    "adaptive_avgpool": ([{"adaptive_avgpool": 4, "activation": "tanh"}], IMAGE),
    "mean": ([{"activation": "tanh"}, {"mean": 0}], [4, 3]),
    "batchnorm": ([{"batchnorm": 3, "activation": "tanh"}], [3]),
    "layernorm": ([{"layernorm": 3}], [4, 3]),
    "rmsnorm": ([{"rmsnorm": 3}], [4, 3]),
    "groupnorm": ([{"groupnorm": [2, 4]}], [4, 3]),
    "position_embedding": ([{"position_embedding": [5, 3], "activation": "tanh"}], [4, 3]),
    "attention": ([{"attention": {"heads": 2, "size": 4, "causal": True}}], [3, 4]),
    "fourier": ([{"fourier": {"in": 2, "features": 3, "scale": 0.2}}, {"dense": [6, 2]}], [2]),
    "periodic": ([{"periodic": {"periods": [3.0, None]}}, {"dense": [3, 2]}], [2]),
    "flatten": ([{"flatten": True, "activation": "tanh"}], [4, 3]),
    "reshape": ([{"reshape": [3, 4], "activation": "tanh"}], [4, 3]),
    "transpose": ([{"transpose": [1, 0], "activation": "tanh"}], [4, 3]),
    "dropout": ([{"dropout": 0.5, "activation": "tanh"}], [3]),
    "activation": ([{"activation": "mish"}], [3]),
    "shift": ([{"activation": "tanh"}, {"shift": [3]}], [3]),
    "join": (
        [{"dense": [3, 3]}, {"join": "product", "from": ["layer_1", "x"], "activation": "tanh"}],
        [3],
    ),
    "chain": ([{"chain": [{"dense": [3, 2], "activation": "tanh"}, {"dense": [2, 3]}]}], [3]),
    "residual": ([{"residual": [{"dense": [3, 3], "activation": "tanh"}]}], [3]),
    "parallel": ([{"parallel": [[{"dense": [3, 2]}], [{"siren": [3, 2]}]]}], [3]),
}
PRESET_EXAMPLES = {
    "mlp": ({"sizes": [2, 8, 8, 1]}, [(2,)], (1,)),
    "siren": ({"sizes": [2, 8, 8, 1]}, [(2,)], (1,)),
    "fourier_mlp": ({"sizes": [2, 8, 1], "features": 4}, [(2,)], (1,)),
    "potential": ({"sizes": [2, 8, 1]}, [(2,)], ()),
    "deeponet": ({"branch": [9, 8, 6], "trunk": [2, 8, 6], "outputs": 3}, [(9,), (2,)], (3,)),
    "resnet_small": ({"channels": 3, "classes": 5, "width": 4, "blocks": 1}, [(3, 16, 12)], (5,)),
    "transformer_small": ({"vocabulary": 7, "length": 6, "size": 8, "heads": 2, "depth": 1}, [(5,)], (5, 7)),
}


def example(kind, dtype, batch):
    layers, shape = EXAMPLES[kind]
    model = build({"input": shape, "layers": layers})
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=size).astype(dtype) for name, size in model.parameter_shapes.items()}
    return model, params, model.initial_state(), rng.normal(size=(*batch, *shape)).astype(dtype)


def dtypes_inside(jaxpr):
    """The float types of everything that a traced computation makes, inner ones included."""
    for equation in jaxpr.eqns:
        yield from (
            each.aval.dtype for each in equation.outvars if jnp.issubdtype(each.aval.dtype, jnp.floating)
        )
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda each: isinstance(each, jax.extend.core.ClosedJaxpr)
        ):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                yield from dtypes_inside(inner.jaxpr)


def test_every_kind_has_an_example_here_and_a_row_in_the_readme():
    assert {*EXAMPLES, "embedding"} == set(KINDS)
    assert set(PRESET_EXAMPLES) == set(PRESETS)
    for name in [*KINDS, *PRESETS, *RULES]:
        assert f'"{name}"' in README or f"`{name}`" in README, name
    for row in (*KINDS.values(), *PRESETS.values()):
        for option in row.options:
            assert f'"{option}"' in README, option


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("train", [False, True])
def test_nothing_inside_leaves_the_float_type_of_the_arguments(kind, dtype, train):
    model, params, state, x = example(kind, dtype, (5,))
    state = {name: value.astype(dtype) for name, value in state.items()}
    traced = jax.make_jaxpr(
        lambda params, state, x: model.apply(params, state, x, train=train, key=jax.random.key(0))
    )(params, state, x)
    assert {aval.dtype for aval in traced.out_avals} <= {jnp.dtype(dtype)}
    inside = set(dtypes_inside(traced.jaxpr))
    assert inside <= {jnp.dtype(dtype)} or (kind == "dropout" and train)


@pytest.fixture(scope="module")
def second_of_two():
    """By kind, the answer to the second example in a batch, and on its own."""
    cases = {kind: example(kind, "float64", (2,)) for kind in EXAMPLES}
    models = {kind: case[0] for kind, case in cases.items()}
    arrays = {kind: case[1:] for kind, case in cases.items()}

    def both(model, params, state, x):
        (in_batch, _), (alone, _) = (model.apply(params, state, each, train=False) for each in (x, x[1]))
        return in_batch[1], alone

    # One program for all: compiling is what takes time here.
    return jax.jit(lambda arrays: {kind: both(models[kind], *arrays[kind]) for kind in models})(arrays)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_batch_is_its_examples(kind, second_of_two):
    in_batch, alone = second_of_two[kind]
    np.testing.assert_allclose(in_batch, alone, atol=1e-12)


# Those whose derivatives are rules of their own in JAX and not only products and sums of elementwise ones.
@pytest.mark.parametrize("kind", ["conv_transpose", "maxpool"])
def test_second_derivatives_agree_in_two_nestings(kind):
    model, params, state, x = example(kind, "float64", (2,))

    def total(x):
        return jnp.sum(jnp.sin(model.apply(params, state, x, train=False)[0]))

    @jax.jit
    def both(x, v):
        return jax.jvp(jax.grad(total), (x,), (v,))[1], jax.grad(lambda x: jax.jvp(total, (x,), (v,))[1])(x)

    one, other = both(x, np.cos(x))
    np.testing.assert_allclose(one, other, atol=1e-9)
    assert np.abs(one).max() > 0


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_normal_form_builds_the_same_model(kind):
    layers, shape = EXAMPLES[kind]
    model = build({"input": shape, "layers": layers})
    again = build(json.loads(json.dumps(model.architecture)))
    assert again == model
    assert again.architecture == model.architecture
    assert again.parameter_shapes == model.parameter_shapes


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_architectures(preset):
    options, shapes, answer = PRESET_EXAMPLES[preset]
    model = build({"preset": preset, **options})
    assert model == build(PRESETS[preset].make(**options))
    assert model == build(model.architecture)
    params, state = model.initial_params(), model.initial_state()
    check_params(model, params)
    check_state(model, state)
    dtype = "int32" if preset == "transformer_small" else "float32"
    inputs = [jax.ShapeDtypeStruct((2, *shape), dtype) for shape in shapes]
    for train in (False, True):
        y, new = jax.eval_shape(
            lambda p, s, x, train=train: model.apply(p, s, *x, train=train), params, state, inputs
        )
        assert y.shape == (2, *answer)
        assert y.dtype == "float32"
        assert {name: leaf.shape for name, leaf in new.items()} == model.state_shapes


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_architectures_on_the_pages_are_built(text):
    assert build(json.loads(text)).parameter_shapes


def test_activations_in_the_readme_are_all():
    for name in (*ACTIVATIONS, *SCALED):
        assert f"`{name}`" in README, name
