"""A digest of what a Python object computes: code, structure and constants, the same again after a restart.

A function is its code, the file it is written in, what it closes over and its defaults; a module is its class
and its fields. The code of other files that are called is not followed: after a change in one of those, the
digest stays, so it is an identity for caches in memory, not for files that outlive the process.

What cannot be described, as an object of a class that says nothing about itself, gets a number that no other
object of this process has: its model is then a new one after a restart.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import types
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_numbers = itertools.count(1)

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), np.dtype)
CONTEXT = ("scope", "parent", "_state", "_parent_ref")
"""Attributes by which Flax modules know their surroundings."""


def digest_of(*parts: Any) -> str:
    """SHA-256 over the descriptions of `parts`."""
    return hashlib.sha256("\n".join(describe(part) for part in parts).encode()).hexdigest()


def written_in(thing: Any) -> str:
    """Where a function, or an object's class, is defined: `my_models:Net`."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"


def describe(thing: Any, around: tuple[int, ...] = ()) -> str:
    """A text that is equal for things that compute the same; `around` holds the ids of what encloses it."""
    if isinstance(thing, PLAIN):
        return f"{type(thing).__name__} {thing!r}"
    if id(thing) in around:
        return f"the one {len(around) - around.index(id(thing))} levels up"
    inside = (*around, id(thing))
    if isinstance(thing, jax.ShapeDtypeStruct):
        return f"{thing.dtype}{list(thing.shape)}"
    if isinstance(thing, jax.Array) and jnp.issubdtype(thing.dtype, jax.dtypes.prng_key):
        thing = jax.random.key_data(thing)
    if isinstance(thing, np.ndarray | np.generic | jax.Array):
        array = np.asarray(thing)
        return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(thing, Mapping):
        items = [f"{describe(key, inside)}: {describe(value, inside)}" for key, value in thing.items()]
        return f"{written_in(thing)}{{{'; '.join(items)}}}"
    if isinstance(thing, Set):
        return f"{written_in(thing)} {sorted(describe(item, inside) for item in thing)}"
    if isinstance(thing, list | tuple):
        return f"{written_in(thing)}[{'; '.join(describe(item, inside) for item in thing)}]"
    if isinstance(thing, type):
        return f"class {written_in(thing)} {_of_class(thing)}"
    if isinstance(thing, types.ModuleType):
        return f"module {thing.__name__}"
    if isinstance(thing, functools.partial):
        return f"partial {describe((thing.func, thing.args, thing.keywords), inside)}"
    if isinstance(thing, types.MethodType):
        return f"method {describe((thing.__func__, thing.__self__), inside)}"
    if isinstance(thing, types.FunctionType):
        return _of_function(thing, inside)
    if isinstance(thing, types.CodeType):
        return _of_code(thing, inside)
    return _of_object(thing, inside)


def _of_function(function: types.FunctionType, inside: tuple[int, ...]) -> str:
    cells = [_in(cell) for cell in function.__closure__ or ()]
    parts = (function.__code__, function.__defaults__, function.__kwdefaults__, cells)
    return f"function {written_in(function)} {_of_file(function.__code__)} {describe(parts, inside)}"


def _in(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned later
        return None


def _of_code(code: types.CodeType, inside: tuple[int, ...]) -> str:
    parts = (code.co_code, code.co_names, code.co_varnames, code.co_consts)
    return f"code {describe(parts, inside)}"


def _of_object(thing: Any, inside: tuple[int, ...]) -> str:
    kind = type(thing)
    wrapped = getattr(thing, "__wrapped__", None)
    if wrapped is not None:  # jax.jit, custom_jvp and their kin: what matters is beneath
        return f"{written_in(kind)} of {describe(wrapped, inside)}"
    if hasattr(thing, "__qualname__") and hasattr(thing, "__module__"):  # built in: jnp.sin, a ufunc
        return f"{written_in(kind)} {written_in(thing)}"
    if isinstance(thing, np.ufunc):
        return f"ufunc {thing.__name__}"
    if dataclasses.is_dataclass(thing):
        names = [field.name for field in dataclasses.fields(thing)]
    elif hasattr(thing, "__dict__") and type(thing).__module__ != "builtins":
        names = sorted(vars(thing))
    else:
        return f"{written_in(kind)} number {next(_numbers)}"
    fields = {name: getattr(thing, name, None) for name in names if name not in CONTEXT}
    return f"{describe(kind, inside)} {describe(fields, inside)}"


@functools.lru_cache(maxsize=1024)
def _of_class(kind: type) -> list[str]:
    """The files that the methods are written in; the code of those that are in none, typed at a prompt."""
    found = set()
    for value in (value for base in kind.__mro__ for value in vars(base).values()):
        # Equinox, static methods and properties each keep the function in an attribute of their own.
        inner = (getattr(value, name, None) for name in ("method", "__func__", "fget"))
        code = getattr(next((one for one in inner if one is not None), value), "__code__", None)
        if isinstance(code, types.CodeType):
            found.add(_of_file(code) or describe(code))
    return sorted(found)


def _of_file(code: types.CodeType) -> str:
    """The digest of the file that a function is written in; empty for one that is in no file."""
    file = Path(code.co_filename)
    try:
        return _digest_of_file(file, file.stat().st_mtime_ns)
    except OSError:
        return ""


@functools.lru_cache(maxsize=256)
def _digest_of_file(file: Path, changed: int) -> str:
    del changed
    return hashlib.sha256(file.read_bytes()).hexdigest()
