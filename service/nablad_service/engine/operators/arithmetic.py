"""`a + b` and its kin: on numbers of the text, arrays and parameter trees (leaf by leaf)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nablad.problems import Refusal
from nablad_service.engine.operators.row import Row, row
from nablad_service.engine.values import Tree, Value, array, is_static, map_tree, mismatch, show

LARGEST = 2**63


def infix(symbol: str, name: str, doc: str, on_arrays: Callable[[Any, Any], Any]) -> Row:
    """A binary operator: static numbers stay static, trees go leaf by leaf, arrays broadcast."""
    on_numbers = NUMBERS[symbol]

    def apply(a: Value, b: Value) -> Value:
        if is_static(a) and is_static(b):
            return _number(symbol, on_numbers, a, b)
        if isinstance(a, dict) or isinstance(b, dict):
            return _leaf_by_leaf(apply, a, b)
        left = a if is_static(a) else array(a, f"the left side of {symbol}")
        right = b if is_static(b) else array(b, f"the right side of {symbol}")
        if symbol != "@":
            check_broadcast(left, right, symbol)
        return on_arrays(left, right)

    return row(f"a {symbol} b", doc, "arithmetic", apply, name=name)


NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "@": operator.mul,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def _number(symbol: str, compute: Callable[[Any, Any], Any], a: Any, b: Any) -> bool | int | float:
    # 9**9**9 must not be computed to be refused: its size is known before.
    if symbol == "**" and abs(a) > 1 and b * math.log2(abs(a)) > 1024:
        raise Refusal("number_too_large", f"{a}**{b} is beyond the range of a float")
    try:
        result = compute(a, b)
    except ZeroDivisionError:
        raise Refusal("number_too_large", f"{a} {symbol} {b} divides by zero") from None
    except OverflowError:
        result = math.inf
    if isinstance(result, complex):
        raise Refusal("wrong_dtype", f"({a})**{b} is not a real number")
    if isinstance(result, int) and abs(result) >= LARGEST:
        raise Refusal("number_too_large", f"{a} {symbol} {b} is beyond 2**63; write one of them as a float")
    if isinstance(result, float) and not math.isfinite(result):
        raise Refusal("number_too_large", f"{a} {symbol} {b} is beyond the range of a float")
    if not isinstance(result, bool | int | float):
        raise Refusal("wrong_kind", f"{a} {symbol} {b} is not a number")
    return result


def _leaf_by_leaf(apply: Callable[[Value, Value], Value], a: Value, b: Value) -> Tree:
    if isinstance(a, dict) and isinstance(b, dict):
        if set(a) != set(b):
            different = sorted(set(a) ^ set(b))
            raise Refusal("shape_mismatch", f"the two trees differ in their leaves: {different[:5]}")
        return map_tree(apply, a, b)
    if isinstance(a, dict):
        return map_tree(lambda leaf: apply(leaf, b), a)
    return map_tree(lambda leaf: apply(a, leaf), b)


def check_broadcast(left: Value, right: Value, symbol: str) -> None:
    """Refuse shapes that do not broadcast, and print both."""
    a, b = jnp.shape(left), jnp.shape(right)
    try:
        jnp.broadcast_shapes(a, b)
    except ValueError:
        detail = f"shapes {a} and {b} do not fit for '{symbol}'"
        raise mismatch(detail, a, b) from None


def column_meets_row(a: Value, b: Value) -> bool:
    """Whether shapes `(n, 1)` and `(n,)` meet and silently make `(n, n)`."""
    column, flat = sorted((jnp.shape(a), jnp.shape(b)), key=len, reverse=True)
    return len(column) == 2 and column[1] == 1 and flat == (column[0],) and column[0] > 1


def matmul(a: Value, b: Value) -> Value:
    """Matrix product with NumPy's meaning."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    fits = a.ndim and b.ndim and a.shape[-1] == b.shape[-2 if b.ndim > 1 else 0]
    if not fits:
        detail = f"shapes {a.shape} and {b.shape} do not fit for '@'"
        raise mismatch(detail, a.shape, b.shape)
    return jnp.matmul(a, b)


def power(a: Value, b: Value) -> Value:
    """a**b. Whole powers, x**2.0 among them, have derivatives of any order at zero.

    Whole arrays to whole powers that are not known to be positive are floats: 2**-1 is no whole number.
    """
    floats = jnp.issubdtype(jnp.result_type(a), jnp.floating)
    if is_static(b):
        whole = float(b).is_integer()
        if whole and (floats or b >= 0):
            return a ** int(b)
        return (a if floats else jnp.asarray(a, float)) ** b
    if jnp.issubdtype(b.dtype, jnp.floating):
        return a**b
    return _whole_power(jnp.asarray(a) if floats else jnp.asarray(a, float), b)


@jax.custom_jvp
def _whole_power(x: jax.Array, n: jax.Array) -> jax.Array:
    """x**n for a whole array n: d/dx = n x**(n - 1) at zero too, where JAX's own rule gives NaN in time."""
    return x**n


@_whole_power.defjvp
def _derivative_of_whole_power(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x, n), (t, _) = primals, tangents
    # For n = 0 the factor is zero, and the power must stay finite.
    return _whole_power(x, n), n * _whole_power(x, jnp.where(n == 0, 0, n - 1)) * t


def prefix(symbol: str, name: str, doc: str, on_arrays: Callable[[Any], Any]) -> Row:
    """A unary operator."""

    def apply(a: Value) -> Value:
        if isinstance(a, dict):
            return map_tree(apply, a)
        if is_static(a):
            return -a if symbol == "-" else +a
        if a is None or isinstance(a, str):
            raise Refusal("wrong_kind", f"'{symbol}' needs a number or an array, not {show(a)}")
        return on_arrays(array(a))

    return row(f"{symbol}a", doc, "arithmetic", apply, name=name)


ROWS = (
    infix("+", "add", "Sum; parameter trees add leaf by leaf.", jnp.add),
    infix("-", "subtract", "Difference.", jnp.subtract),
    infix("*", "multiply", "Product, entry by entry.", jnp.multiply),
    infix("/", "divide", "Quotient.", jnp.divide),
    infix("//", "floor_divide", "Quotient rounded down.", jnp.floor_divide),
    infix("%", "remainder", "Remainder with the sign of the divisor.", jnp.remainder),
    infix("**", "power", "Power.", power),
    infix("@", "matmul", "Matrix product; leading axes are batch axes.", matmul),
    infix("<", "less", "Whether a is less than b.", jnp.less),
    infix("<=", "less_equal", "Whether a is at most b.", jnp.less_equal),
    infix(">", "greater", "Whether a is greater than b.", jnp.greater),
    infix(">=", "greater_equal", "Whether a is at least b.", jnp.greater_equal),
    infix("==", "equal", "Whether a equals b.", jnp.equal),
    infix("!=", "not_equal", "Whether a differs from b.", jnp.not_equal),
    prefix("-", "negative", "Negation.", jnp.negative),
    prefix("+", "positive", "The value itself.", lambda a: a),
)
