"""Answers put together from what their program's answers share are the ones that would be packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import pytest
from ask import rng

import nablad
from nablad import wire
from nablad.arrays import Encoding, encode_array, encode_tree
from nablad_service.answers.templates import template_of
from nablad_service.requests.msgpack_layout import byte_strings, member_at

NET = {"layers": [{"dense": [2, 5], "activation": "tanh"}, {"dense": [5, 2]}]}
FORMATS: dict[str, tuple[str, Encoding]] = {
    "msgpack": (wire.MSGPACK, "bytes"),
    "frame": (wire.FRAME, "attached"),
}


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> tuple[str, Encoding]:
    return FORMATS[request.param]


def test_byte_strings_and_members_are_found() -> None:
    value: dict[str, Any] = {
        "a": [1, -1, 70000, -70000, 2**40, -(2**40), 0.5, None, True, "text", "x" * 300],
        "b": {"c": b"one", "d": [b"two" * 200, {"e": b""}]},
        "f": msgpack.ExtType(1, b"1234567890123456"),
        "g": msgpack.ExtType(5, b"123"),
        "h": {str(number): number for number in range(20)},
        "i": b"z" * 70000,
        "timing": {"x": 1.5},
    }
    data = msgpack.packb(value)
    found = [data[start:end] for start, end in byte_strings(data)]
    assert found == [b"one", b"two" * 200, b"", b"z" * 70000]
    assert msgpack.unpackb(data[member_at(data, "timing") :]) == {"x": 1.5}
    with pytest.raises(KeyError):
        member_at(data, "nowhere")


@pytest.mark.parametrize("size", [3, 100])
def test_an_answer_from_a_template_is_the_one_that_would_be_packed(
    form: tuple[str, Encoding], size: int
) -> None:
    media, encoding = form

    def result(seed: int) -> dict[str, Any]:
        return {
            "value": np.float32(seed),
            "gradients": {"params": {"w": rng(size, 2, seed=seed), "b": rng(size, seed=seed)}},
            "outputs": {"u": (rng(4, seed=seed), rng(2, 2, seed=seed))},
        }

    def packed(arrays: Mapping[str, Any], timing: dict[str, Any]) -> list[Any]:
        sections = {
            "value": encode_array(arrays["value"], encoding),
            "gradients": encode_tree(arrays["gradients"], encoding),
            "outputs": encode_tree(arrays["outputs"], encoding),
            "plan": {"explanation": "none"},
        }
        return wire.encode_with_last(sections, "timing", lambda: timing, media)

    first = packed(result(1), {"together": 1, "device_ms": 0.5})
    template = template_of(first, result(1), media)
    assert template is not None
    timing = {"together": 4000, "device_ms": 1.5}
    assert template.body(result(2), lambda: timing) == b"".join(packed(result(2), timing))
    other = result(3)
    other["gradients"]["params"]["b"] = rng(size + 1)
    assert template.body(other, lambda: timing) is None


def test_a_client_in_a_loop_gets_its_own_answers(client: nablad.Client) -> None:
    client.create_model("looped", NET)
    for seed in range(6):
        x = rng(3, 2, seed=seed)
        found = client.gradient("sum(model(x)**2)", inputs={"x": x}, model="looped", wrt=["params", "x"])
        np.testing.assert_allclose(found.value, np.sum(client.apply("looped", x) ** 2), rtol=1e-12)
        if seed == 4:
            params = client.params("looped").params
            client.set_params("looped", {name: leaf * 1.5 for name, leaf in params.items()})
