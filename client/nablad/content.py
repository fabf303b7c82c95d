"""What arrays and trees are called by their content: handles of values, versions of parameters.

One definition for both ends. The server always digests what it has received itself: a handle that a caller
sends along with bytes is never believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def handle_of(value: Any) -> str:
    """The handle of an array, or of a flat tree of arrays: 32 hexadecimal digits.

    The blake2b-128 digest of names, dtypes, shapes and little-endian bytes, leaves in their order. Equal
    content has equal handles, wherever it was computed; a tree of other names or another order is other
    content. It costs about a millisecond a megabyte.
    """
    if isinstance(value, Mapping):
        return _digest([("tree", np.zeros(0, bool)), *value.items()])
    return _digest([("", value)])


def version_of(params: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The version of parameters with their state: the same digest of all leaves, in the model's order."""
    return _digest([*params.items(), *state.items()])


def handle_in(value: Any) -> str | None:
    """The handle that a member of a request consists of, `{"handle": "..."}`; None where it is none."""
    if isinstance(value, Mapping) and len(value) == 1:
        handle = value.get("handle")
        return handle if isinstance(handle, str) else None
    return None


def _digest(leaves: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in leaves:
        leaf = np.asarray(value)
        leaf = np.asarray(leaf, dtype=leaf.dtype.newbyteorder("<"), order="C")
        digest.update(f"{name}:{leaf.dtype.str}:{leaf.shape};".encode())
        digest.update(leaf.data if leaf.size else b"")
    return digest.hexdigest()
