"""Arrays as they travel: `{dtype, shape, data}`, nested lists, or plain numbers.

In msgpack `data` is the raw little-endian buffer; in JSON it is base64 of that buffer, or a nested list.
Nested lists and plain numbers without a dtype are `Undeclared`: they take the float type of what they meet.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nablad.halves import CARRIERS, FLOATS, WIDE, Floats, halved, restored
from nablad.problems import Refusal

DTYPES = frozenset(
    {
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    }
)
NAMES = {np.dtype(name): name for name in DTYPES}
"""Of native dtypes: NumPy puts a dtype's `name` together anew each time it is asked."""
LITTLE = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
SEQUENCES = (list, tuple)
KEYS = {"dtype", "shape", "data"}
# JSON has no numbers for these; numbers written as these words are read back.
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, eq=False)
class Undeclared:
    """Numbers that came without a dtype, as `array` (int64, float64 or bool)."""

    array: NDArray[Any]


Received: TypeAlias = "NDArray[Any] | Undeclared"
Encoding: TypeAlias = Literal["attached", "bytes", "base64", "lists"]


@dataclass(frozen=True, eq=False, slots=True)
class Attached:
    """The bytes of an array that travels beside the structure it belongs to, as buffers of a frame do."""

    view: memoryview


def decode_array(value: Any, name: str) -> Received:
    """An array from its travelling form; buffers are viewed, not copied.

    Raises:
        Refusal: `invalid_array`, naming `name` and what does not fit.
    """
    if isinstance(value, (dict, Mapping)):  # a union would be made anew at every array
        return _from_members(value, name)
    if isinstance(value, np.ndarray | Undeclared) or hasattr(value, "__array__"):
        return value  # type: ignore[no-any-return] # an array already, or what stands for one
    return Undeclared(_from_lists(value, name))


def is_array_form(value: Any) -> bool:
    """Whether a decoded value stands for an array rather than a tree of arrays."""
    return not isinstance(value, (dict, Mapping)) or ("data" in value and "dtype" in value)


def stand_in(value: Any, name: str) -> Any:
    """`value`, or where it is a `{dtype, shape}` without data an array of that kind that takes no room.

    Raises:
        Refusal: `invalid_array`, naming `name`.
    """
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape"}:
        return value
    dtype, shape = value["dtype"], value["shape"]
    if not isinstance(dtype, str) or isinstance(shape, Mapping):
        return value  # a tree with leaves of these names
    return np.broadcast_to(np.zeros((), _dtype(dtype, name)), _shape(shape, name))


def _dtype(dtype: Any, name: str) -> np.dtype[Any]:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        detail = f"the array '{name}' has dtype {dtype!r}; known are {', '.join(sorted(DTYPES))}"
        raise Refusal("invalid_array", detail)
    return np.dtype(dtype)


def _from_members(value: Mapping[str, Any], name: str) -> NDArray[Any]:
    if "sent" in value:
        return _from_halves(value, name)
    if value.keys() != KEYS and (KEYS - {"shape"} - set(value) or set(value) - KEYS):
        given = ", ".join(map(str, value)) or "nothing"
        detail = f"the array '{name}' needs dtype, shape and data, it has {given}"
        raise Refusal("invalid_array", detail)
    dtype = value["dtype"]
    _dtype(dtype, name)
    data = value["data"]
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise Refusal("invalid_array", f"the data of the array '{name}' is not valid base64") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        array = _from_lists(data, name)
        shape = _shape(value.get("shape", array.shape), name)
        if math.prod(shape) != array.size:
            detail = (
                f"the array '{name}' has {array.size} entries, its shape {shape} needs {math.prod(shape)}"
            )
            raise Refusal("invalid_array", detail)
        exact = np.dtype(dtype).kind == "f" or np.array_equal(array.astype(dtype), array)
        if not exact:
            raise Refusal("invalid_array", f"the array '{name}' holds numbers that {dtype} cannot hold")
        return array.astype(dtype).reshape(shape)
    shape = _shape(value.get("shape"), name)
    kind = LITTLE[dtype]
    wanted = math.prod(shape) * kind.itemsize
    if len(data) != wanted:
        detail = f"the array '{name}' has {len(data)} bytes, {dtype}{shape} needs {wanted}"
        raise Refusal("invalid_array", detail)
    array = np.frombuffer(data, kind).reshape(shape)
    return array if kind.isnative else array.astype(kind.newbyteorder("="))


def _from_halves(value: Mapping[str, Any], name: str) -> NDArray[Any]:
    sent, dtype = value["sent"], value.get("dtype")
    if not isinstance(sent, str) or sent not in FLOATS:
        detail = f"the array '{name}' is sent as {sent!r}; known are {' and '.join(FLOATS)}"
        raise Refusal("invalid_array", detail)
    if not isinstance(dtype, str) or dtype not in WIDE:
        wide = " and ".join(sorted(WIDE))
        raise Refusal(
            "invalid_array", f"the array '{name}' has dtype {dtype!r}; only {wide} are sent as {sent}"
        )
    members = {member: one for member, one in value.items() if member != "sent"}
    return restored(_from_members({**members, "dtype": CARRIERS[sent]}, name), sent, dtype)  # type: ignore[arg-type] # one of FLOATS


def _shape(value: Any, name: str) -> tuple[int, ...]:
    whole = type(value) in SEQUENCES and len(value) <= 32
    entries = 1
    for length in value if whole else ():
        if type(length) is not int or not 0 <= length < 2**40:
            whole = False
            break
        entries *= length or 1  # NumPy multiplies the lengths of empty arrays too
    if not whole or entries >= 2**60:
        detail = f"the array '{name}' has shape {value!r}; a shape is a list of at most 32 lengths"
        raise Refusal("invalid_array", detail)
    return tuple(value)


def _from_lists(value: Any, name: str) -> NDArray[Any]:
    if not isinstance(value, list | tuple | int | float | str):
        kind = "null" if value is None else type(value).__name__
        detail = f"'{name}' is {kind}, not an array: send numbers, nested lists or {{dtype, shape, data}}"
        raise Refusal("invalid_array", detail)
    try:
        array = np.asarray(value)
        if array.dtype.kind in "UO":
            array = np.asarray(_words(value))
    except (ValueError, OverflowError, TypeError, RecursionError):
        raise Refusal(
            "invalid_array", f"the lists of '{name}' do not form an array of numbers: rows differ in length"
        ) from None
    if array.dtype.kind not in "biuf":
        raise Refusal("invalid_array", f"'{name}' holds something that is not a number")
    return array


def _words(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_words(item) for item in value]
    return WORDS.get(value, value) if isinstance(value, str) else value


def encode_array(array: Any, encoding: Encoding, floats: Floats | None = None) -> Any:
    """The travelling form of an array.

    `"attached"` for frames and `"bytes"` for msgpack; `"base64"` for JSON that keeps dtype and every bit;
    `"lists"` for JSON that people read: nested lists, with NaN and infinities as words. With `floats`, arrays
    of float32 and float64 go in two bytes an entry; numbers without axes, such as a loss, stay exact.
    """
    array = np.asarray(array)
    if floats and array.ndim and array.dtype.name in WIDE and encoding != "lists":
        return {**encode_array(halved(array, floats), encoding), "dtype": array.dtype.name, "sent": floats}
    if encoding == "lists":
        return _lists(array)
    name = NAMES.get(array.dtype) or array.dtype.name
    if name not in DTYPES:
        raise TypeError(
            f"arrays of {array.dtype} do not travel; convert to one of {', '.join(sorted(DTYPES))}"
        )
    little = np.asarray(array, dtype=LITTLE[name], order="C")
    # A view of the buffer: a frame sends it as it is, msgpack copies it once, into the body.
    data: Any = little.data.cast("B") if little.size else b""
    if encoding == "attached" and little.size:
        data = Attached(data)
    if encoding == "base64":
        data = base64.b64encode(data).decode()
    return {"dtype": name, "shape": list(array.shape), "data": data}


def _lists(array: NDArray[Any]) -> Any:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _spelled(array.tolist())
    return array.tolist()


def _spelled(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def encode_tree(value: Any, encoding: Encoding, floats: Floats | None = None) -> Any:
    """Arrays inside mappings and tuples, each in its travelling form; None stays."""
    if isinstance(value, Mapping):
        return {name: encode_tree(item, encoding, floats) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return {"tuple": [encode_tree(item, encoding, floats) for item in value]}
    return None if value is None else encode_array(value, encoding, floats)


def decode_tree(value: Any, name: str) -> Any:
    """The inverse of `encode_tree` for answers: NumPy arrays, dicts and tuples."""
    if isinstance(value, (dict, Mapping)) and not is_array_form(value):
        if len(value) == 1 and "tuple" in value:
            return tuple(decode_tree(item, name) for item in value["tuple"])
        return {key: decode_tree(item, f"{name}.{key}") for key, item in value.items()}
    if value is None:
        return None
    array = decode_array(value, name)
    return array.array if isinstance(array, Undeclared) else array
