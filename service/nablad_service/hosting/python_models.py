"""The operator's own models and functions: Python files given at the start, and installed packages.

This code runs with all rights of the server. It comes from who starts the server, never over HTTP.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from nablad.messages import FailedModel
from nablad.problems import Refusal
from nablad_models import Model
from nablad_service.hosting.names import check_name

log = logging.getLogger("nablad")

GROUP = "nablad.models"
MEMBERS = (
    *("digest", "source", "input_shapes", "parameter_shapes", "state_shapes", "derivative_order"),
    *("initial_params", "initial_state", "apply"),
)
CheckFunction = Callable[[str, Callable[..., Any]], object]


@dataclass
class PythonModels:
    """What the operator's files hold, each name with the file that it comes from, and what failed."""

    models: dict[str, Model] = field(default_factory=dict)
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Where a model comes from, by its name."""
    failed: list[FailedModel] = field(default_factory=list)

    def fails(self, place: str, reason: str, name: str | None = None) -> None:
        """Remember and log why something is not served."""
        self.failed.append(FailedModel(name=name, place=place, reason=reason))
        log.error("%s: %s", place, reason)


def python_models(files: Sequence[str], check_function: CheckFunction) -> PythonModels:
    """Import installed packages of the group `nablad.models`, then these files, in that order.

    Whatever fails is told in `failed`, and the rest is served; the first of two equal names is. A file is a
    Python module with `MODELS`, `FUNCTIONS` or both. `check_function` raises ValueError for a function that
    cannot be registered.
    """
    found = PythonModels()
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        _take(found, f"{point.value} (entry point '{point.name}')", point.load, check_function)
    names: list[str] = []
    for file in files:
        path = Path(file).expanduser().resolve()
        # A name of its own: a file called jax.py must not take the place of JAX. The same one at every start,
        # since it is part of the digests of models.
        name = f"nablad_file_{path.stem}"
        name += f"_{names.count(name) + 1}" * (name in names)
        names.append(f"nablad_file_{path.stem}")
        _take(found, str(path), partial(_of_file, path, name), check_function)
    return found


def _of_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name. Files beside this one can be imported, at the end of the
    # path, where they hide nothing that is installed.
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _take(found: PythonModels, place: str, load: Callable[[], Any], check_function: CheckFunction) -> None:
    try:
        module = load()
    except (Exception, SystemExit) as error:  # whatever a stranger's file may do at its import
        log.debug("%s", place, exc_info=error)
        found.fails(place, _in_words(error, place))
        return
    tables: dict[str, Mapping[str, Any]] = {}
    for table in ("MODELS", "FUNCTIONS"):
        value = getattr(module, table, None)
        if isinstance(value, Mapping):
            tables[table] = value
        elif value is not None:
            found.fails(place, f"{table} is a {type(value).__name__}, not a mapping of names")
    if not hasattr(module, "MODELS") and not hasattr(module, "FUNCTIONS"):
        found.fails(place, 'it defines neither MODELS = {"name": model} nor FUNCTIONS = {"name": function}')
    for name, model in tables.get("MODELS", {}).items():
        if fault := _model_fault(name, model) or _taken(name, found):
            found.fails(place, fault, name if isinstance(name, str) else None)
            continue
        found.models[name] = model
        found.places[name] = place
    for name, function in tables.get("FUNCTIONS", {}).items():
        if fault := _function_fault(name, function, found, check_function):
            found.fails(place, fault)
            continue
        found.functions[name] = function


def _in_words(error: BaseException, place: str) -> str:
    """The error with the line of the operator's own file that it comes from, the deepest one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}" + (
            "" if error.filename == place else f" ({error.filename})"
        )
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == place]
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"line {lines[-1]}: {said}" if lines else said


def _model_fault(name: Any, model: Any) -> str | None:
    if not isinstance(name, str):
        return f"MODELS has the key {name!r}; names are strings"
    try:
        check_name(name)
    except Refusal as refusal:
        return refusal.detail
    # Not hasattr: a property that fails otherwise should say so itself, when the model is hosted.
    lacks = [member for member in MEMBERS if member not in dir(model)]
    if isinstance(model, type) or lacks:
        kind = f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"
        what = f"without {', '.join(lacks)}" if lacks else "rather than an instance of it"
        advice = "nablad_models.from_equinox, from_flax and from_functions make models"
        return f"'{name}' is no model: it is {kind} {what}; {advice}"
    return None


def _taken(name: str, found: PythonModels) -> str | None:
    return f"the name '{name}' is taken by {found.places[name]}" if name in found.places else None


def _function_fault(
    name: Any, function: Any, found: PythonModels, check_function: CheckFunction
) -> str | None:
    if not isinstance(name, str) or not callable(function):
        return f"FUNCTIONS has {name!r}: {function!r}; it maps names to functions"
    if name in found.functions:
        return f"a function is called '{name}' already"
    try:
        check_function(name, function)
    except (ValueError, TypeError) as error:
        return f"the function '{name}' cannot be registered: {error}"
    return None
