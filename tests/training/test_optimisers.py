"""Optimisers against optax itself, in process."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nablad.problems import Refusal
from nablad.training.messages import Optimiser, SessionStep
from nablad_service.training.optimisers import OPTIMISERS, rule_of, values_of

START = {"net.params[w]": jnp.asarray([[1.0, -2.0], [0.5, 3.0]], jnp.float32), "a": jnp.float32(2.0)}
SCHEDULE = {"schedule": "cosine_decay", "init_value": 0.1, "decay_steps": 20}


def loss(params):
    return sum(jnp.sum((leaf - 0.3) ** 4) for leaf in params.values())


def trained(optimiser, steps=20, of=loss, start=START):
    """The parameters after some steps."""
    rule = rule_of(Optimiser(**optimiser), start)
    values = values_of(Optimiser(**optimiser), rule, list(start))

    @jax.jit
    def update(params, state, values, step):
        value, gradients = jax.value_and_grad(of)(params)
        return rule.update(gradients, state, params, values, step=step, value=value, value_fn=of)

    params, state = start, rule.init(start, values)
    for step in range(steps):
        done = update(params, state, values, jnp.int32(step))
        params, state = done.params, done.state
    return params


def in_process(rule, steps=20, of=loss, start=START):
    @jax.jit
    def update(params, state):
        value, gradients = jax.value_and_grad(of)(params)
        updates, state = rule.update(gradients, state, params, value=value, grad=gradients, value_fn=of)
        return optax.apply_updates(params, updates), state

    rule = optax.with_extra_args_support(rule)
    params, state = start, rule.init(start)
    for _ in range(steps):
        params, state = update(params, state)
    return params


def close(ours, theirs):
    for label in theirs:
        np.testing.assert_allclose(ours[label], theirs[label], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "theirs"),
    [
        ({"name": "adam", "learning_rate": 0.1, "b1": 0.8}, optax.adam(0.1, b1=0.8)),
        ({"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.2}, optax.adamw(0.1, weight_decay=0.2)),
        ({"name": "adamw", "learning_rate": 0.1}, optax.adamw(0.1)),
        ({"name": "sgd", "learning_rate": 1e-3, "momentum": 0.9}, optax.sgd(1e-3, momentum=0.9)),
        ({"name": "lbfgs"}, optax.lbfgs()),
        ({"name": "lbfgs", "memory_size": 3}, optax.lbfgs(memory_size=3)),
        ({"name": "adafactor"}, optax.adafactor()),
        ({"name": "rprop", "learning_rate": 0.01}, optax.rprop(0.01)),
        (
            {"name": "lion", "learning_rate": 0.01, "mu_dtype": "bfloat16"},
            optax.lion(0.01, mu_dtype=jnp.bfloat16),
        ),
        ({"name": "adam", "learning_rate": SCHEDULE}, optax.adam(optax.cosine_decay_schedule(0.1, 20))),
        (
            {
                "name": "sgd",
                "learning_rate": {
                    "schedule": "piecewise_constant",
                    "init_value": 0.01,
                    "boundaries_and_scales": {"5": 0.1, "9": 2},
                },
            },
            optax.sgd(optax.piecewise_constant_schedule(0.01, {5: 0.1, 9: 2.0})),
        ),
        (
            {"name": "adam", "learning_rate": 0.1, "clip_norm": 0.5},
            optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
        ),
    ],
)
def test_a_run_is_that_of_optax(asked, theirs):
    close(trained(asked), in_process(theirs))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_runs_by_its_name(name):
    rated = {} if name in ("lbfgs", "polyak_sgd") else {"learning_rate": 1e-3}
    start = {"v": jnp.asarray([[1.0, -2.0], [0.5, 3.0]], jnp.float32)}
    theirs = in_process(OPTIMISERS[name](**rated), steps=5, start=start)
    close(trained({"name": name, **rated}, steps=5, start=start), theirs)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lbfgs", "lamb"])
def test_what_is_frozen_has_no_part_in_a_step(name):
    rated = {} if name == "lbfgs" else {"learning_rate": 1e-3}
    asked = {"name": name, "clip_norm": 0.5, "frozen": ["net.params"], **rated}
    rest = {"a": START["a"]}
    rule = optax.chain(optax.clip_by_global_norm(0.5), OPTIMISERS[name](**rated))
    theirs = in_process(rule, of=lambda rest: loss({**START, **rest}), start=rest)
    close(trained(asked), {"net.params[w]": START["net.params[w]"], **theirs})


def test_a_state_of_what_is_frozen_stays_as_it_was():
    rule = rule_of(Optimiser(name="adam", learning_rate=0.1), START)
    values = values_of(Optimiser(name="adam", learning_rate=0.1, frozen=["a"]), rule, list(START))
    state = jax.tree.map(jnp.ones_like, rule.init(START, values))
    after = rule.update(START, state, START, values, step=jnp.int32(0), value=jnp.float32(0)).state
    moments = jax.tree_util.tree_leaves_with_path(after)
    frozen = [leaf for path, leaf in moments if "'a'" in jax.tree_util.keystr(path)]
    others = [leaf for path, leaf in moments if "w" in jax.tree_util.keystr(path)]
    assert len(frozen) == 2
    assert all((leaf == 1).all() for leaf in frozen)
    assert all((leaf != 1).any() for leaf in others)


def test_the_values_of_a_step_compile_nothing():
    optimiser = Optimiser(
        name="adamw",
        learning_rate=Optimiser.model_validate({"name": "adam", "learning_rate": SCHEDULE}).learning_rate,
    )
    rule = rule_of(optimiser, START)
    update = jax.jit(
        lambda params, state, values: rule.update(
            params, state, params, values, step=jnp.int32(0), value=jnp.float32(0)
        )
    )
    own = values_of(optimiser, rule, list(START))
    state = rule.init(START, own)
    first = update(START, state, own)
    step = SessionStep(sequence=1, learning_rate=0.25, clip_norm=0.1, weight_decay=0.0, frozen=["a"])
    second = update(START, state, values_of(optimiser, rule, list(START), step))
    assert update._cache_size() == 1
    assert float(first.learning_rate) == pytest.approx(0.1)
    assert float(second.learning_rate) == 0.25
    assert float(second.params["a"]) == 2.0
    np.testing.assert_allclose(
        START["net.params[w]"] - second.params["net.params[w]"],
        0.25 * np.sign(START["net.params[w]"]),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"name": "adm", "learning_rate": 0.1}, "did you mean 'adam'?"),
        ({"name": "mine"}, "there are adabelief, "),
        ({"name": "adam"}, "adam needs 'learning_rate'"),
        (
            {"name": "adam", "learning_rate": 0.1, "epss": 0.9},
            "adam has no setting 'epss'; did you mean 'eps'?",
        ),
        ({"name": "adam", "learning_rate": 0.1, "b1": "x"}, "'b1' of adam must be a number, not 'x'"),
        ({"name": "adam", "learning_rate": 0.1, "b1": True}, "must be a number, not True"),
        ({"name": "adam", "learning_rate": 0.1, "nesterov": 1}, "must be true or false, not 1"),
        ({"name": "adam", "learning_rate": 0.1, "mu_dtype": "float8"}, "must be one of bfloat16, "),
        (
            {"name": "adam", "learning_rate": float("nan")},
            "'learning_rate' of adam must be a number, not nan",
        ),
        ({"name": "sgd", "learning_rate": 0.1, "momentum": [1]}, "'momentum' of sgd must be a number"),
        ({"name": "adamw", "learning_rate": 0.1, "mask": True}, "adamw has no setting 'mask'"),
        ({"name": "sm3", "learning_rate": 0.1}, "optax cannot make sm3 with these settings"),
        ({"name": "lbfgs", "memory_size": 0}, "optax cannot make lbfgs with these settings"),
        ({"name": "lbfgs", "memory_size": 2.5}, "must be a whole number, not 2.5"),
        ({"name": "polyak_sgd", "learning_rate": 0.1}, "did you mean 'max_learning_rate'?"),
        ({"name": "rprop", "learning_rate": SCHEDULE}, "at the first step only"),
        (
            {"name": "adam", "learning_rate": {"schedule": "cosine", "init_value": 1, "decay_steps": 3}},
            "there is no schedule 'cosine'; did you mean",
        ),
        (
            {"name": "adam", "learning_rate": {"schedule": "cosine_decay", "init_value": 0.1}},
            "the schedule cosine_decay needs 'decay_steps'",
        ),
        (
            {
                "name": "adam",
                "learning_rate": {"schedule": "cosine_decay", "init_value": 1, "decay_steps": -3},
            },
            "optax cannot make the schedule cosine_decay",
        ),
    ],
)
def test_an_optimiser_that_cannot_be_is_refused(asked, says):
    with pytest.raises(Refusal) as refused:
        rule_of(Optimiser.model_validate(asked), START)
    assert refused.value.code == "optimiser"
    assert says in refused.value.detail


@pytest.mark.parametrize(
    ("name", "step", "says"),
    [
        ("adam", {"weight_decay": 0.1}, "adam has no weight decay that a step could set; adamaxw, adamw"),
        ("lbfgs", {"learning_rate": 0.1}, "a line search finds the length of its steps"),
        ("adam", {"frozen": ["net.params[v]"]}, "did you mean 'net.params[w]'?"),
        ("adam", {"frozen": ["b"]}, "which is not trained here"),
    ],
)
def test_a_step_cannot_set_what_its_optimiser_lacks(name, step, says):
    rated = {} if name == "lbfgs" else {"learning_rate": 0.1}
    optimiser = Optimiser(name=name, **rated)
    with pytest.raises(Refusal) as refused:
        values_of(optimiser, rule_of(optimiser, START), list(START), SessionStep(sequence=1, **step))
    assert says in refused.value.detail


def test_what_is_frozen_is_named_as_in_wrt():
    labels = ["net.params[layer_0.w]", "net.params[layer_10.w]", "other.params[layer_0.w]", "a"]
    optimiser = Optimiser(name="sgd", learning_rate=0.1)
    rule = rule_of(optimiser, START)

    def frozen(*patterns):
        mask = values_of(optimiser, rule, labels, SessionStep(sequence=1, frozen=list(patterns))).frozen
        return {label for label, one in zip(sorted(labels), mask, strict=True) if one}

    assert frozen("params") == set(labels[:3])
    assert frozen("net.params") == set(labels[:2])
    assert frozen("net.params[layer_0.*]") == {labels[0]}
    assert frozen("*[layer_0.w]", "a") == {labels[0], labels[2], "a"}
    assert frozen() == set()
