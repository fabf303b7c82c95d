"""The operator table: checker, evaluator, `GET /v1/operators` and README read the same rows."""

from __future__ import annotations

from nablad_service.engine import derivatives
from nablad_service.engine.operators import (
    arithmetic,
    elementwise,
    linear_algebra,
    random,
    reductions,
    shapes,
    trees,
)
from nablad_service.engine.operators.row import Row
from nablad_service.language.signatures import OperatorSignature

ROWS: tuple[Row, ...] = (
    *arithmetic.ROWS,
    *elementwise.ROWS,
    *reductions.ROWS,
    *shapes.ROWS,
    *trees.ROWS,
    *linear_algebra.ROWS,
    *random.ROWS,
)
TABLE: dict[str, Row] = {row.signature.name: row for row in (*ROWS, *reductions.HIDDEN)}

_CALLABLE = (
    *(derivative.signature for derivative in derivatives.ROWS),
    derivatives.VMAP,
    *derivatives.LOOPS,
    *(row.signature for row in ROWS if "(" in row.signature.text),
)
INFIX: tuple[OperatorSignature, ...] = tuple(
    row.signature for row in ROWS if row.signature.family == "arithmetic" or row.signature.name == "shape"
)

SIGNATURES: dict[str, OperatorSignature] = {
    name: signature for signature in _CALLABLE for name in (signature.name, *signature.aliases)
}
"""What a program may call, by name and alias."""
