"""Functions of optax by name, their settings checked against optax's own signatures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp

from nablad.problems import Refusal
from nablad.training.messages import Setting
from nablad_service.language.places import nearest

DTYPES = ("bfloat16", "float16", "float32", "float64")
Function = Callable[..., Any]
Settings = tuple[tuple[str, Any], ...]
"""By name; hashable, since they are part of what a compiled update is known by."""


def settings_of(
    function: Function, name: str, given: Mapping[str, Any], *, without: Collection[str] = ()
) -> Settings:
    """The settings of a request for a function of optax, checked; `without` those that cannot be sent.

    Raises:
        Refusal: `optimiser` where one is unknown, missing, or of another kind than optax's default.
    """
    parameters = inspect.signature(function).parameters
    known = [one for one in parameters if one not in without]
    for setting in given:
        if setting not in known:
            hint = nearest(setting, known)
            detail = f"{name} has no setting '{setting}'{hint}; it has {', '.join(known) or 'none'}"
            raise Refusal("optimiser", detail)
    missing = [
        one for one in known if parameters[one].default is inspect.Parameter.empty and one not in given
    ]
    if missing:
        raise Refusal("optimiser", f"{name} needs '{missing[0]}': optax has no default for it")
    return tuple(
        (setting, _value(value, parameters[setting].default, f"'{setting}' of {name}"))
        for setting, value in sorted(given.items())
    )


def _value(value: Any, default: Any, what: str) -> Setting | tuple[tuple[int, float], ...]:
    """A setting of the kind that its default has; steps by number become pairs."""
    if "dtype" in what:
        if value is not None and value not in DTYPES:
            raise _wrong(what, f"one of {', '.join(DTYPES)}", value)
        return value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise _wrong(what, "true or false", value)
        return value
    if isinstance(default, str):
        if not isinstance(value, str):
            raise _wrong(what, "a word", value)
        return value
    if isinstance(value, Mapping):
        return _by_step(value, what)
    if value is None and default is None:
        return None
    if isinstance(default, int) and not isinstance(value, int):
        raise _wrong(what, "a whole number", value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(what, "a number", value)
    return value


def _by_step(given: Mapping[Any, Any], what: str) -> tuple[tuple[int, float], ...]:
    pairs = []
    for step, value in given.items():
        # JSON's keys are texts.
        if not str(step).isdecimal() or isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(what, 'numbers by step, {"1000": 0.1}', given)
        pairs.append((int(step), float(value)))
    return tuple(sorted(pairs))


def _wrong(what: str, expected: str, value: Any) -> Refusal:
    return Refusal("optimiser", f"{what} must be {expected}, not {value!r}")


def keywords(settings: Settings) -> dict[str, Any]:
    """Settings as optax takes them."""
    return {name: _restored(name, value) for name, value in settings}


def _restored(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return dict(value)
    return jnp.dtype(value) if "dtype" in name and value is not None else value
