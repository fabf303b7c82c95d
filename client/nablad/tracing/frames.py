"""The local variables that a function held when it returned."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType
from typing import Any


@contextmanager
def local_variables(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Give a dict that the first call of `function` in the block fills, on return, with its local variables.

    It stays empty for a function without Python code of its own. A profiler that was running is set aside for
    the block and put back.
    """
    found: dict[str, Any] = {}
    code = _code(function)
    watched: list[FrameType] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is code and not watched:
            watched.append(frame)
        elif event == "return" and watched and frame is watched[0]:
            found.update(frame.f_locals)

    previous = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield found
    finally:
        _put_back(previous)
        watched.clear()


def _put_back(previous: Any) -> None:
    # cProfile installs itself below sys.setprofile, which would call the Profile object.
    if previous is None or callable(previous):
        sys.setprofile(previous)
    else:
        sys.setprofile(None)
        previous.enable()


def _code(function: Any) -> CodeType | None:
    while isinstance(function, partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__code__") and not inspect.isbuiltin(function):
        function = getattr(function, "__func__", type(function).__call__)
    return getattr(function, "__code__", None)
