"""What stays is not visited by the garbage collector, and what does not is still freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from nablad_service.running import collecting


class Ring:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def python_as_it_was() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_stays_is_frozen_and_garbage_is_freed() -> None:
    kept, lost = Ring(), Ring()
    gone = weakref.ref(lost)
    del lost
    collecting.settle()
    assert gone() is None
    assert all(one is not kept for one in gc.get_objects()), "not visited any more"


def test_what_was_frozen_and_let_go_of_is_freed_in_the_end() -> None:
    lost = Ring()
    gone = weakref.ref(lost)
    collecting.settle()
    del lost
    gc.collect()
    assert gone() is not None, "frozen"
    for _ in range(collecting.THAWED):
        collecting.settle()
    assert gone() is None
