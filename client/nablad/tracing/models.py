"""What stands for a model while a loss function is traced."""

from typing import Any

from nablad.tracing.errors import TraceError
from nablad.tracing.expressions import attribute, called, unassigned
from nablad.tracing.graph import Part
from nablad.tracing.operands import operand, option
from nablad.tracing.recorder import Handle, current
from nablad.tracing.symbols import Symbol, record

_MODES = ("eval", "train")


class Model(Handle):
    """A hosted model, by the name the request binds it to.

    `model(x)` evaluates it at its bound parameters, `model(x, params=p)` at others, `model(x, mode="train")`
    in that mode; `net(u, y)` or `net(sensors=u, y=points)` gives several inputs. `model.params` are the bound
    parameters, `model.params["layer_1.weight"]` one leaf of them.
    """

    __slots__ = ()

    _misuse = "a model is no value: call it on its inputs, model(x), or write model.params for its parameters"

    def __call__(self, *inputs: Any, params: Any = None, mode: str | None = None, **named: Any) -> Symbol:
        """Apply the model to its inputs, in their order or by their names.

        Raises:
            TraceError: no input, an unknown mode, or parameters that are no traced value.
        """
        current("a model")
        if not inputs and not named:
            raise TraceError("a model is called on its inputs: model(x)")
        keywords: dict[str, Part] = {name: operand(x) for name, x in named.items()}
        if params is not None:
            if not isinstance(params, Symbol):
                raise TraceError(
                    "params= takes a traced value: an input, or arithmetic on model.params such as "
                    "p - rate * g (trees are added and scaled whole); give a dict of arrays as an input"
                )
            keywords["params"] = operand(params)
        if mode is not None:
            if mode not in _MODES:
                raise TraceError(f"mode={mode!r} is no mode of a model: 'eval' or 'train'")
            keywords["mode"] = option(mode)
        return record(called(self._part, [operand(x) for x in inputs], keywords))

    @property
    def params(self) -> Symbol:
        """The parameters bound to the model, as a tree."""
        return Symbol(unassigned(attribute(self._part, "params")), self._scope)

    def __array_ufunc__(self, *arguments: Any, **keywords: Any) -> Any:
        raise TraceError(self._misuse)

    def __array_function__(self, *arguments: Any, **keywords: Any) -> Any:
        raise TraceError(self._misuse)
