"""Which derivative gives which shape, of a value and with respect to a variable of which shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from program_tree import BATCH, EXAMPLES, MATRIX, POINT, SCALAR, Apply, Expr, Shape
from tame_operators import squares

ARRAYS: tuple[Shape, ...] = (SCALAR, EXAMPLES, POINT, BATCH, MATRIX)
PARAMETERS: tuple[Shape, ...] = ("field", "net", "leaf")


@dataclass(frozen=True)
class Recipe:
    """A derivative and what to do with its result, so that an array of `result` comes out."""

    operator: str
    result: Shape
    y: Shape
    x: Shape
    vectors: tuple[Shape, ...] = ()
    order: int = 1
    apart: bool = False
    """Whether examples must not mix in the value."""
    keeps: bool = False
    """Whether the result keeps examples apart where value and vectors do."""
    probes: bool = False
    finish: Callable[[Expr], Expr] = lambda derivative: derivative
    variables: int = 1
    unsure: bool = False
    """Only for values that may mix: drawing one that does not is not provided for."""


def _batched(*shapes: Shape) -> bool:
    return all(shape in (EXAMPLES, BATCH) for shape in shapes)


def _index(text: str, function: Callable[[Any], Any], shape: Shape) -> Callable[[Expr], Expr]:
    return lambda derivative: Apply(text, function, (derivative,), shape)


_FIRST = _index("{}[:, 0]", lambda a: a[:, 0], BATCH)
_ENTRY = _index("{}[:, 0, 1]", lambda a: a[:, 0, 1], EXAMPLES)
_ROWS = _index("sum({}**2, axis=(1, 2))", lambda a: jnp.sum(a**2, (1, 2)), EXAMPLES)
_SIGNED = _index('einsum("nkl,nlk->n", {0}, {0})', lambda a: jnp.einsum("nkl,nlk->n", a, a), EXAMPLES)
_SQUARE = _index("{}[:, 1, 0]", lambda a: a[:, 1, 0], POINT)
_SIDE = _index("{}[:, 0]", lambda a: a[:, 0], MATRIX)

RECIPES: tuple[Recipe, ...] = (
    *(Recipe("grad", x, SCALAR, x, keeps=x in (EXAMPLES, BATCH)) for x in ARRAYS),
    *(Recipe("hvp", x, SCALAR, x, (x,), 2, keeps=x in (EXAMPLES, BATCH)) for x in ARRAYS),
    *(Recipe("jvp", y, y, x, (x,), keeps=_batched(y) or not _batched(x)) for y in ARRAYS for x in ARRAYS),
    *(Recipe("vjp", x, y, x, (y,), keeps=_batched(x, y)) for y in ARRAYS for x in ARRAYS),
    *(Recipe("jvp", y, y, p, (p,)) for y in (SCALAR, EXAMPLES, BATCH) for p in PARAMETERS),
    *(Recipe("vjp", SCALAR, y, p, (y,), finish=squares) for y in (SCALAR, BATCH) for p in PARAMETERS),
    *(Recipe("grad", SCALAR, SCALAR, p, finish=squares) for p in PARAMETERS for _ in "ab"),
    *(Recipe("hvp", SCALAR, SCALAR, p, (p,), 2, finish=squares) for p in PARAMETERS),
    *(
        Recipe("jacobian", SCALAR, y, p, finish=squares)
        for y in (SCALAR, EXAMPLES, BATCH)
        for p in PARAMETERS
    ),
    *(Recipe("jacobian", SCALAR, y, x, finish=squares) for y in (POINT, BATCH) for x in (POINT, BATCH)),
    Recipe("hessian", SCALAR, SCALAR, "leaf", order=2, finish=squares),
    *(
        Recipe("hessian", SCALAR, SCALAR, x, order=2, finish=squares)
        for x in (SCALAR, EXAMPLES, BATCH, MATRIX)
    ),
    Recipe("hessian", MATRIX, SCALAR, POINT, order=2),
    Recipe("jacobian", MATRIX, POINT, POINT),
    Recipe("jacobian", MATRIX, SCALAR, MATRIX),
    Recipe("jacobian", POINT, POINT, SCALAR, keeps=True),
    Recipe("jacobian", POINT, SCALAR, POINT),
    Recipe("jacobian", BATCH, EXAMPLES, POINT, keeps=True),
    Recipe("jacobian", BATCH, BATCH, SCALAR, keeps=True),
    Recipe("jacobian", EXAMPLES, EXAMPLES, SCALAR, keeps=True),
    *(Recipe("laplacian", SCALAR, SCALAR, x, order=2) for x in (EXAMPLES, POINT, BATCH, MATRIX)),
    Recipe("laplacian", EXAMPLES, EXAMPLES, BATCH, order=2, apart=True, keeps=True),
    *(Recipe("divergence", SCALAR, x, x) for x in (EXAMPLES, POINT)),
    Recipe("divergence", EXAMPLES, BATCH, BATCH, apart=True, keeps=True),
    *(Recipe("hutchinson_trace", SCALAR, x, x, (x,), probes=True) for x in (EXAMPLES, POINT)),
    Recipe("hutchinson_trace", EXAMPLES, BATCH, BATCH, (BATCH,), apart=True, keeps=True, probes=True),
    *(Recipe("d", SCALAR, SCALAR, SCALAR, order=count, variables=count) for count in (1, 2)),
    *(
        Recipe("d", EXAMPLES, EXAMPLES, EXAMPLES, order=count, apart=True, keeps=True, variables=count)
        for count in (1, 2)
    ),
    Recipe("batched_jacobian", BATCH, EXAMPLES, BATCH, apart=True, keeps=True, finish=_FIRST),
    *(
        Recipe("batched_jacobian", EXAMPLES, BATCH, BATCH, apart=True, keeps=True, finish=finish)
        for finish in (_ENTRY, _ROWS, _SIGNED)
    ),
    Recipe("laplacian", POINT, POINT, MATRIX, order=2, apart=True, unsure=True),
    Recipe("divergence", POINT, MATRIX, MATRIX, apart=True, unsure=True),
    Recipe("hutchinson_trace", POINT, MATRIX, MATRIX, (MATRIX,), apart=True, unsure=True),
    *(Recipe("d", shape, shape, shape, apart=True, unsure=True) for shape in (POINT, BATCH, MATRIX)),
    Recipe("batched_jacobian", POINT, MATRIX, MATRIX, apart=True, unsure=True, finish=_SQUARE),
    Recipe("batched_jacobian", MATRIX, POINT, MATRIX, apart=True, unsure=True, finish=_SIDE),
)
