"""What the drawn trees are made of beside derivatives: text and JAX function side by side, all tame.

Values stay of the order of one, so that nothing overflows and rounding stays small, and no root or logarithm
comes near zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from program_tree import BATCH, EXAMPLES, MATRIX, POINT, SCALAR, Apply, D, Expr, N, Shape

Row = tuple[str, Callable[..., Any]]

UNARY: tuple[Row, ...] = (
    ("sin({})", jnp.sin),
    ("cos({})", jnp.cos),
    ("tanh({})", jnp.tanh),
    ("sigmoid({})", jax.nn.sigmoid),
    ("arctan({})", jnp.arctan),
    ("erf({})", jax.scipy.special.erf),
    ("gelu({})", lambda a: jax.nn.gelu(a, approximate=False)),
    ("silu({})", jax.nn.silu),
    ("softplus({})", jax.nn.softplus),
    ("sqrt(1 + {}**2)", lambda a: jnp.sqrt(1 + a**2)),
    ("log1p({}**2)", lambda a: jnp.log1p(a**2)),
    ("exp(-square({}))", lambda a: jnp.exp(-(a**2))),
    ("exp(sin({}))", lambda a: jnp.exp(jnp.sin(a))),
    ("expm1(0.3 * tanh({}))", lambda a: jnp.expm1(0.3 * jnp.tanh(a))),
    ("arcsin(0.5 * cos({}))", lambda a: jnp.arcsin(0.5 * jnp.cos(a))),
    ("log(2.5 + tan(tanh({}) / 2))", lambda a: jnp.log(2.5 + jnp.tan(jnp.tanh(a) / 2))),
    ("sinh(tanh({}))", lambda a: jnp.sinh(jnp.tanh(a))),
    ("(0.2 * {}**3)", lambda a: 0.2 * a**3),
    ("(0.5 * {}**2)", lambda a: 0.5 * a**2),
    ("((1 + {}**2)**-0.5)", lambda a: (1 + a**2) ** -0.5),
    ("(2**tanh({}))", lambda a: 2 ** jnp.tanh(a)),
    ("(-{})", lambda a: -a),
    ("stop_gradient({})", jax.lax.stop_gradient),
    ("relu({})", jax.nn.relu),
    ("abs({})", jnp.abs),
    ("clip({}, -0.7, None)", lambda a: jnp.clip(a, -0.7, None)),
    ("where({0} < 0.2, {0}, 0.5 * {0}**2)", lambda a: jnp.where(a < 0.2, a, 0.5 * a**2)),
)

BINARY: tuple[Row, ...] = (
    ("({} + {})", lambda a, b: a + b),
    ("({} - {})", lambda a, b: a - b),
    ("({} * {})", lambda a, b: a * b),
    ("({} / (1.5 + {}**2))", lambda a, b: a / (1.5 + b**2)),
    ("arctan2({}, 2 + {}**2)", lambda a, b: jnp.arctan2(a, 2 + b**2)),
    ("where({0} > {1}, {0} * {1}, sin({0}))", lambda a, b: jnp.where(a > b, a * b, jnp.sin(a))),
    ("maximum({}, 0.3 * {})", lambda a, b: jnp.maximum(a, 0.3 * b)),
    ("minimum({}, 0.3 * {})", lambda a, b: jnp.minimum(a, 0.3 * b)),
    ("((1.2 + tanh({0}))**sin({1}))", lambda a, b: (1.2 + jnp.tanh(a)) ** jnp.sin(b)),
)

# From one shape to another: (result, shapes of the parts, whether examples stay apart, text, function).
Rule = tuple[Shape, tuple[Shape, ...], bool, str, Callable[..., Any]]
TO_SCALAR: tuple[Row, ...] = (
    ("sum({})", jnp.sum),
    ("mean({})", jnp.mean),
    ("var({})", jnp.var),
    ("max({})", jnp.max),
    ("logsumexp({})", jax.scipy.special.logsumexp),
    ("norm({}, eps=0.5)", lambda a: jnp.sqrt(jnp.sum(a**2) + 0.25)),
    ("dot({0}, sin({0}))", lambda a: jnp.sum(a * jnp.sin(a))),
)

OTHER: tuple[Rule, ...] = (
    *((SCALAR, (shape,), False, *row) for shape in (EXAMPLES, BATCH) for row in TO_SCALAR),
    *((SCALAR, (shape,), True, *row) for shape in (POINT, MATRIX) for row in TO_SCALAR),
    (SCALAR, (), True, "0.7", lambda: jnp.asarray(0.7)),
    (SCALAR, (EXAMPLES,), False, "{}[1]", lambda a: a[1]),
    (SCALAR, (POINT,), True, "{}[-1]", lambda a: a[-1]),
    (SCALAR, (BATCH,), False, "{}[2, 0]", lambda a: a[2, 0]),
    (SCALAR, (POINT, POINT), True, "({} @ {})", lambda a, b: a @ b),
    (SCALAR, (MATRIX,), True, "trace({})", jnp.trace),
    (SCALAR, (MATRIX,), True, "det(0.3 * {} + eye(2))", lambda a: jnp.linalg.det(0.3 * a + jnp.eye(D))),
    (SCALAR, (POINT,), True, "prod(cos({}))", lambda a: jnp.prod(jnp.cos(a))),
    (EXAMPLES, (BATCH,), True, "sum({}, axis=1)", lambda a: jnp.sum(a, 1)),
    (EXAMPLES, (BATCH,), True, "mean({}, axis=-1)", lambda a: jnp.mean(a, -1)),
    (EXAMPLES, (BATCH,), True, "max({}, axis=1)", lambda a: jnp.max(a, 1)),
    (EXAMPLES, (BATCH,), True, "logsumexp({}, axis=1)", lambda a: jax.scipy.special.logsumexp(a, 1)),
    (EXAMPLES, (BATCH,), True, "norm({}, axis=1, eps=0.5)", lambda a: jnp.sqrt(jnp.sum(a**2, 1) + 0.25)),
    (EXAMPLES, (BATCH,), True, "{}[:, 1]", lambda a: a[:, 1]),
    (EXAMPLES, (BATCH,), True, "reshape({}[:, :1], (-1,))", lambda a: a[:, 0]),
    (EXAMPLES, (BATCH, POINT), True, "({} @ {})", lambda a, b: a @ b),
    (EXAMPLES, (BATCH, BATCH), True, 'einsum("ij,ij->i", {}, {})', lambda a, b: jnp.sum(a * b, 1)),
    (EXAMPLES, (EXAMPLES, SCALAR), True, "({} * {})", lambda a, b: a * b),
    (EXAMPLES, (SCALAR,), True, "broadcast_to({}, (3,))", lambda a: jnp.broadcast_to(a, (N,))),
    (EXAMPLES, (EXAMPLES,), False, "cumsum({})", jnp.cumsum),
    (EXAMPLES, (EXAMPLES,), False, "roll({}, 1)", lambda a: jnp.roll(a, 1)),
    (EXAMPLES, (EXAMPLES,), False, "softmax({})", jax.nn.softmax),
    (EXAMPLES, (EXAMPLES,), False, "{}[::-1]", lambda a: a[::-1]),
    (EXAMPLES, (BATCH, EXAMPLES), False, "({0} @ ({0}.T @ {1}))", lambda a, b: a @ (a.T @ b)),
    (POINT, (BATCH,), False, "mean({}, axis=0)", lambda a: jnp.mean(a, 0)),
    (POINT, (BATCH,), False, "{}[1]", lambda a: a[1]),
    (POINT, (BATCH,), False, "take({}, 2)", lambda a: a[2]),
    (POINT, (BATCH, EXAMPLES), False, "({}.T @ {})", lambda a, b: a.T @ b),
    (POINT, (MATRIX, POINT), True, "({} @ {})", lambda a, b: a @ b),
    (POINT, (POINT, SCALAR), True, "({} - {})", lambda a, b: a - b),
    (POINT, (SCALAR, SCALAR), True, "stack([{}, {}])", lambda a, b: jnp.stack([a, b])),
    (POINT, (POINT,), True, "flip({})", lambda a: a[::-1]),
    (POINT, (POINT,), True, "softmax({})", jax.nn.softmax),
    (POINT, (MATRIX,), True, "diag({})", jnp.diag),
    (POINT, (POINT, POINT), True, "concat([{}, {}])[1:3]", lambda a, b: jnp.concatenate([a, b])[1:3]),
    (
        *(POINT, (MATRIX, POINT), True, "solve(2 * eye(2) + outer({1}, {1}) + 0 * {0}, {1})"),
        lambda a, b: jnp.linalg.solve(2 * jnp.eye(D) + jnp.outer(b, b) + 0 * a, b),
    ),
    (BATCH, (BATCH, POINT), True, "({} * {})", lambda a, b: a * b),
    (BATCH, (BATCH, SCALAR), True, "({} + {})", lambda a, b: a + b),
    (BATCH, (BATCH, EXAMPLES), True, "({} * {}[:, None])", lambda a, b: a * b[:, None]),
    (BATCH, (BATCH, EXAMPLES), True, "({} - expand_dims({}, 1))", lambda a, b: a - b[:, None]),
    (BATCH, (BATCH, MATRIX), True, "({} @ {})", lambda a, b: a @ b),
    (BATCH, (EXAMPLES, EXAMPLES), True, "stack([{}, {}], axis=1)", lambda a, b: jnp.stack([a, b], 1)),
    (BATCH, (EXAMPLES, POINT), True, "outer({}, {})", jnp.outer),
    (BATCH, (BATCH,), True, "{}[:, ::-1]", lambda a: a[:, ::-1]),
    (BATCH, (BATCH,), True, "cumsum({}, axis=1)", lambda a: jnp.cumsum(a, 1)),
    (BATCH, (BATCH,), True, "log_softmax({})", jax.nn.log_softmax),
    (BATCH, (BATCH, BATCH), True, "concat([{}[:, :1], {}[:, 1:]], axis=1)", lambda a, b: _sides(a, b)),
    (BATCH, (BATCH,), False, "softmax({}, axis=0)", lambda a: jax.nn.softmax(a, 0)),
    (BATCH, (BATCH,), False, "({0} - mean({0}, axis=0))", lambda a: a - jnp.mean(a, 0)),
    (EXAMPLES, (EXAMPLES, EXAMPLES), True, "max(stack([{}, {}]), axis=0)", jnp.maximum),
    (EXAMPLES, (EXAMPLES, EXAMPLES), False, "sum(outer({}, {}), axis=0)", lambda a, b: jnp.sum(a) * b),
    (EXAMPLES, (EXAMPLES, EXAMPLES), False, "({}[:, None] * {})[:, 1]", lambda a, b: a * b[1]),
    (EXAMPLES, (EXAMPLES, EXAMPLES), False, "(outer({}, {}) @ ones(3))", lambda a, b: a * jnp.sum(b)),
    (BATCH, (BATCH,), False, "reshape({}.T, (3, 2))", lambda a: jnp.reshape(a.T, (N, D))),
    (BATCH, (BATCH,), False, "roll({}, 1, axis=0)", lambda a: jnp.roll(a, 1, 0)),
    (BATCH, (BATCH, BATCH), False, "concat([{}[1:], {}[:1]])", lambda a, b: jnp.concatenate([a[1:], b[:1]])),
    (BATCH, (BATCH,), False, "take({}, arange(3)[::-1], axis=0)", lambda a: a[::-1]),
    (BATCH, (BATCH, EXAMPLES), False, "(outer({1}, {1}) @ {0})", lambda a, b: jnp.outer(b, b) @ a),
    (BATCH, (BATCH,), False, 'einsum("ij,kj,kl->il", {0}, {0}, {0})', lambda a: a @ a.T @ a),
    (MATRIX, (MATRIX,), False, "{}.T", jnp.transpose),
    (MATRIX, (MATRIX,), True, "{}[:, ::-1]", lambda a: a[:, ::-1]),
    (MATRIX, (MATRIX, MATRIX), False, 'einsum("ij,ji->ij", {}, {})', lambda a, b: a * b.T),
    (MATRIX, (MATRIX,), False, "cumsum({}, axis=0)", lambda a: jnp.cumsum(a, 0)),
    (POINT, (MATRIX,), False, "sum({}, axis=0)", lambda a: jnp.sum(a, 0)),
    (POINT, (MATRIX,), True, "sum({}, axis=1)", lambda a: jnp.sum(a, 1)),
    (POINT, (MATRIX, POINT), False, "({1} @ {0})", lambda a, b: b @ a),
    (MATRIX, (POINT, POINT), True, "outer({}, {})", jnp.outer),
    (MATRIX, (BATCH, BATCH), False, "({}.T @ {})", lambda a, b: a.T @ b),
    (MATRIX, (MATRIX, MATRIX), True, "({} @ {})", lambda a, b: a @ b),
    (MATRIX, (MATRIX, POINT), True, "({} + {}[:, None])", lambda a, b: a + b[:, None]),
    (MATRIX, (POINT,), True, "diag({})", jnp.diag),
)


def _sides(a: Any, b: Any) -> Any:
    return jnp.concatenate([a[:, :1], b[:, 1:]], 1)


def total(part: Expr) -> Apply:
    """The sum of all entries, of a tree too."""
    return Apply("sum(ravel({}))", lambda a: jnp.sum(ravel_pytree(a)[0]), (part,), SCALAR)


def squares(part: Expr) -> Apply:
    """The sum of squares of all entries, tamed."""
    return Apply("tanh(0.1 * sum(ravel({})**2))", _squares, (part,), SCALAR)


def _squares(a: Any) -> Any:
    return jnp.tanh(0.1 * jnp.sum(ravel_pytree(a)[0] ** 2))
