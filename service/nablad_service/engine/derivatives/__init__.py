"""Derivative operators: one file an operator, each a row with its strategies."""

from __future__ import annotations

from nablad_service.engine.derivatives import (
    batched_jacobian,
    divergence,
    gradient,
    hessian,
    hutchinson,
    hvp,
    jacobian,
    jvp,
    laplacian,
    partial,
    vjp,
)
from nablad_service.engine.derivatives.row import (
    Choice,
    DerivativeRow,
    Differentiation,
    Drawn,
    Shapes,
    Strategy,
)
from nablad_service.language.signatures import OperatorSignature

__all__ = [
    "LOOPS",
    "ROWS",
    "TABLE",
    "VMAP",
    "Choice",
    "DerivativeRow",
    "Differentiation",
    "Drawn",
    "Shapes",
    "Strategy",
]

ROWS: tuple[DerivativeRow, ...] = (
    gradient.ROW,
    jacobian.ROW,
    batched_jacobian.ROW,
    partial.ROW,
    jvp.ROW,
    vjp.ROW,
    hvp.ROW,
    hessian.ROW,
    laplacian.ROW,
    divergence.ROW,
    hutchinson.ROW,
    hutchinson.WITH_ERROR,
)
TABLE: dict[str, DerivativeRow] = {row.signature.name: row for row in ROWS}

LOOPS = (
    OperatorSignature(
        "fori",
        "fori(n, body, init)",
        "body(i, carry) applied n times, beginning with init; n is a whole number of the text.",
        "loop",
    ),
    OperatorSignature(
        "scan",
        "scan(body, init, xs)",
        "body(carry, x), giving (carry, y), over the leading axis of xs: (last carry, all y).",
        "loop",
    ),
)
VMAP = OperatorSignature(
    "vmap",
    "vmap(f, in_axes=0)",
    "The def f over the examples of its arguments: vmap(f)(x). Numbers are shared by all examples.",
    "derivative",
)
