"""The trace in progress: where new values go, and which values may still be used."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from nablad.tracing.errors import TraceError
from nablad.tracing.graph import Expression, Part, Scope, Shape, Variable, leaves, words


class Recorder:
    """One trace: the program's scope, the scope now recorded into, and the array constants met on the way."""

    def __init__(self, given: Collection[str]) -> None:
        self.given = frozenset(given)  # the names of the inputs and models
        self.root = Scope()
        self.scope = self.root
        self.constants: list[tuple[Variable, np.ndarray[Any, Any], int]] = []
        self.read: set[Variable] = set()
        self._kept: list[Any] = []

    def record(
        self, expression: Expression, *, boolean: bool = False, shape: Shape | None = None
    ) -> Variable:
        """Add a new variable to the current scope.

        Raises:
            TraceError: an input or a model has the name of an operator that the expression calls.
        """
        for word in words(expression):
            if word in self.given:
                raise TraceError(
                    f"{word!r} is the name of an input or a model here and hides the operator {word!r} that "
                    f"the loss calls: give the input or model another name"
                )
        self.read.update(leaf for leaf, _ in leaves(expression) if isinstance(leaf, Variable))
        variable = Variable(self.scope, expression, shape=shape, boolean=boolean)
        self.scope.items.append(variable)
        return variable

    def components(self, whole: Variable, count: int) -> list[Variable]:
        """Add the variables that `whole` gives together: printed as `a, b = whole`."""
        made = [Variable(whole.scope, whole=whole) for _ in range(count)]
        whole.scope.items.extend(made)
        return made

    def constant(self, array: np.ndarray[Any, Any]) -> Variable:
        """Return the variable of an array constant; the same unchanged array gives the same variable."""
        for variable, copy, identity in self.constants:
            if identity == id(array) and copy.dtype == array.dtype and np.array_equal(copy, array):
                return variable
        variable = Variable(self.root, shape=array.shape, boolean=array.dtype.kind == "b")
        # A copy, as the function may write into its array later; the array too, so that its id stays taken.
        self.constants.append((variable, np.array(array, order="C"), id(array)))
        self._kept.append(array)
        return variable

    @contextmanager
    def inside(self, scope: Scope) -> Iterator[None]:
        """Record into `scope`, and close it on leaving: its values may not be used after that."""
        outer, self.scope = self.scope, scope
        try:
            yield
        finally:
            self.scope = outer
            scope.open = False


class Handle:
    """What stands for a part of the program in the user's hands."""

    __slots__ = ("_part", "_scope")

    _misuse = ""  # why it cannot be an operand, where it cannot

    def __init__(self, part: Part, scope: Scope) -> None:
        self._part = part
        self._scope = scope


_current: ContextVar[Recorder | None] = ContextVar("nablad_trace", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Make `recorder` the trace in progress."""
    token = _current.set(recorder)
    try:
        with recorder.inside(recorder.root):
            yield
    finally:
        _current.reset(token)


def current(asked: str) -> Recorder:
    """Return the trace in progress.

    Raises:
        TraceError: there is none; the message says that `asked` belongs in a loss function.
    """
    recorder = _current.get()
    if recorder is None:
        raise TraceError(
            f"{asked} works inside a loss function given to client.gradient or client.evaluate: the function "
            f"is called once with symbols, and what it does with them is sent to the server"
        )
    return recorder


def part_of(handle: Handle) -> Part:
    """Return what the handle stands for, to be used in the current scope.

    Raises:
        TraceError: the handle is no operand, or its scope has ended.
    """
    recorder = current("a traced value")
    if handle._misuse:
        raise TraceError(handle._misuse)
    if not recorder.scope.within(handle._scope):
        where = (
            f"the vmapped function {handle._scope.title!r}"
            if handle._scope.parent
            else "another loss function"
        )
        raise TraceError(
            f"a value made inside {where} is used outside of it: return it from that function instead"
        )
    return handle._part


def variables_of(scope: Scope, held: Mapping[str, Any]) -> dict[str, Variable]:
    """Return the values made in `scope` among the local variables `held`, each by its first name."""
    found: dict[Variable, str] = {}
    for name, value in held.items():
        if (
            not isinstance(value, Handle)
            or not name.isidentifier()
            or not name.strip("_")
            or name.startswith("__")
        ):
            continue
        part = value._part
        if isinstance(part, Variable) and part.scope is scope and (part.expression or part.whole):
            found.setdefault(part, name)
    return {name: variable for variable, name in found.items()}
