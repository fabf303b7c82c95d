"""Resident arrays on the device: put there once, spilled and brought back under a budget."""

from __future__ import annotations

import gc
from typing import Any

import jax
import numpy as np
from ask import MODELS, host, rng

from nablad.frame import ALIGNMENT
from nablad.messages import EvaluateRequest, GradientRequest
from nablad_service.engine.engine import Engine
from nablad_service.requests.validation import evaluate_query, gradient_query
from nablad_service.resident import Resident, aligned

WIDE = {"layers": [{"dense": [2, 64], "activation": "tanh"}, {"dense": [64, 1]}]}
BYTES = 8 * (64 * 2 + 64 + 64 + 1)


def asked(model: str, x: Any) -> Any:
    request = GradientRequest(loss="sum(model(x)**2)", models={"model": model}, inputs={"x": x})
    return gradient_query(request, MODELS.get)


def answer(engine: Engine, query: Any) -> Any:
    return engine.compile(engine.trace(query)).run(query)


def test_resident_arrays_are_put_on_the_device_once() -> None:
    host("placed", WIDE)
    engine = Engine.start()
    query = asked("placed", rng(3, 2))
    executable = engine.compile(engine.trace(query))
    assert engine.placement.statistics().arrays == 0, "tracing needs no values"
    first = executable.run(query)
    again = executable.run(asked("placed", query.inputs["x"]))
    assert (engine.placement.statistics().placed, engine.placement.statistics().bytes) == (4, BYTES)
    np.testing.assert_array_equal(first["value"], again["value"])


def test_on_a_cpu_the_devices_copy_is_a_view() -> None:
    if jax.default_backend() != "cpu":
        return
    resident = Resident(rng(1000))
    request = EvaluateRequest(program="sum(a)", inputs={"a": resident})
    engine = Engine.start()
    answer(engine, evaluate_query(request, MODELS.get))
    assert resident.placed.unsafe_buffer_pointer() == resident.array.ctypes.data


def test_odd_addresses_are_left_and_good_ones_kept() -> None:
    memory = aligned(np.zeros(100))
    assert memory.ctypes.data % ALIGNMENT == 0
    assert np.shares_memory(aligned(memory), memory)
    odd = memory[1:]
    assert odd.ctypes.data % ALIGNMENT
    moved = aligned(odd)
    assert moved.ctypes.data % ALIGNMENT == 0
    assert not moved.flags.writeable
    np.testing.assert_array_equal(aligned(np.arange(6.0).reshape(2, 3).T), np.arange(6.0).reshape(2, 3).T)
    for small in (np.zeros(()), np.zeros((0, 3)), np.array([True])):
        assert aligned(small).shape == small.shape


def test_what_was_used_longest_ago_is_spilled_and_brought_back() -> None:
    engine = Engine.start(device_memory=2 * BYTES)
    x = rng(3, 2)
    for seed, name in enumerate(("one", "two", "three")):
        host(f"spilled_{name}", WIDE, seed=seed)
    plain = {name: answer(Engine.start(), asked(f"spilled_{name}", x)) for name in ("one", "two", "three")}

    def there() -> set[str]:
        params = {name: MODELS.get(f"spilled_{name}").resident_params for name in plain}
        return {
            name for name, tree in params.items() if all(leaf.placed is not None for leaf in tree.values())
        }

    def call(name: str) -> None:
        # Engines of one process share what is placed; here each model begins off the device.
        found = answer(engine, asked(f"spilled_{name}", x))
        np.testing.assert_array_equal(found["value"], plain[name]["value"])
        for leaf, gradient in found["gradients"]["params"].items():
            np.testing.assert_array_equal(gradient, plain[name]["gradients"]["params"][leaf])

    for name in plain:
        for leaf in MODELS.get(f"spilled_{name}").resident_params.values():
            leaf.placed = None
    seen = []
    for name in ("one", "two", "one", "three", "two", "three"):
        call(name)
        seen.append(there())
        assert engine.placement.statistics().bytes <= 2 * BYTES
    one, two, three = "one", "two", "three"
    assert seen == [{one}, {one, two}, {one, two}, {one, three}, {two, three}, {two, three}]
    assert engine.placement.statistics().spilled == 2 * 4


def test_what_does_not_fit_is_moved_for_its_call_alone() -> None:
    engine = Engine.start(device_memory=100)
    big, small = Resident(rng(1000)), Resident(rng(3))
    request = EvaluateRequest(program="sum(a) + sum(b)", inputs={"a": big, "b": small})
    found = answer(engine, evaluate_query(request, MODELS.get))["outputs"]["result"]
    np.testing.assert_allclose(found, big.array.sum() + small.array.sum(), rtol=1e-12)
    assert big.placed is None
    assert small.placed is not None


def test_what_is_let_go_of_leaves_the_device_too() -> None:
    engine = Engine.start(device_memory=10_000)
    resident = Resident(rng(100))
    query = evaluate_query(EvaluateRequest(program="sum(a)", inputs={"a": resident}), MODELS.get)
    answer(engine, query)
    assert engine.placement.statistics().bytes == 800
    del resident, query
    gc.collect()
    assert engine.placement.statistics().bytes == 0


def test_float32_and_float64_programs_share_a_device() -> None:
    engine = Engine.start(device_memory=4 * BYTES)
    host("single", WIDE, dtype="float32")
    host("double", WIDE, dtype="float64")
    x = rng(3, 2)
    for _ in range(2):
        for name, dtype in (("single", "float32"), ("double", "float64")):
            found = answer(engine, asked(name, x.astype(dtype)))
            assert found["value"].dtype == dtype
            assert {leaf.dtype.name for leaf in found["gradients"]["params"].values()} == {dtype}
    assert engine.placement.statistics().bytes == BYTES + BYTES // 2


def test_a_bucket_takes_resident_parameters_from_the_device_too() -> None:
    params = host("bucketed", WIDE)
    engine = Engine.start()
    for leaf in MODELS.get("bucketed").resident_params.values():
        leaf.placed = None
    request = GradientRequest(
        loss="sum(model(x)**2)", models={"model": "bucketed"}, inputs={"x": rng(5, 2)}, buckets=[8]
    )
    query = gradient_query(request, MODELS.get)
    found = engine.bucket(query, 5, 8).fit(engine.trace(query), 5).run(query)
    assert engine.placement.statistics().arrays == len(params)
    alone = answer(engine, query)
    np.testing.assert_allclose(found["value"], alone["value"], rtol=1e-12)
