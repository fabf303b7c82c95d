"""The frame against bytes that were made without it, and the ways in which one can be wrong."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nablad import wire
from nablad.arrays import decode_array, encode_array
from nablad.frame import ALIGNMENT, Buffer, aligned
from nablad.problems import Refusal

VECTORS = json.loads((Path(__file__).parents[1] / "docs" / "vectors" / "frames.json").read_text())


def by_name(kind: str) -> Any:
    return pytest.mark.parametrize("vector", VECTORS[kind], ids=lambda vector: vector["name"])


def joined(pieces: list[Buffer]) -> memoryview:
    """A body as the server receives it: in one aligned block."""
    body = aligned(wire.body_size(pieces))
    end = 0
    for piece in pieces:
        body[end : end + len(piece)] = piece
        end += len(piece)
    return body


def arrays(value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.array(one["values"], one["dtype"]).reshape(one["shape"]) if isinstance(one, dict) else one
        for name, one in value.items()
    }


@by_name("good")
def test_frames_that_others_wrote_are_read(vector: dict[str, Any]) -> None:
    read = wire.decode_body(bytes.fromhex(vector["hex"]), wire.FRAME)
    for name, expected in arrays(vector["value"]).items():
        if isinstance(expected, np.ndarray):
            found = decode_array(read[name], name)
            assert isinstance(found, np.ndarray)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        else:
            assert read[name] == expected


@by_name("good")
def test_frames_are_written_byte_by_byte_as_specified(vector: dict[str, Any]) -> None:
    value = {
        name: encode_array(one, "attached") if isinstance(one, np.ndarray) else one
        for name, one in arrays(vector["value"]).items()
    }
    if vector["name"] in ("no entries", "in the header"):
        return  # a reader must take both; the writer puts what has bytes behind the header, and nothing else
    assert bytes(joined(wire.encode_body(value, wire.FRAME))).hex() == vector["hex"]


@by_name("refused")
def test_damaged_frames_are_refused_with_a_sentence(vector: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refused:
        wire.decode_body(bytes.fromhex(vector["hex"]), wire.FRAME)
    assert refused.value.code == "malformed_body"
    assert vector["because"] in refused.value.detail


def test_every_cut_of_a_frame_is_refused() -> None:
    whole = bytes.fromhex(VECTORS["good"][2]["hex"])
    for length in range(len(whole)):
        with pytest.raises(Refusal) as refused:
            wire.decode_body(whole[:length], wire.FRAME)
        assert refused.value.code == "malformed_body"


def test_arrays_are_sent_and_read_where_they_lie() -> None:
    sent = np.arange(5000, dtype=np.float32).reshape(50, 100)
    odd = np.arange(77, dtype=np.int64)
    pieces = wire.encode_body(
        {"odd": encode_array(odd, "attached"), "x": encode_array(sent, "attached")}, wire.FRAME
    )
    where = {np.frombuffer(piece, np.uint8).ctypes.data for piece in pieces}
    assert sent.ctypes.data in where
    assert odd.ctypes.data in where
    body = joined(pieces)
    start = np.frombuffer(body, np.uint8).ctypes.data
    assert start % ALIGNMENT == 0
    read = wire.decode_body(body, wire.FRAME)
    for name, array in (("x", sent), ("odd", odd)):
        found = decode_array(read[name], name)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, array)
        assert found.ctypes.data % ALIGNMENT == 0
        assert start < found.ctypes.data < start + len(body)


@pytest.mark.parametrize("size", [0, 1, 7, 64, 65, 64 * 64])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float16", "float64"])
def test_every_dtype_and_size_comes_back(size: int, dtype: str) -> None:
    array = (np.arange(size) % 2).astype(dtype)
    body = joined(wire.encode_body({"x": encode_array(array, "attached")}, wire.FRAME))
    found = decode_array(wire.decode_body(body, wire.FRAME)["x"], "x")
    assert isinstance(found, np.ndarray)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_the_last_member_is_computed_when_the_others_are_packed() -> None:
    order = []

    class Seen(dict[str, int]):
        def items(self) -> Any:
            order.append("sections")
            return super().items()

    def last() -> str:
        order.append("last")
        return "now"

    pieces = wire.encode_with_last(Seen(a=1), "timing", last, wire.FRAME)
    assert wire.decode_body(joined(pieces), wire.FRAME) == {"a": 1, "timing": "now"}
    assert order == ["sections", "last"]


def test_rows_that_are_not_in_order_travel_in_order() -> None:
    array = np.arange(400.0).reshape(20, 20).T[::2]
    body = joined(wire.encode_body({"x": encode_array(array, "attached")}, wire.FRAME))
    found = decode_array(wire.decode_body(body, wire.FRAME)["x"], "x")
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, array)


def test_a_frame_that_is_sent_keeps_nothing_alive() -> None:
    """Without the collector, whose turn may come a dozen large answers later."""
    array = np.arange(1000.0)
    gone = weakref.ref(array)
    gc.disable()
    try:
        wire.encode_body({"x": encode_array(array, "attached")}, wire.FRAME)
        del array
        assert gone() is None
    finally:
        gc.enable()
