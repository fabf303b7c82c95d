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
    jacobian_gram,
    jacobian_norms,
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
    Orders,
    Shapes,
    Strategy,
    Together,
    Tower,
)
from nablad_service.language.signatures import OperatorSignature

__all__ = [
    "HIDDEN",
    "LOOPS",
    "ROWS",
    "TABLE",
    "VMAP",
    "Choice",
    "DerivativeRow",
    "Differentiation",
    "Drawn",
    "Orders",
    "Shapes",
    "Strategy",
    "Together",
    "Tower",
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
HIDDEN: tuple[DerivativeRow, ...] = (
    jacobian_norms.ROW,
    jacobian_norms.MEAN,
    jacobian_norms.GRADIENT,
    jacobian_gram.ROW,
)
"""What no text calls: they are put in place of pieces of a program (`nablad_service.engine.fusing`)."""
TABLE: dict[str, DerivativeRow] = {row.signature.name: row for row in (*ROWS, *HIDDEN)}

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
