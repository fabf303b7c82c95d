"""A loop on the server takes the steps that JAX and optax take in process."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from following import params_of, trained

from nablad.training.messages import Batches
from nablad_service.engine.engine import Engine
from nablad_service.training.samplers import samplers_of

PROGRAM = """
u = model(x)[:, 0]
fit = mean((u - y)**2)
size = mean(u**2)
fit + 0.01 * size
"""
STEPS = 500
RATE = {"schedule": "cosine_decay", "init_value": 0.02, "decay_steps": 400}
SCHEDULE = optax.cosine_decay_schedule(0.02, 400)
FROZEN = "model.params[layer_1.*]"
# What is asked for, and the same in optax; of the frozen layer neither gradient nor update.
OPTIMISERS: dict[str, tuple[dict[str, Any], Any]] = {
    "adam": ({"name": "adam", "learning_rate": 0.01}, optax.adam(0.01)),
    "adam, clipped, scheduled": (
        {"name": "adam", "learning_rate": RATE, "clip_norm": 0.05},
        optax.chain(optax.clip_by_global_norm(0.05), optax.adam(SCHEDULE)),
    ),
    "adamw, clipped, scheduled, a frozen layer": (
        {
            "name": "adamw",
            "learning_rate": RATE,
            "weight_decay": 0.05,
            "clip_norm": 0.05,
            "frozen": [FROZEN],
        },
        optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(SCHEDULE, weight_decay=0.05)),
    ),
    "sgd with momentum, clipped, a frozen layer": (
        {
            "name": "sgd",
            "learning_rate": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "clip_norm": 0.1,
            "frozen": [FROZEN],
        },
        optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.05, momentum=0.9, nesterov=True)),
    ),
}


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
    return {"x": x, "y": np.sin(3 * x[:, 0]) * x[:, 1]}


def of_network(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["layer_1.weight"].T + params["layer_1.bias"])
    u = (hidden @ params["layer_2.weight"].T + params["layer_2.bias"])[:, 0]
    return jnp.mean((u - y) ** 2) + 0.01 * jnp.mean(u**2)


def in_process(
    loss: Callable[..., Any], params: Any, rule: Any, frozen: Collection[str] = ()
) -> tuple[list[float], Any]:
    """The values of the loss and the parameters at the end, by a loop of one's own."""
    held = {name: value for name, value in params.items() if name in frozen}
    free = {name: value for name, value in params.items() if name not in frozen}
    rule = optax.with_extra_args_support(rule)

    def value_of(free: Any) -> Any:
        return loss({**held, **free})

    @jax.jit
    def step(free: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(value_of)(free)
        updates, state = rule.update(gradient, state, free, value=value, grad=gradient, value_fn=value_of)
        return optax.apply_updates(free, updates), state, value

    state, values = rule.init(free), []
    for _ in range(STEPS):
        free, state, value = step(free, state)
        values.append(float(value))
    return values, {**held, **free}


def started(http: httpx.Client) -> dict[str, Any]:
    """The parameters that the hosted model has."""
    given = http.get("/v1/models/net/params").json()["params"]
    return {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}


@pytest.fixture(scope="module", autouse=True)
def _types() -> None:
    Engine.start()  # the in-process half computes with the server's settings of JAX


def sent(given: dict[str, np.ndarray]) -> dict[str, Any]:
    """Arrays in JSON, with their dtypes."""
    return {
        name: {"dtype": one.dtype.name, "shape": list(one.shape), "data": one.tolist()}
        for name, one in given.items()
    }


@pytest.mark.parametrize("name", OPTIMISERS)
def test_500_steps_are_those_of_jax_and_optax(trainer: httpx.Client, name: str) -> None:
    asked, rule = OPTIMISERS[name]
    begun = started(trainer)
    frozen = [leaf for leaf in begun if leaf.startswith("layer_1")] if "frozen" in asked else []
    expected, params = in_process(lambda params: of_network(params, **data()), begun, rule, frozen)
    run = trained(
        trainer,
        loss=PROGRAM,
        models={"model": "net"},
        inputs=sent(data()),
        optimiser=asked,
        steps=STEPS,
        report_every=1,
    )
    assert run.last.kind == "done"
    assert [report["step"] for report in run.of("report")] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(run.values(), expected, rtol=2e-4)
    found = params_of(trainer, run.name)["params"]["model"]
    for leaf, one in params.items():
        np.testing.assert_allclose(found[leaf], one, atol=2e-4, err_msg=leaf)
    for leaf in frozen:
        np.testing.assert_array_equal(found[leaf], begun[leaf])
    if isinstance(asked["learning_rate"], dict):
        rates = [report["learning_rate"] for report in run.of("report")]
        np.testing.assert_allclose(rates, [SCHEDULE(step) for step in range(STEPS)], rtol=1e-5, atol=1e-9)


def test_four_batches_to_a_step_are_those_of_optax(trainer: httpx.Client) -> None:
    """Batches of ten, four of which go through all examples: their mean is the whole, but for the order."""
    begun, rule = started(trainer), optax.MultiSteps(optax.adam(SCHEDULE), every_k_schedule=4)
    (sampler,) = samplers_of({"train": Batches(data=data(), n=10)}, 0)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda params: of_network(params, **batch))(params)
        updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state, expected = begun, rule.init(begun), []
    for number in range(STEPS):
        values = []
        for turn in range(4):
            params, state, value = step(params, state, sampler.draw(4 * number + turn))
            values.append(float(value))
        expected.append(np.mean(values))
    run = trained(
        trainer,
        loss=PROGRAM,
        models={"model": "net"},
        samplers={"train": {"distribution": "batches", "data": sent(data()), "n": 10}},
        optimiser={"name": "adam", "learning_rate": RATE},
        accumulate=4,
        steps=STEPS,
        report_every=1,
    )
    np.testing.assert_allclose(run.values(), expected, rtol=2e-4)
    found = params_of(trainer, run.name)["params"]["model"]
    for leaf, one in params.items():
        np.testing.assert_allclose(found[leaf], one, atol=2e-4, err_msg=leaf)


@pytest.mark.parametrize("frozen", [[], ["b"]], ids=["all", "b frozen"])
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("float64", 1e-12)])
def test_500_steps_of_lbfgs_are_those_of_jax_and_optax(
    trainer: httpx.Client, dtype: str, close: float, frozen: list[str]
) -> None:
    """A convex problem: elsewhere the steps of a line search tell one rounding from another soon."""
    x, y = (one.astype(dtype) for one in data().values())
    begun = {"w": jnp.asarray([1.0, -2.0], dtype), "b": jnp.asarray(0.5, dtype)}

    def loss(params: Any) -> Any:
        return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2) + 0.1 * jnp.sum(params["w"] ** 2)

    expected, params = in_process(loss, begun, optax.lbfgs(), frozen)
    run = trained(
        trainer,
        loss="mean((tanh(x @ w) + b - y)**2) + 0.1 * sum(w**2)",
        inputs=sent({"x": x, "y": y}),
        trained=sent({name: np.asarray(one) for name, one in begun.items()}),
        optimiser={"name": "lbfgs", "frozen": frozen},
        steps=STEPS,
        report_every=1,
    )
    np.testing.assert_allclose(run.values(), expected, rtol=close)
    found = params_of(trainer, run.name)["trained"]
    assert found["w"].dtype == dtype
    np.testing.assert_allclose(found["w"], params["w"], atol=100 * close)
    np.testing.assert_allclose(found["b"], params["b"], atol=100 * close)
