"""What stays is not visited by the garbage collector, and what does not is still freed.

In a process of its own each: where another thread collects just then, a collection does nothing.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from nablad_service.running import collecting


class Ring:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.own = self


def what_stays_is_frozen_and_garbage_is_freed() -> None:
    kept, lost = Ring(), Ring()
    gone = weakref.ref(lost)
    del lost
    collecting.settle()
    assert gone() is None
    assert all(one is not kept for one in gc.get_objects()), "not visited any more"


def what_was_frozen_and_let_go_of_is_freed_in_the_end() -> None:
    lost = Ring()
    gone = weakref.ref(lost)
    collecting.settle()
    del lost
    gc.collect()
    assert gone() is not None, "frozen"
    for _ in range(collecting.THAWED):
        collecting.settle()
    assert gone() is None


@pytest.mark.parametrize(
    "holds", [what_stays_is_frozen_and_garbage_is_freed, what_was_frozen_and_let_go_of_is_freed_in_the_end]
)
def test_the_collector(holds: Callable[[], None]) -> None:
    code = f"import {__name__} as test; test.{holds.__name__}()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
