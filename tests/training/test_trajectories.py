"""A loop on the server takes the steps that JAX and optax take in process."""

from __future__ import annotations

from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from following import params_of, trained

from nablad_service.engine.engine import Engine

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
    "lbfgs": ({"name": "lbfgs"}, optax.lbfgs()),
    "lbfgs, a frozen layer": ({"name": "lbfgs", "frozen": [FROZEN]}, optax.lbfgs()),
}


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
    return {"x": x, "y": np.sin(3 * x[:, 0]) * x[:, 1]}


def loss(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["layer_1.weight"].T + params["layer_1.bias"])
    u = (hidden @ params["layer_2.weight"].T + params["layer_2.bias"])[:, 0]
    return jnp.mean((u - y) ** 2) + 0.01 * jnp.mean(u**2)


def in_process(params: Any, rule: Any, steps: int, frozen: bool, given: Any) -> tuple[list[float], Any]:
    """The values of the loss and the parameters at the end, by a loop of one's own."""
    held = {name: value for name, value in params.items() if frozen and name.startswith("layer_1")}
    free = {name: value for name, value in params.items() if name not in held}
    rule = optax.with_extra_args_support(rule)

    def value_of(free: Any) -> Any:
        return loss({**held, **free}, **given)

    @jax.jit
    def step(free: Any, state: Any) -> Any:
        value, gradient = jax.value_and_grad(value_of)(free)
        updates, state = rule.update(gradient, state, free, value=value, grad=gradient, value_fn=value_of)
        return optax.apply_updates(free, updates), state, value

    state, values = rule.init(free), []
    for _ in range(steps):
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


@pytest.mark.parametrize("name", OPTIMISERS)
def test_500_steps_are_those_of_jax_and_optax(trainer: httpx.Client, name: str) -> None:
    asked, rule = OPTIMISERS[name]
    frozen = "frozen" in asked
    given = data()
    # A line search branches on rounding; once it is at the bottom its steps are noise.
    steps = 60 if asked["name"] == "lbfgs" else STEPS
    expected, params = in_process(started(trainer), rule, steps, frozen, given)
    run = trained(
        trainer,
        loss=PROGRAM,
        models={"model": "net"},
        inputs={
            key: {"dtype": "float32", "shape": list(one.shape), "data": one.tolist()}
            for key, one in given.items()
        },
        optimiser=asked,
        steps=steps,
        report_every=1,
    )
    assert run.last.kind == "done"
    assert [report["step"] for report in run.of("report")] == list(range(1, steps + 1))
    np.testing.assert_allclose(run.values(), expected, rtol=2e-3 if steps < STEPS else 2e-4)
    found = params_of(trainer, run.name)["params"]["model"]
    for leaf, one in params.items():
        np.testing.assert_allclose(found[leaf], one, atol=2e-3 if steps < STEPS else 2e-4, err_msg=leaf)
    if frozen:
        np.testing.assert_array_equal(found["layer_1.weight"], started(trainer)["layer_1.weight"])
    if isinstance(asked.get("learning_rate"), dict):
        rates = [report["learning_rate"] for report in run.of("report")]
        np.testing.assert_allclose(
            rates, [float(SCHEDULE(step)) for step in range(steps)], rtol=1e-5, atol=1e-9
        )
    trainer.delete(f"/v1/train/{run.name}")


def test_lbfgs_in_float64_takes_500_steps_like_optax(trainer: httpx.Client) -> None:
    given = {key: one.astype(np.float64) for key, one in data().items()}
    params = {name: one.astype(jnp.float64) for name, one in started(trainer).items()}
    expected, _ = in_process(params, optax.lbfgs(), STEPS, False, given)
    run = trained(
        trainer,
        loss=PROGRAM,
        models={"model": "net"},
        inputs={
            key: {"dtype": "float64", "shape": list(one.shape), "data": one.tolist()}
            for key, one in given.items()
        },
        phases=[{"optimiser": {"name": "lbfgs"}, "steps": STEPS, "dtype": "float64"}],
        report_every=1,
    )
    np.testing.assert_allclose(run.values()[:100], expected[:100], rtol=1e-6)
    np.testing.assert_allclose(run.values()[-1], expected[-1], rtol=0.05)
    trainer.delete(f"/v1/train/{run.name}")
