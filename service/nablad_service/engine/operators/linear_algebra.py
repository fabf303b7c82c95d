"""Matrices; leading axes are batch axes throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine.operators.row import Row, row
from nablad_service.engine.values import Value, array, mismatch, static_int


def matrix(name: str, doc: str, function: Callable[[Any], Any], *, square: bool = True) -> Row:
    """A function of one matrix."""

    def apply(a: Value) -> Value:
        operand = array(a, f"the argument of {name}")
        if operand.ndim < 2 or (square and operand.shape[-1] != operand.shape[-2]):
            kind = "a square matrix" if square else "a matrix"
            raise Refusal("shape_mismatch", f"{name} needs {kind}, not shape {operand.shape}")
        return function(operand)

    return row(f"{name}(a)", doc, "linear algebra", apply)


def einsum(subscripts: Value, *arrays: Value) -> Value:
    """Sums of products by NumPy's index notation."""
    if not isinstance(subscripts, str):
        raise Refusal("wrong_kind", 'einsum begins with its subscripts, einsum("ij,j->i", a, b)')
    operands = [array(item) for item in arrays]
    try:
        return jnp.einsum(subscripts, *operands)
    except (ValueError, TypeError) as error:
        shapes = ", ".join(str(operand.shape) for operand in operands)
        first = str(error).split("\n")[0]
        raise Refusal("shape_mismatch", f"einsum {subscripts!r} does not fit {shapes}: {first}") from None


def dot(a: Value, b: Value) -> Value:
    """Sum of products of all entries, also of two trees."""
    if isinstance(a, dict) and isinstance(b, dict):
        if set(a) != set(b):
            raise Refusal("shape_mismatch", "dot of two trees needs the same leaves")
        return sum(jnp.vdot(a[leaf], b[leaf]) for leaf in a)
    left, right = array(a), array(b)
    if left.shape != right.shape:
        detail = f"dot sums the products of all entries: shapes {left.shape} and {right.shape} differ; see @"
        raise mismatch(detail, left.shape, right.shape)
    return jnp.vdot(left, right)


def solve(a: Value, b: Value) -> Value:
    """x with a x = b; b is a vector or a matrix of columns."""
    left, right = array(a), array(b)
    square = left.ndim >= 2 and left.shape[-1] == left.shape[-2]
    if not square or not right.ndim or right.shape[0 if right.ndim == 1 else -2] != left.shape[-1]:
        detail = f"solve(a, b) needs a square a and a b that fits, not {left.shape} and {right.shape}"
        raise mismatch(detail, left.shape, right.shape)
    return jnp.linalg.solve(left, right)


def slogdet(a: Any) -> tuple[Any, Any]:
    """Sign and logarithm of the absolute value of the determinant."""
    sign, logarithm = jnp.linalg.slogdet(a)
    return sign, logarithm


def outer(a: Value, b: Value) -> Value:
    """All products of the entries of two vectors."""
    return jnp.outer(array(a), array(b))


def diag(a: Value, k: Value = 0) -> Value:
    """The diagonal of a matrix, or the matrix with a vector on its diagonal."""
    operand = array(a)
    if operand.ndim not in (1, 2):
        raise Refusal("shape_mismatch", f"diag needs a vector or a matrix, not shape {operand.shape}")
    return jnp.diag(operand, static_int(k, "k"))


def _trace(a: jax.Array) -> jax.Array:
    return jnp.trace(a, axis1=-2, axis2=-1)


ROWS = (
    row(
        "einsum(subscripts, *arrays)", 'Sums of products: einsum("ij,j->i", a, b).', "linear algebra", einsum
    ),
    row(
        "dot(a, b)", "Sum of the products of all entries, also of two parameter trees.", "linear algebra", dot
    ),
    row("outer(a, b)", "All products of the entries of two vectors.", "linear algebra", outer),
    row("diag(a, k=0)", "A diagonal taken, or put into a matrix.", "linear algebra", diag),
    matrix("trace", "Sum of the diagonal.", _trace),
    row("solve(a, b)", "x with a @ x = b.", "linear algebra", solve),
    matrix("inv", "Inverse matrix; prefer solve.", jnp.linalg.inv),
    matrix("det", "Determinant; prefer slogdet.", jnp.linalg.det),
    matrix("slogdet", "(sign, log|det|): sign, logdet = slogdet(a).", slogdet),
    matrix("cholesky", "Lower triangular factor of a positive definite matrix.", jnp.linalg.cholesky),
    matrix("eigvalsh", "Eigenvalues of a symmetric matrix, ascending.", jnp.linalg.eigvalsh),
    matrix(
        "svdvals", "Singular values, descending.", lambda a: jnp.linalg.svd(a, compute_uv=False), square=False
    ),
)
