"""Floats that travel in two bytes an entry: half the bytes or fewer, and two or three decimal digits.

`float16` has 11 bits of precision and ends at 65504; `bfloat16` has 8 bits, and the range of float32.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = Literal["float16", "bfloat16"]
FLOATS = ("float16", "bfloat16")
CARRIERS = {"float16": "float16", "bfloat16": "uint16"}
"""NumPy's dtypes of two bytes that hold them."""
WIDE = frozenset({"float32", "float64"})
"""What may travel so."""


def halved(array: NDArray[Any], floats: Floats) -> NDArray[Any]:
    """Floats as two bytes an entry; float16 has infinities beyond its range."""
    if floats == "bfloat16":
        return to_bfloat16(array)
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def restored(halves: NDArray[Any], floats: Floats, dtype: str) -> NDArray[Any]:
    """The floats that `halved` took, to its precision."""
    return (from_bfloat16(halves) if floats == "bfloat16" else halves).astype(dtype)


def to_bfloat16(array: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of bfloat16: the upper halves of float32, rounded to nearest, ties to even."""
    single = np.asarray(array, np.float32, order="C")
    bits = single.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    # Rounding could carry the bits of a NaN into those of another number.
    nan = np.isnan(single)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def from_bfloat16(bits: NDArray[Any]) -> NDArray[np.float32]:
    """float32 with these upper halves."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def check_floats(floats: str | None) -> None:
    """Raise ValueError where `floats` is none of the names."""
    if floats is not None and floats not in FLOATS:
        raise ValueError(f"floats is 'float16' or 'bfloat16', not {floats!r}")
