"""The one table from NumPy's functions to the loss language."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nablad.tracing.errors import TraceError
from nablad.tracing.operands import is_condition, known_shape


class Slogdet(NamedTuple):
    """What `np.linalg.slogdet` gives of a traced matrix, in NumPy's order and under NumPy's names."""

    sign: Any
    logabsdet: Any


@dataclass(frozen=True)
class Row:
    """How one NumPy function is written.

    `signature` lists NumPy's parameters in NumPy's order:

    - `a`: a value, written by position
    - `arrays[]`: a list of values, written `[a, b]`
    - `shape()`: a shape, a shift or a string, written by position
    - `*operands`: any number of values
    - `axis=None`: written as a keyword where it is given and is not that default; `axis=` always
    - `~dtype`: known to NumPy, not to the language; accepted only at NumPy's own default
    """

    name: str
    signature: str = "x"
    result: type[Slogdet] | None = None

    @property
    def boolean(self) -> bool:
        """Whether the values are true or false."""
        return self.name in BOOLEAN


@dataclass(frozen=True)
class Rewrite:
    """A NumPy function that is said with others: `function(write, *its arguments)` gives the value.

    `write(row, *arguments)` records one row.
    """

    function: Callable[..., Any]


NORM = Row("norm", "x axis=None keepdims=False eps=0")

BOOLEAN = frozenset(
    ("<", "<=", ">", ">=", "==", "!=", "isfinite", "any", "all", "logical_and", "logical_or", "logical_not")
)

# NumPy's own defaults of the parameters that the language does not have.
NUMPY_DEFAULTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("dtype", "out", "shape", "copy", "device", "signature"), (None,)),
    **dict.fromkeys(("where", "subok", "endpoint"), (True,)),
    **dict.fromkeys(("upper", "retstep", "keepdims"), (False,)),
    **dict.fromkeys(("ddof", "correction", "offset", "axis1", "decimals"), (0,)),
    "axis2": (1,),
    "order": ("K", "C"),
    "casting": ("same_kind",),
    "mode": ("raise",),
    "UPLO": ("L",),
    "optimize": (False, True, "greedy", "optimal"),  # the server's compiler orders the contraction itself
}


def _clip(write: Any, a: Any, a_min: Any = None, a_max: Any = None, out: None = None, **bounds: Any) -> Any:
    given = (bounds.get("min", a_min), bounds.get("max", a_max))
    low, high = (None if bound is np._NoValue else bound for bound in given)
    if low is None or high is None:
        a = a if low is None else np.maximum(a, low)
        return a if high is None else np.minimum(a, high)
    return write(Row("clip", "a low high"), a, low, high)


def _svd(
    write: Any, a: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False
) -> Any:
    if compute_uv:
        raise TraceError(
            "the loss language has no singular vectors: ask for the singular values alone, "
            "np.linalg.svd(a, compute_uv=False)"
        )
    return write(Row("svdvals"), a)


def _norm(
    write: Any,
    x: Any,
    ord: Any = None,  # noqa: A002 # NumPy's name
    axis: Any = None,
    keepdims: bool = False,
) -> Any:
    euclidean = ord is None or ord == "fro" or (ord == 2 and isinstance(axis, int))
    if not euclidean:
        raise TraceError(
            f"the loss language has the Euclidean norm only, not ord={ord!r}: write it out, such as "
            f"np.sum(np.abs(x)) or np.linalg.svd(x, compute_uv=False)[0]"
        )
    return write(NORM, x, axis=axis, keepdims=keepdims)


def _dot(write: Any, a: Any, b: Any, out: None = None) -> Any:
    # NumPy's dot is a product of matrices for two axes at most; the language's sums over all of them.
    axes = [len(shape) for shape in (known_shape(a), known_shape(b)) if shape is not None]
    if 0 in axes:
        return np.multiply(a, b)
    if max(axes, default=0) > 2:
        raise TraceError("numpy.dot of more than two axes has no word in the loss language: use np.einsum")
    return np.matmul(a, b)


def _trace(write: Any, a: Any, *others: Any, **keywords: Any) -> Any:
    # NumPy's trace takes the first two axes, the language's the last two.
    if len(known_shape(a) or ()) > 2:
        raise TraceError('numpy.trace of more than two axes: use np.einsum("ii...->...", a)')
    return write(Row("trace", "a ~offset ~axis1 ~axis2 ~dtype ~out"), a, *others, **keywords)


def _take(write: Any, a: Any, indices: Any, axis: Any = None, out: None = None, mode: str = "raise") -> Any:
    if mode != "raise":
        raise TraceError(
            f"numpy.take is given mode={mode!r}, which the loss language does not have: leave it out"
        )
    flat, along = (np.reshape(a, (-1,)), 0) if axis is None else (a, axis)
    return write(Row("take", "a indices axis="), flat, indices, axis=along)


def _linspace(write: Any, start: Any, stop: Any, num: int = 50, **others: Any) -> Any:
    return write(Row("linspace", "start stop num()"), start, stop, num, **others)


def _on_conditions(name: str) -> Rewrite:
    def rewrite(write: Any, *conditions: Any) -> Any:
        if not all(is_condition(condition) for condition in conditions):
            raise TraceError(
                f"& | ~ join conditions, as in (x > 0) & (x < 1): use np.{name} for other values"
            )
        return write(Row(name, "*conditions"), *conditions)

    return Rewrite(rewrite)


_REDUCTION = "a axis=None ~out keepdims=False ~initial ~where"
_SUM = "a axis=None ~dtype ~out keepdims=False ~initial ~where"
_MOMENT = "a axis=None ~dtype ~out ~ddof keepdims=False ~where"
_SAME_NAME = (
    *("exp", "expm1", "log", "log1p", "sqrt", "square", "sin", "cos", "tan", "arcsin", "arccos", "arctan"),
    *("sinh", "cosh", "tanh", "sign", "floor", "ceil", "isfinite", "logical_not"),
)
_SAME_NAME_PAIRS = ("arctan2", "maximum", "minimum", "logical_and", "logical_or")

LANGUAGE: dict[Any, Row | Rewrite] = {
    # Python operators
    np.add: Row("+", "x1 x2"),
    np.subtract: Row("-", "x1 x2"),
    np.multiply: Row("*", "x1 x2"),
    np.divide: Row("/", "x1 x2"),
    np.floor_divide: Row("//", "x1 x2"),
    np.remainder: Row("%", "x1 x2"),
    np.power: Row("**", "x1 x2"),
    np.float_power: Row("**", "x1 x2"),
    np.matmul: Row("@", "x1 x2"),
    np.negative: Row("negative"),
    np.less: Row("<", "x1 x2"),
    np.less_equal: Row("<=", "x1 x2"),
    np.greater: Row(">", "x1 x2"),
    np.greater_equal: Row(">=", "x1 x2"),
    np.equal: Row("==", "x1 x2"),
    np.not_equal: Row("!=", "x1 x2"),
    # elementwise
    **{getattr(np, name): Row(name) for name in _SAME_NAME},
    **{getattr(np, name): Row(name, "x1 x2") for name in _SAME_NAME_PAIRS},
    np.rint: Row("round"),
    np.round: Row("round", "a ~decimals ~out"),
    np.absolute: Row("abs"),
    np.fabs: Row("abs"),
    np.where: Row("where", "condition x y"),
    np.clip: Rewrite(_clip),
    np.bitwise_and: _on_conditions("logical_and"),
    np.bitwise_or: _on_conditions("logical_or"),
    np.invert: _on_conditions("logical_not"),
    np.positive: Rewrite(lambda write, x: x),
    np.reciprocal: Rewrite(lambda write, x: 1 / x),
    # reductions
    np.sum: Row("sum", _SUM),
    np.prod: Row("prod", _SUM),
    np.mean: Row("mean", "a axis=None ~dtype ~out keepdims=False ~where"),
    np.max: Row("max", _REDUCTION),
    np.amax: Row("max", _REDUCTION),
    np.min: Row("min", _REDUCTION),
    np.amin: Row("min", _REDUCTION),
    np.var: Row("var", _MOMENT),
    np.std: Row("std", _MOMENT),
    np.any: Row("any", "a axis=None ~out keepdims=False ~where"),
    np.all: Row("all", "a axis=None ~out keepdims=False ~where"),
    np.argmax: Row("argmax", "a axis=None ~out ~keepdims"),
    np.cumsum: Row("cumsum", "a axis=None ~dtype ~out"),
    np.linalg.norm: Rewrite(_norm),
    # shape
    np.stack: Row("stack", "arrays[] axis=0 ~out"),
    np.concatenate: Row("concat", "arrays[] axis=0 ~out"),
    np.reshape: Row("reshape", "a shape() ~order"),
    np.ravel: Rewrite(lambda write, a, order="C": np.reshape(a, (-1,), order)),
    np.transpose: Row("transpose", "a axes=None"),
    np.squeeze: Row("squeeze", "a axis=None"),
    np.expand_dims: Row("expand_dims", "a axis="),
    np.take: Rewrite(_take),
    np.broadcast_to: Row("broadcast_to", "array shape() ~subok"),
    np.flip: Row("flip", "m axis=None"),
    np.roll: Row("roll", "a shift() axis=None"),
    np.linspace: Rewrite(_linspace),
    np.zeros_like: Row("zeros_like", "a ~dtype ~order ~subok ~shape"),
    np.ones_like: Row("ones_like", "a ~dtype ~order ~subok ~shape"),
    np.shape: Rewrite(lambda write, a: a.shape),
    np.ndim: Rewrite(lambda write, a: a.ndim),
    np.size: Rewrite(lambda write, a, axis=None: a.size if axis is None else a.shape[axis]),
    # linear algebra
    np.einsum: Row("einsum", "subscripts() *operands"),
    np.dot: Rewrite(_dot),
    np.vdot: Row("dot", "a b"),
    np.outer: Row("outer", "a b ~out"),
    np.trace: Rewrite(_trace),
    np.diag: Row("diag", "v k=0"),
    np.linalg.solve: Row("solve", "a b"),
    np.linalg.slogdet: Row("slogdet", "a", Slogdet),
    np.linalg.det: Row("det", "a"),
    np.linalg.inv: Row("inv", "a"),
    np.linalg.cholesky: Row("cholesky", "a"),
    np.linalg.eigvalsh: Row("eigvalsh", "a ~UPLO"),
    np.linalg.svd: Rewrite(_svd),
    # in NumPy 2 only
    **({np.linalg.svdvals: Row("svdvals")} if hasattr(np.linalg, "svdvals") else {}),
}

# What has a word in the language but none in NumPy: nablad exports these.
NABLAD: dict[str, Row] = {
    **{name: Row(name) for name in ("sigmoid", "relu", "softplus", "gelu", "silu", "erf")},
    **{name: Row(name, "x axis=-1") for name in ("softmax", "log_softmax")},
    "logsumexp": Row("logsumexp", "a axis=None keepdims=False"),
    "norm": NORM,
    "ravel": Row("ravel", "tree"),
    "unravel_like": Row("unravel_like", "vector tree"),
    "stop_gradient": Row("stop_gradient", "y"),
}
