"""Floats in two bytes an entry, against the dtypes that JAX has for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest

import nablad
from nablad import wire
from nablad.arrays import decode_array, encode_array
from nablad.halves import Floats, from_bfloat16, to_bfloat16
from nablad.problems import Refusal

rng = np.random.default_rng(0)
HALF: Any = pytest.mark.parametrize("floats", ["float16", "bfloat16"])
PRECISION = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def every_kind() -> np.ndarray[Any, Any]:
    """float32 of all exponents, ties, infinities, zeros and numbers below the normal ones."""
    drawn = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (rng.integers(0, 2**16, 1000, dtype=np.uint32) << 16) | 0x8000
    edges = np.array([0, 1, 0x7F7FFFFF, 0x7F800000, 0x80000000, 0xFF800000, 0x007FFFFF], np.uint32)
    return np.concatenate([drawn, ties, edges]).view(np.float32)


def test_bfloat16_is_rounded_as_elsewhere() -> None:
    numbers = every_kind()
    with np.errstate(invalid="ignore"):  # NaN among them
        expected = numbers.astype(ml_dtypes.bfloat16)
    finite = ~np.isnan(numbers)
    np.testing.assert_array_equal(to_bfloat16(numbers)[finite], expected.view(np.uint16)[finite])
    assert np.isnan(from_bfloat16(to_bfloat16(numbers))[~finite]).all()
    np.testing.assert_array_equal(
        from_bfloat16(expected.view(np.uint16))[finite], expected.astype(np.float32)[finite]
    )


@HALF
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("accept", [wire.FRAME, wire.MSGPACK, f"{wire.JSON}; arrays=base64"])
def test_arrays_travel_in_half_the_bytes(floats: Floats, dtype: str, accept: str) -> None:
    media, encoding, asked = wire.answer_type(f"{accept}; floats={floats}", wire.JSON)
    assert asked == floats
    array = rng.standard_normal((300, 40)).astype(dtype)
    body = b"".join(wire.encode_body({"x": encode_array(array, encoding, asked)}, media))
    assert len(body) < array.size * (2.1 if media != wire.JSON else 2.8)
    found = decode_array(wire.decode_body(body, media)["x"], "x")
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, array, rtol=PRECISION[floats], atol=1e-7)
    assert np.abs(found - array).max() > 0


@HALF
def test_whole_numbers_and_numbers_without_axes_stay_as_they_are(floats: Floats) -> None:
    for array in (np.arange(1000), np.float64(0.1), np.array(0.1, np.float32), np.ones(3, bool)):
        assert "sent" not in encode_array(array, "bytes", floats)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sent": "float8"}, "is sent as 'float8'; known are float16 and bfloat16"),
        ({"sent": 2}, "is sent as 2; known are"),
        ({"dtype": "int32"}, "only float32 and float64 are sent as bfloat16"),
        ({"dtype": None}, "has dtype None; only float32"),
        ({"shape": [7]}, "has 12 bytes, uint16(7,) needs 14"),
    ],
)
def test_halves_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    form = {**encode_array(np.ones(6), "bytes", "bfloat16"), **change}
    with pytest.raises(Refusal) as refused:
        decode_array(form, "x")
    assert refused.value.code == "invalid_array"
    assert said in refused.value.detail


def test_other_floats_are_not_acceptable(url: str) -> None:
    answer = httpx.get(f"{url}/v1/models", headers={"Accept": f"{wire.FRAME}; floats=float8"})
    assert (answer.status_code, answer.json()["code"]) == (406, "not_acceptable")
    with pytest.raises(ValueError, match="floats is 'float16' or 'bfloat16', not 'float8'"):
        nablad.Client(url, floats="float8")  # type: ignore[arg-type] # that is the point


@pytest.fixture(params=["frame", "msgpack", "json"])
def halving(url: str, request: pytest.FixtureRequest) -> Iterator[nablad.Client]:
    with nablad.Client(url, format=request.param, floats="bfloat16") as connected:
        yield connected


def test_a_gradient_in_halves(halving: nablad.Client, client: nablad.Client) -> None:
    x = rng.standard_normal((50, 3)).astype(np.float32)
    found = halving.gradient("sum(x**2)", inputs={"x": x}, wrt=["x"])
    came = from_bfloat16(to_bfloat16(x))
    np.testing.assert_allclose(found.value, np.sum(came.astype(np.float64) ** 2), rtol=1e-6)
    assert found.gradients["x"].dtype == np.float32
    np.testing.assert_array_equal(found.gradients["x"], 2 * came)
    exact = client.gradient("sum(x**2)", inputs={"x": x}, wrt=["x"])
    np.testing.assert_array_equal(exact.gradients["x"], 2 * x)


def test_what_stays_on_the_server_is_exact(halving: nablad.Client) -> None:
    x = rng.standard_normal((50, 3))
    handle = halving.put(x)
    np.testing.assert_allclose(halving.evaluate("sum(x)", inputs={"x": handle}).result, x.sum(), rtol=1e-14)
    halving.create_model("halved", {"layers": [{"dense": [2, 3]}]})
    params = {name: rng.standard_normal(leaf.shape) for name, leaf in halving.params("halved").params.items()}
    halving.set_params("halved", params)
    for name, leaf in halving.params("halved").params.items():
        np.testing.assert_array_equal(leaf, params[name])
