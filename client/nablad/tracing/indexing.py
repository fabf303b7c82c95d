"""What stands between the brackets of `x[...]`."""

from typing import Any

import numpy as np

from nablad.tracing.errors import TraceError
from nablad.tracing.expressions import literal
from nablad.tracing.graph import ANY, Expression, Part
from nablad.tracing.operands import contains_handle, is_condition, operand, string


def index_part(index: Any) -> Part:
    """Return an index as it is written: integers, slices, None, `...`, integer arrays, a leaf's name.

    A boolean array constant becomes the positions where it is true, as NumPy defines it.

    Raises:
        TraceError: it is no index, or a traced mask, whose number of true entries only the server knows.
    """
    if isinstance(index, str):
        return string(index)
    pieces = [piece for entry in _entries(index) for piece in _axis_parts(entry)]
    if len(pieces) == 1:
        return pieces[0]
    return Expression(", ".join(["{}"] * len(pieces)), tuple(pieces), (ANY,) * len(pieces), ANY)


def _entries(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _axis_parts(entry: Any) -> list[Part]:
    if entry is None or entry is Ellipsis:
        return [literal("None" if entry is None else "...")]
    if isinstance(entry, slice):
        return [_slice(entry)]
    if isinstance(entry, list | tuple) and not contains_handle(entry):
        entry = np.asarray(entry) if entry else np.zeros(0, np.int64)
    if isinstance(entry, np.ndarray) and entry.dtype.kind == "b" and entry.ndim:
        return [operand(positions) for positions in entry.nonzero()]
    part = operand(entry)
    if is_condition(entry):
        raise TraceError(
            "a traced value cannot be indexed by a condition, because the size of the result would depend on "
            "it: use np.where(condition, x, 0)"
        )
    if not contains_handle(entry) and np.asarray(entry).dtype.kind not in "iu":
        raise TraceError(f"{entry!r} is no index: use integers, slices, None or ...")
    return [part]


def _slice(entry: slice) -> Expression:
    bounds = [entry.start, entry.stop] if entry.step is None else [entry.start, entry.stop, entry.step]
    holes = ":".join("" if bound is None else "{}" for bound in bounds)
    parts = tuple(operand(bound) for bound in bounds if bound is not None)
    return Expression(holes, parts, (ANY,) * len(parts))
