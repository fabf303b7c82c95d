"""A Python loss function, called once with symbols, as text of the loss language."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nablad.tracing.errors import TraceError, nearest
from nablad.tracing.frames import local_variables
from nablad.tracing.graph import Part, Shape, Variable
from nablad.tracing.models import Model
from nablad.tracing.recorder import Handle, Recorder, part_of, recording, variables_of
from nablad.tracing.symbols import Symbol
from nablad.tracing.writing import write

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Traced:
    """A loss as text, and the array constants that it needs as further inputs, by their names in the text."""

    text: str
    constants: dict[str, np.ndarray[Any, Any]]

    def __str__(self) -> str:
        return self.text


def trace(function: Callable[..., Any], *, inputs: Mapping[str, Any], models: Collection[str]) -> Traced:
    """Call `function` once with symbols and return what it does as a program of the loss language.

    Each parameter of `function` is the name of an input or of a model; one with a default may be neither. Of
    `inputs` (arrays, numbers, or flat dicts of arrays) only shapes and dtypes are looked at. The function's
    local variables keep their names in the text where these are free, so that terms and outputs may be asked
    for by them.

    Raises:
        TraceError: a parameter is neither input nor model, the function does something that the language
            cannot say, or it returns anything but one traced value.
    """
    recorder = Recorder([*inputs, *models])
    positional, named = _symbols(function, recorder, inputs, models)
    with recording(recorder), local_variables(function) as found:
        result = function(*positional, **named)
        recorder.root.results = (_loss(result),)
    recorder.root.locals = variables_of(recorder.root, found)
    arrays = {variable: array for variable, array, _ in recorder.constants}
    written = write(recorder.root, recorder.given, list(arrays))
    return Traced(written.text, {name: arrays[variable] for variable, name in written.constants.items()})


def _symbols(
    function: Callable[..., Any], recorder: Recorder, inputs: Mapping[str, Any], models: Collection[str]
) -> tuple[list[Handle], dict[str, Handle]]:
    positional: list[Handle] = []
    named: dict[str, Handle] = {}
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        if parameter.kind in _VARIADIC:
            raise TraceError(
                f"the loss function takes {parameter}: name each input and model as a parameter of its own"
            )
        if name not in recorder.given:
            if parameter.default is not parameter.empty:
                continue
            raise TraceError(
                f"the loss function's parameter {name!r} is neither an input nor a model; "
                f"{nearest(name, recorder.given)}"
            )
        handle = _model(recorder, name) if name in models else _input(recorder, name, inputs[name])
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(handle)
        else:
            named[name] = handle
    return positional, named


def _model(recorder: Recorder, name: str) -> Model:
    variable = Variable(recorder.root, wish=name)
    recorder.root.arguments.append(variable)
    return Model(variable, recorder.root)


def _input(recorder: Recorder, name: str, value: Any) -> Symbol:
    shape = (
        {key: _shape(leaf) for key, leaf in value.items()} if isinstance(value, Mapping) else _shape(value)
    )
    boolean = not isinstance(value, Mapping) and str(getattr(value, "dtype", "")) == "bool"
    variable = Variable(recorder.root, wish=name, shape=shape, boolean=boolean)
    recorder.root.arguments.append(variable)
    return Symbol(variable, recorder.root)


def _shape(value: Any) -> Shape:
    return tuple(int(n) for n in (value.shape if hasattr(value, "shape") else np.shape(value)))


def _loss(result: Any) -> Part:
    if isinstance(result, Handle):
        return part_of(result)
    if isinstance(result, tuple | list | dict):
        raise TraceError(
            f"the loss function returns a {type(result).__name__}: return one scalar, and ask for its local "
            f"variables by name (terms, outputs)"
        )
    if result is None:
        raise TraceError("the loss function returns None: return the loss")
    raise TraceError(
        f"the loss function returns a value of type {type(result).__name__} in which no input or model takes "
        f"part: a constant loss"
    )
