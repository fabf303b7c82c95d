"""Bodies and answers in zstd, by `Content-Encoding`: the same numbers, and what is not zstd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import nablad
from nablad import compressing, wire
from nablad.arrays import encode_array
from nablad.compression import compressed, decompressed
from nablad.problems import Refusal

X = np.zeros((300, 400))
X[::7, 3] = np.linspace(-1.0, 1.0, 43)


@given(st.lists(st.binary(max_size=300)))
def test_what_is_compressed_comes_back(pieces: list[bytes]) -> None:
    assert decompressed(b"".join(map(bytes, compressed(pieces)))) == b"".join(pieces)


@pytest.mark.parametrize("format", ["frame", "msgpack", "json"])
def test_compressed_calls_give_the_same_bits(url: str, format: Any) -> None:  # noqa: A002
    asked: dict[str, Any] = {"inputs": {"x": X}, "wrt": ["x"]}
    with nablad.Client(url) as one, nablad.Client(url, compression="zstd", format=format) as other:
        found, same = (client.gradient("sum(x**3)", **asked) for client in (one, other))
        np.testing.assert_array_equal(found.gradients["x"], same.gradients["x"])
        with pytest.raises(nablad.ProgramError):
            other.evaluate("sum(xx)", inputs={"x": X})
        assert isinstance(other.models(), list)


def test_an_asynchronous_client_and_httpx_compress_too(url: str) -> None:
    async def ask() -> Any:
        async with nablad.AsyncClient(url, compression="zstd") as client:
            return (await client.gradient("sum(x**2)", inputs={"x": X}, wrt=["x"])).gradients["x"]

    np.testing.assert_array_equal(asyncio.run(ask()), 2 * X)
    transport = httpx.HTTPTransport()
    with nablad.Client(url, compression="zstd", transport=transport) as client:
        found = client.gradient("sum(x**2)", inputs={"x": X}, wrt=["x"]).gradients["x"]
    np.testing.assert_array_equal(found, 2 * X)


QUESTION = wire.encode_body(
    {"loss": "sum(x**2)", "inputs": {"x": encode_array(X, "attached")}, "wrt": ["x"]}, wire.FRAME
)
BODY = b"".join(map(bytes, QUESTION))
HEADERS = {"Content-Type": wire.FRAME, "Content-Encoding": "zstd"}


@pytest.mark.parametrize(
    ("asked", "coding"), [("zstd", "zstd"), ("gzip, deflate, br, zstd", None), ("identity", None), ("", None)]
)
def test_answers_are_compressed_only_where_nothing_else_is_asked_for(
    url: str, asked: str, coding: str | None
) -> None:
    headers = {"Content-Type": wire.FRAME, "Accept-Encoding": asked}
    response = httpx.post(f"{url}/v1/gradient", content=BODY, headers=headers)
    assert response.headers.get("content-encoding") == coding
    assert (int(response.headers["content-length"]) < 20_000) is (coding == "zstd")


def streamed() -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(BODY) + compressor.flush()


def lying(size: int) -> bytes:
    """A frame that says it holds `size` bytes and holds nothing."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


WHOLE = zstandard.compress(BODY)
BAD: dict[str, tuple[bytes, str, str]] = {
    "no zstd": (BODY, "malformed_body", "not valid zstd"),
    "empty": (b"", "malformed_body", "not valid zstd"),
    "cut short": (WHOLE[: len(WHOLE) // 2], "malformed_body", "cut short"),
    "without its size": (streamed(), "malformed_body", "does not say how many bytes"),
    "a bomb": (lying(1 << 50), "body_too_large", "at most"),
    "less than it says": (lying(1000), "malformed_body", "not valid zstd"),
    "damaged": (WHOLE[:200] + bytes(50) + WHOLE[250:], "malformed_body", "zstd"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_zstd_is_refused(url: str, name: str) -> None:
    body, code, said = BAD[name]
    response = httpx.post(f"{url}/v1/gradient", content=body, headers=HEADERS)
    assert response.json()["code"] == code
    assert said in response.json()["detail"]


def test_more_than_a_frame_says_is_refused() -> None:
    with pytest.raises(Refusal, match="at most 10"):
        decompressed(zstandard.compress(bytes(100)), 10)


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"compression": "gzip"}, "'zstd' or None"),
    "shared memory": (
        {"url": "unix:/nowhere", "compression": "zstd", "shared_memory": True},
        "does not go with shared_memory",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("kind", [nablad.Client, nablad.AsyncClient])
def test_compression_that_cannot_be_is_refused(kind: Callable[..., Any], name: str) -> None:
    given, said = UNFIT[name]
    with pytest.raises(ValueError, match=said):
        kind(**given)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressing, "available", lambda: False)
    with pytest.raises(ValueError, match=r"nablad\[zstd\]"):
        nablad.Client(compression="zstd")
