"""Programs are parsed on several threads."""

from __future__ import annotations

import ast
import gc
import sys
import threading

from nablad_service.language import Limits
from nablad_service.language.syntax import read

TEXT = "\n".join(f"a{number} = sin(x) + {number}" for number in range(50))


def test_a_program_that_is_parsed_while_another_one_is_does_not_disturb_it() -> None:
    """A collection of garbage in the middle of the first lets the other thread begin, at another depth."""
    begin, done = threading.Event(), threading.Event()

    def other() -> None:
        begin.wait(10)
        read(TEXT, Limits())
        done.set()

    def collecting(phase: str, info: object) -> None:
        if sys._getframe(1).f_code is ast.parse.__code__ and not begin.is_set():
            begin.set()
            done.wait(0.2)  # for as long as it takes where nothing keeps it from being parsed

    def deeper(by: int) -> None:
        if by:
            deeper(by - 1)
        else:
            read(TEXT, Limits())

    thread = threading.Thread(target=other)
    thread.start()
    threshold = gc.get_threshold()
    gc.callbacks.append(collecting)
    gc.set_threshold(1)
    try:
        deeper(50)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collecting)
        thread.join()
    assert done.is_set()
