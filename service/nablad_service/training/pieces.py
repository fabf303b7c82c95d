"""The compiled pieces of all sessions: the same program in several of them is compiled once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from nablad_service.engine.executable import Traced
from nablad_service.planning.programs import Programs
from nablad_service.query import Query
from nablad_service.specs import ArraySpec
from nablad_service.training.changes import Batch, Call
from nablad_service.training.computing import (
    Accumulation,
    Beginning,
    GradientStep,
    Step,
    adding_of,
    compile_accumulation,
    compile_beginning,
    compile_gradient_step,
    compile_step,
)
from nablad_service.training.optimisers import Rule, StepValues
from nablad_service.training.session_questions import Start
from nablad_service.training.state import TrainingState

T = TypeVar("T")


def program_key(query: Query, choices: Mapping[int, str], state: TrainingState) -> Hashable:
    """By what a program is known, computed for states like this one."""
    return query.signature, tuple(sorted(choices.items())), state.value.dtype


class Pieces:
    """A cache, least recently used first out. Lives on one event loop."""

    def __init__(self, programs: Programs, limit: int) -> None:
        self._programs = programs
        self._limit = limit
        self._kept: OrderedDict[Hashable, asyncio.Task[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    async def accumulation(
        self,
        query: Query,
        choices: Mapping[int, str],
        state: TrainingState,
        call: Callable[[], Call],
        *,
        tells_gradients: bool,
    ) -> tuple[Accumulation, bool]:
        """A gradient's call compiled, and whether it had to be compiled now.

        Args:
            query: what is asked.
            choices: the planner's for it.
            state: one like those to come.
            call: gives one likewise, where it has to be compiled.
            tells_gradients: whether the call tells them as arrays.

        Raises:
            Refusal: whatever checking the program finds; `too_slow`.
        """
        own = program_key(query, choices, state)
        key = (own, tells_gradients)

        async def make() -> Accumulation:
            adding = adding_of(await self.traced(query, choices), query, tells_gradients=tells_gradients)
            return await self._programs.compiled(
                "session", key, lambda: compile_accumulation(own, adding, state, call())
            )

        return await self._once(key, make)

    async def gradient_step(
        self,
        query: Query,
        choices: Mapping[int, str],
        state: TrainingState,
        call: Callable[[], Call],
        rule: Rule,
        values: StepValues,
        *,
        only: bool,
        tells_gradients: bool,
    ) -> tuple[GradientStep, bool]:
        """A gradient's call and a step compiled as one, and whether they had to be compiled now.

        Takes what `accumulation` and `step` take, and whether the gradient is the `only` one of the step;
        raises likewise.
        """
        program = program_key(query, choices, state), tells_gradients
        key = (*program, rule, _trained(state), only)

        async def make() -> GradientStep:
            adding = adding_of(await self.traced(query, choices), query, tells_gradients=tells_gradients)
            return await self._programs.compiled(
                "session", key, lambda: compile_gradient_step(adding, rule, state, call(), values, only=only)
            )

        return await self._once(key, make)

    async def traced(self, query: Query, choices: Mapping[int, str]) -> Traced:
        """A gradient's program, not compiled."""
        return await self._programs.following(query, choices)

    async def beginning(self, start: Start, rule: Rule, values: StepValues) -> Beginning:
        """What makes the first state of a session that begins like this one."""
        shapes = jax.tree.map(ArraySpec.of, (dict(start.params), dict(start.state)))
        key = (rule, str(shapes))

        async def make() -> Beginning:
            return await self._programs.compiled(
                "session", key, lambda: compile_beginning(start, rule, values)
            )

        return (await self._once(("beginning", *key), make))[0]

    async def step(
        self, rule: Rule, state: TrainingState, values: StepValues, batches: Sequence[Batch]
    ) -> tuple[Step, bool]:
        """A step compiled, and whether it had to be compiled now.

        Args:
            rule: the optimiser.
            state: one like those to come.
            values: likewise.
            batches: those since the last step, where the rule needs the loss.
        """
        key = (rule, _trained(state), tuple(batch.program for batch in batches))

        async def make() -> Step:
            return await self._programs.compiled(
                "session", key, lambda: compile_step(rule, state, values, batches)
            )

        return await self._once(key, make)

    async def _once(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        task = self._kept.get(key)
        new = task is None
        if task is None:
            task = self._kept[key] = asyncio.ensure_future(make())
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        try:
            return await asyncio.shield(task), new
        except BaseException:
            if task.done():  # what could not be made may be asked for again
                self._kept.pop(key, None)
            raise


def _trained(state: TrainingState) -> Hashable:
    """What a step is compiled for, beside its rule."""
    return tuple(sorted((label, one.shape, one.dtype) for label, one in state.params.items()))
