"""What stands for a value while a loss function is traced: NumPy works on it, and is recorded."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from nablad.tracing.errors import TraceError, UnknownAttributeError, nearest
from nablad.tracing.expressions import attribute, subscript, unassigned
from nablad.tracing.graph import Expression, Shape, Variable
from nablad.tracing.indexing import index_part
from nablad.tracing.numpy_calls import expression_of, full_name, row_of
from nablad.tracing.numpy_table import Rewrite, Row
from nablad.tracing.recorder import Handle, current, part_of

# Array methods that are the NumPy functions of the same arguments.
METHODS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        name: getattr(np, name)
        for name in (
            *("sum", "mean", "max", "min", "prod", "var", "std", "any", "all", "argmax", "cumsum"),
            *("squeeze", "ravel", "take", "clip", "dot", "trace"),
        )
    }
    | {"flatten": np.ravel}
)

_Binary = Callable[[Any, Any], Any]


def _binary(function: Callable[..., Any]) -> tuple[_Binary, _Binary]:
    return (
        lambda self, other: apply_numpy(function, (self, other)),
        lambda self, other: apply_numpy(function, (other, self)),
    )


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda self: apply_numpy(function, (self,))


def _refusing(why: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *arguments: Any, **keywords: Any) -> NoReturn:
        raise TraceError(why)

    return refuse


_NO_TRUTH = (
    "a traced value has no truth value, so if, and, or, not, min() and max() cannot look at it: choose "
    "between values with np.where(condition, a, b), join conditions with & and |"
)
_NO_NUMBER = (
    "a traced value is not a number yet, only the server computes it: use NumPy functions on it (np.stack "
    "makes an array of several), not float, int, range or np.array"
)
_NO_ASSIGNMENT = (
    "a traced value cannot be written into: build the new value with np.where, np.stack or np.concatenate"
)


class Symbol(Handle):
    """A traced value.

    Arithmetic, comparisons, indexing, NumPy functions and the array methods of `METHODS` give new symbols.
    Inputs know their shape; of other values only the server does, and their `.shape` is a traced value, to be
    indexed.
    """

    __slots__ = ()

    __hash__ = object.__hash__

    __add__, __radd__ = _binary(np.add)
    __sub__, __rsub__ = _binary(np.subtract)
    __mul__, __rmul__ = _binary(np.multiply)
    __truediv__, __rtruediv__ = _binary(np.divide)
    __floordiv__, __rfloordiv__ = _binary(np.floor_divide)
    __mod__, __rmod__ = _binary(np.remainder)
    __pow__, __rpow__ = _binary(np.power)
    __matmul__, __rmatmul__ = _binary(np.matmul)
    __and__, __rand__ = _binary(np.bitwise_and)
    __or__, __ror__ = _binary(np.bitwise_or)
    __lt__, __gt__ = _binary(np.less)[0], _binary(np.greater)[0]
    __le__, __ge__ = _binary(np.less_equal)[0], _binary(np.greater_equal)[0]
    __eq__, __ne__ = _binary(np.equal)[0], _binary(np.not_equal)[0]
    __neg__, __pos__ = _unary(np.negative), _unary(np.positive)
    __abs__, __invert__ = _unary(np.absolute), _unary(np.invert)

    __bool__ = _refusing(_NO_TRUTH)
    __float__ = __int__ = __index__ = __complex__ = __array__ = __round__ = _refusing(_NO_NUMBER)
    __setitem__ = __delitem__ = _refusing(_NO_ASSIGNMENT)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        if method != "__call__":
            raise TraceError(f"numpy.{ufunc.__name__}.{method} has no word in the loss language")
        return apply_numpy(ufunc, inputs, keywords)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        return apply_numpy(function, arguments, keywords)

    def __getitem__(self, index: Any) -> "Symbol":
        known = self._known
        shape: Shape | None = None
        if isinstance(known, dict):
            if not isinstance(index, str) or index not in known:
                raise TraceError(f"this parameter tree has no leaf {index!r}; {nearest(str(index), known)}")
            shape = known[index]
        elif isinstance(index, tuple) and not index:
            return self
        part = part_of(self)
        expression = subscript(part, index_part(index))
        if isinstance(part, Expression) and isinstance(index, str):
            return Symbol(unassigned(expression), self._scope)
        return record(expression, shape=shape)

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return partial(METHODS[name], self)
        if name.startswith("_"):
            raise AttributeError(name)
        raise UnknownAttributeError(f"a traced value has no attribute {name!r}; {nearest(name, _PUBLIC)}")

    @property
    def T(self) -> "Symbol":  # noqa: N802 # NumPy's name
        """The transpose."""
        return record(attribute(part_of(self), "T"))

    @property
    def shape(self) -> Any:
        """The shape: a tuple of numbers for an input, a traced value (`u.shape[0]`) for anything else."""
        known = self._known
        if isinstance(known, dict):
            raise TraceError("a parameter tree has no shape of its own: ask one of its leaves")
        return record(attribute(part_of(self), "shape")) if known is None else known

    @property
    def ndim(self) -> int:
        """The number of axes of an input."""
        return len(self._known_shape("ndim"))

    @property
    def size(self) -> int:
        """The number of elements of an input."""
        return int(np.prod(self._known_shape("size"), dtype=np.int64))

    def reshape(self, *shape: Any) -> Any:
        """`np.reshape`; the shape as one tuple or as several numbers."""
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Any:
        """`np.transpose`; the axes as one tuple, as several numbers, or none to reverse them."""
        return np.transpose(self, axes[0] if len(axes) == 1 else axes or None)

    def keys(self) -> Iterator[str]:
        """The leaf names of a parameter tree among the inputs."""
        if isinstance(self._known, dict):
            return iter(tuple(self._known))
        raise TraceError(
            "only the server knows the leaves of this value: name them, as in p['layer_1.weight']"
        )

    def items(self) -> Iterator[tuple[str, "Symbol"]]:
        """The leaves of a parameter tree among the inputs, with their names."""
        return ((key, self[key]) for key in self.keys())

    def values(self) -> Iterator["Symbol"]:
        """The leaves of a parameter tree among the inputs."""
        return (self[key] for key in self.keys())

    def __len__(self) -> int:
        if isinstance(self._known, dict):
            return len(self._known)
        shape = self._known_shape("len()")
        if not shape:
            raise TraceError("len() of a traced value without axes")
        return shape[0]

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._known, dict):
            return self.keys()
        if self._known is None:
            self._known_shape("iterating (or unpacking, or Python's sum)")
        return (self[i] for i in range(len(self)))

    def __contains__(self, item: Any) -> bool:
        if isinstance(self._known, dict):
            return item in self._known
        raise TraceError(_NO_TRUTH)

    def __repr__(self) -> str:
        part = self._part
        if isinstance(part, Variable) and part.wish:
            return f"<traced value {part.wish}>"
        expression = part if isinstance(part, Expression) else getattr(part, "expression", None)
        return f"<traced value {expression.template.replace('{}', '…') if expression else '…'}>"

    @property
    def _known(self) -> Shape | dict[str, Shape] | None:
        return self._part.shape if isinstance(self._part, Variable) else None

    def _known_shape(self, asked: str) -> Shape:
        known = self._known
        if isinstance(known, tuple):
            return known
        raise TraceError(
            f"{asked} needs a shape that only the server knows: shapes are known of inputs; otherwise index "
            f"the value (x[0], x[1]) and its shape (x.shape[0])"
        )


def record(expression: Expression, *, boolean: bool = False, shape: Shape | None = None) -> Symbol:
    """Return a new value of the trace in progress."""
    variable = current("a traced value").record(expression, boolean=boolean, shape=shape)
    return Symbol(variable, variable.scope)


def record_together(expression: Expression, count: int) -> tuple[Symbol, ...]:
    """Return the `count` values that an expression gives together."""
    recorder = current("a traced value")
    whole = recorder.record(expression)
    return tuple(Symbol(component, whole.scope) for component in recorder.components(whole, count))


def apply_numpy(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return what a NumPy function gives of traced values.

    Raises:
        TraceError: the language has no word for it, or not with these arguments.
    """
    row = row_of(function)
    if keywords.get("out") is not None:
        raise TraceError(
            f"{full_name(function)} cannot write a traced value into an array: "
            f"a = a + b in place of a += b, and no out="
        )
    write = partial(apply_row, full_name(function))
    if isinstance(row, Rewrite):
        return row.function(write, *arguments, **keywords)
    return write(row, *arguments, **keywords)


def apply_row(shown: str, row: Row, *arguments: Any, **keywords: Any) -> Any:
    """Return the value, or the several values, of one row applied; `shown` names the function in messages."""
    expression = expression_of(shown, row, arguments, keywords)
    if row.result is None:
        return record(expression, boolean=row.boolean)
    return row.result(*record_together(expression, len(row.result._fields)))


_PUBLIC = [*METHODS, *(name for name in vars(Symbol) if not name.startswith("_"))]
