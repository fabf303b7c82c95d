"""A plan traced, and a plan compiled."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax

from nablad.problems import Refusal
from nablad_service.engine.costs import Cost, cost
from nablad_service.engine.placement import Placement
from nablad_service.engine.plan import Plan, PlannedBucket
from nablad_service.engine.values import on_host
from nablad_service.query import Query

LATELY = 16
"""Runs that tell how long the next one takes."""


def run_where_called() -> None:
    """Have the CPU's programs run on the thread that calls them, in this process from now on.

    For callers who wait for each: a thread of XLA's in between takes a small program twice its time. Has an
    effect before JAX first computes only.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


@dataclass(frozen=True)
class Traced:
    """A plan, and the traced computation that follows it."""

    plan: Plan
    computation: Any
    answer_bytes: int

    @cached_property
    def cost(self) -> Cost:
        """Operations and peak memory, counted without compiling."""
        return cost(self.computation.jaxpr)

    def without_bucket(self, number: int, reason: str) -> Traced:
        """The same, telling why it is not computed in one of the buckets that were asked for."""
        return replace(self, plan=replace(self.plan, bucket=PlannedBucket(number, None, reason)))


class Pace:
    """The usual time of a program's runs; of the last ones more than of those before."""

    def __init__(self) -> None:
        self._runs = 0
        self._usual = 0.0

    def note(self, seconds: float) -> None:
        """Take a run into account; runs on several threads at once may count as one."""
        self._runs += 1
        self._usual += (seconds - self._usual) / min(self._runs, LATELY)

    def under(self, seconds: float) -> bool:
        """Whether a run usually takes less; False until there were a few."""
        return self._runs >= LATELY and self._usual < seconds


@dataclass(frozen=True, eq=False)
class Executable:
    """A compiled plan: call it with a query's values."""

    plan: Plan
    compiled: Any
    answer_bytes: int
    """Size of all arrays of the answer."""
    computation: Any
    """What was compiled, as it was traced."""
    placement: Placement
    """Where the resident ones among the values are."""
    pace: Pace = field(default_factory=lambda: Pace())
    """How long its runs take."""
    companies: dict[Any, Any] = field(default_factory=dict)
    """Ways to run it together with others, kept as long as it is; by what they share."""

    @cached_property
    def document(self) -> dict[str, Any]:
        """The plan as it travels in every answer."""
        return self.plan.document()

    def run(self, query: Query) -> dict[str, Any]:
        """The answer's arrays, on the host: `value`, `terms`, `gradients`, `outputs`, `state`, `finite`.

        Raises:
            Refusal: `out_of_memory` where the device cannot hold the computation, `function_failed` where a
                registered function fails with these values.
        """
        started = time.perf_counter()
        with failures_told():
            answer: dict[str, Any] = on_host(self.compiled(self.placement.arguments(query)))
            self.pace.note(time.perf_counter() - started)
            return answer


@contextmanager
def failures_told() -> Iterator[None]:
    """Refusals in place of what JAX raises when a run fails."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            detail = "the device ran out of memory; send fewer examples at once"
            raise Refusal("out_of_memory", detail) from error
        # Only what the server's operator registered calls back into Python.
        if failed := re.search(r"^_?\w*(?:Error|Exception): (.+)$", str(error), re.MULTILINE):
            raise Refusal("function_failed", f"a function failed on the server: {failed[1]}") from error
        raise
