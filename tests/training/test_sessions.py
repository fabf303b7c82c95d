"""Sessions on a real server against JAX and optax in process."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sessions_over_http import begun, problem

LOSS = "mean((model(x) - y)**2)"
STEPS = 500 if os.environ.get("LONG") else 60
LABELS = ("layer_1.weight", "layer_1.bias", "layer_2.weight", "layer_2.bias")
ADAM = {"name": "adam", "learning_rate": 1e-2}


def batches(count, size=16):
    rng = np.random.default_rng(3)
    for _ in range(count):
        x = rng.uniform(-1, 1, (size, 2)).astype(np.float32)
        yield x, np.sin(3 * x[:, :1]) * x[:, 1:]


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["layer_1.weight"].T + params["layer_1.bias"])
    return jnp.mean((hidden @ params["layer_2.weight"].T + params["layer_2.bias"] - y) ** 2)


def start_of(http):
    answer = http.get("/v1/models/net/params", headers={"Accept": "application/json; arrays=base64"})
    import base64

    return {
        name: np.frombuffer(base64.b64decode(one["data"]), one["dtype"]).reshape(one["shape"])
        for name, one in answer.json()["params"].items()
    }


def in_process(start, rule, data, every=1, decay=0.0):
    """Parameters after the steps; gradients of `every` batches in their mean."""
    rule = optax.with_extra_args_support(rule)

    @jax.jit
    def update(params, state, xs, ys):
        def mean(params):
            size = sum(jnp.sum(leaf**2) for leaf in params.values())
            return sum(loss(params, x, y) for x, y in zip(xs, ys, strict=True)) / len(xs) + decay * size

        value, gradients = jax.value_and_grad(mean)(params)
        extra = {"value": value, "grad": gradients, "value_fn": mean}
        updates, state = rule.update(gradients, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = {name: jnp.asarray(leaf) for name, leaf in start.items()}
    state = rule.init(params)
    data = list(data)
    for first in range(0, len(data), every):
        xs, ys = zip(*data[first : first + every], strict=True)
        params, state = update(params, state, xs, ys)
    return params


def close(ours, theirs, rtol=2e-4, atol=2e-5):
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, atol=atol, err_msg=name)


COSINE = {"schedule": "cosine_decay", "init_value": 0.02, "decay_steps": STEPS}


@pytest.mark.parametrize(
    ("optimiser", "rule"),
    [
        (ADAM, optax.adam(1e-2)),
        (
            {"name": "adamw", "learning_rate": COSINE, "weight_decay": 1e-2, "clip_norm": 0.05},
            optax.chain(
                optax.clip_by_global_norm(0.05),
                optax.adamw(optax.cosine_decay_schedule(0.02, STEPS), weight_decay=1e-2),
            ),
        ),
        ({"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}, optax.sgd(0.05, momentum=0.9)),
    ],
)
@pytest.mark.parametrize("every", [1, 4])
def test_a_session_is_the_run_of_optax(trainer, optimiser, rule, every):
    session = begun(trainer, models={"model": "net"}, optimiser=optimiser)
    steps = STEPS if every == 1 else STEPS // 4
    data = list(batches(steps * every))
    for index, (x, y) in enumerate(data):
        session.call("gradient", loss=LOSS, inputs={"x": x, "y": y})
        if (index + 1) % every == 0:
            told = session.call("step")
    assert told["step"] == steps
    close(session.get("params")["params"]["model"], in_process(start_of(trainer), rule, data, every))


def test_a_session_with_lbfgs_is_the_run_of_optax_in_float64(trainer):
    """Its line search computes the loss of both batches again.

    The last term gives the loss a minimum. Without it rounding grows from step to step: two runs of optax
    itself, one with the batches joined, are 2e-3 apart after 125 steps.
    """
    program = f"{LOSS} + 0.01 * sum(ravel(model.params)**2)"
    start = {name: leaf.astype(np.float64) for name, leaf in start_of(trainer).items()}
    bound = {"model": {"name": "net", "params": start}}
    session = begun(trainer, models=bound, optimiser={"name": "lbfgs"})
    wide = [(x.astype(np.float64), y.astype(np.float64)) for x, y in batches(2)]
    data = wide * STEPS
    for first in range(0, len(data), 2):
        for x, y in data[first : first + 2]:
            session.call("gradient", loss=program, inputs={"x": x, "y": y})
        session.call("step")
    with jax.enable_x64(True):
        expected = in_process(start, optax.lbfgs(), data, every=2, decay=0.01)
    close(session.get("params")["params"]["model"], expected, rtol=1e-7, atol=1e-9)


def test_the_weights_of_batches_count_in_the_mean(trainer):
    session = begun(trainer, models={"model": "net"}, optimiser=ADAM)
    (x, y), (x2, y2) = batches(2)
    given = [
        session.call("gradient", loss=LOSS, inputs={"x": x, "y": y}, weight=3.0, gradients=True),
        session.call("gradient", loss=LOSS, inputs={"x": x2, "y": y2}, weight=1.0, gradients=True),
    ]
    first, second = (one["gradients"]["model.params"] for one in given)
    mean = session.get("gradients")
    assert mean["accumulated"] == 2
    close(
        mean["gradients"]["model.params"],
        {name: (3 * first[name] + second[name]) / 4 for name in LABELS},
        rtol=1e-5,
        atol=1e-7,
    )
    norm = np.sqrt(sum((one**2).sum() for one in first.values()))
    assert given[0]["norms"] == {"model.params": pytest.approx(norm, rel=1e-5)}
    session.call("step")
    assert session.get("gradients") == {"accumulated": 0, "gradients": {}}


def test_a_frozen_layer_stays_and_what_a_step_names_holds_for_it_alone(trainer):
    frozen = {"name": "adam", "learning_rate": 1e-2, "frozen": ["model.params[layer_1.*]"]}
    session = begun(trainer, models={"model": "net"}, optimiser=frozen)
    start = start_of(trainer)
    data = list(batches(20))
    for x, y in data:
        session.call("gradient", loss=LOSS, inputs={"x": x, "y": y})
        session.call("step")
    rule = optax.partition(
        {"train": optax.adam(1e-2), "stay": optax.set_to_zero()},
        {name: "stay" if name.startswith("layer_1") else "train" for name in LABELS},
    )
    trained = session.get("params")["params"]["model"]
    close(trained, in_process(start, rule, data))
    np.testing.assert_array_equal(trained["layer_1.weight"], start["layer_1.weight"])
    x, y = data[0]
    session.call("gradient", loss=LOSS, inputs={"x": x, "y": y})
    told = session.call("step", learning_rate=0.0, frozen=[])
    assert (told["learning_rate"], told["update_norm"]) == (0.0, 0.0)
    session.call("gradient", loss=LOSS, inputs={"x": x, "y": y})
    assert session.call("step")["learning_rate"] == pytest.approx(0.01)


def test_inputs_are_trained_beside_models_and_terms_are_told(trainer):
    session = begun(
        trainer,
        models={"model": "net"},
        trained={"scale": 2.0},
        optimiser={"name": "sgd", "learning_rate": 0.1},
    )
    ((x, y),) = batches(1)
    program = "fit = mean((scale * model(x) - y)**2)\nsize = scale**2\nfit + 0.5 * size"
    told = session.call(
        "gradient",
        loss=program,
        inputs={"x": x, "y": y},
        terms=["fit", "size"],
        term_gradients="norms",
        outputs=["size"],
    )
    assert told["terms"]["size"] == told["outputs"]["size"] == 4.0
    assert told["value"] == pytest.approx(told["terms"]["fit"] + 2.0, rel=1e-6)
    assert told["term_norms"]["size"] == {"model.params": 0.0, "scale": 4.0}

    def value(scale):
        params = start_of(trainer)
        hidden = jnp.tanh(x @ params["layer_1.weight"].T + params["layer_1.bias"])
        guess = hidden @ params["layer_2.weight"].T + params["layer_2.bias"]
        return jnp.mean((scale * guess - y) ** 2) + 0.5 * scale**2

    session.call("step")
    expected = 2.0 - 0.1 * jax.grad(value)(jnp.float32(2.0))
    np.testing.assert_allclose(session.get("params")["trained"]["scale"], expected, rtol=1e-5)
    # A program may use some of what is trained.
    told = session.call("gradient", loss="scale**2")
    assert told["norms"].keys() == {"scale"}


def test_batch_statistics_are_kept_between_calls(trainer):
    layers = [{"dense": [2, 4]}, {"batchnorm": 4}, {"dense": [4, 1]}]
    trainer.put("/v1/models/normed", json={"architecture": {"layers": layers}}).raise_for_status()
    session = begun(trainer, models={"model": {"name": "normed", "mode": "train"}}, optimiser=ADAM)
    before = session.get("params")["state"]["model"]
    for x, y in batches(2):
        session.call("gradient", loss=LOSS, inputs={"x": x, "y": y})
    after = session.get("params")["state"]["model"]
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before)


def test_random_operators_draw_anew_in_each_call_unless_a_seed_is_given(trainer):
    def values(of_session, **members):
        session = begun(trainer, models={"model": "net"}, optimiser=ADAM, seed=of_session)
        ((x, _),) = batches(1)
        program = "mean(model(x + normal(x, 1, 0)[0]))"
        told = [session.call("gradient", loss=program, inputs={"x": x}, **members) for _ in range(3)]
        return [one["value"] for one in told]

    first = values(1)
    assert len(set(first)) == 3
    assert values(1) == first
    assert values(2)[0] != first[0]
    assert len(set(values(1, seed=5))) == 1


def test_the_same_program_in_two_sessions_is_compiled_once(trainer):
    ((x, y),) = batches(1)
    compiled = []
    for _ in range(2):
        session = begun(trainer, models={"model": "net"}, optimiser=ADAM)
        answer = session.call("gradient", loss=f"{LOSS} + 0.125", inputs={"x": x, "y": y})
        compiled.append(answer["timing"]["compiled"])
    assert compiled == [True, False]


@pytest.mark.parametrize(
    "optimiser", [ADAM, {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}, {"name": "lbfgs"}]
)
def test_a_gradient_that_steps_is_a_gradient_and_a_step(trainer, optimiser):
    one, two = (begun(trainer, models={"model": "net"}, optimiser=optimiser) for _ in range(2))
    own = [{}, {"clip_norm": 0.01}, {"frozen": ["model.params[layer_2.*]"]}]
    for number, (x, y) in enumerate(batches(6)):
        call = {"loss": LOSS, "inputs": {"x": x, "y": y}, "terms": []}
        together = one.call("gradient", **call, step=own[number % 3]) if number % 2 else None
        if together is None:  # a mean of several comes first
            one.call("gradient", **call)
        apart = two.call("gradient", **call)
        if together is not None:
            stepped = two.call("step", **own[number % 3])
            assert together["value"] == apart["value"]
            assert together["accumulated"] == 0
            assert together["stepped"] == {k: v for k, v in stepped.items() if k != "sequence"}
    assert one.get()["step"] == two.get()["step"] == 3
    ours, theirs = (each.get("params")["params"]["model"] for each in (one, two))
    for leaf in LABELS:
        np.testing.assert_array_equal(ours[leaf], theirs[leaf])


@pytest.mark.parametrize("optimiser", [{"name": "adam", "learning_rate": 0.1}, {"name": "lbfgs"}])
def test_a_gradient_whose_step_is_refused_adds_nothing(trainer, optimiser):
    ((x, y),) = batches(1)
    session = begun(trainer, models={"model": "net"}, optimiser=optimiser)
    refused = session.post("gradient", loss=LOSS, inputs={"x": x, "y": y}, step={"weight_decay": 0.1})
    assert problem(refused)["code"] == "optimiser"
    assert session.get()["accumulated"] == session.get()["step"] == 0
    assert session.call("gradient", loss=LOSS, inputs={"x": x, "y": y}, step={})["stepped"]["step"] == 1


def test_a_misspelt_setting_of_a_step_names_the_nearest_one(trainer):
    ((x, y),) = batches(1)
    session = begun(trainer, models={"model": "net"}, optimiser=ADAM)
    given = {"loss": LOSS, "inputs": {"x": x, "y": y}, "step": {"learning_rat": 0.1}}
    told = problem(session.post("gradient", **given))
    detail = "'step.learning_rat' is not a member of the request; did you mean 'learning_rate'?"
    assert (told["code"], told["detail"]) == ("invalid_request", detail)


def test_inputs_come_by_handle(trainer):
    ((x, y),) = batches(1)
    session = begun(trainer, models={"model": "net"}, optimiser=ADAM)
    value = session.call("gradient", loss=LOSS, inputs={"x": x, "y": y})["value"]
    body = {"dtype": "float32", "data": x.tolist()}
    put = trainer.put("/v1/values", json={"value": {**body, "shape": list(x.shape)}}).json()
    again = session.call("gradient", loss=LOSS, inputs={"x": {"handle": put["handle"]}, "y": y})["value"]
    assert again == value


def test_a_loss_that_is_not_finite_is_told_in_every_format(trainer):
    session = begun(trainer, trained={"a": 0.0}, optimiser=ADAM)
    assert np.isnan(session.call("gradient", loss="0 * log(a)")["value"])
    answer = trainer.post(f"/v1/sessions/{session.name}/gradient", json={"sequence": 2, "loss": "log(a)"})
    assert answer.json()["value"] == "-Infinity"
