"""What a session computes, compiled: a gradient that is added to the others, a step with their mean, or both.

Each is one call of the device, and what the host learns of it comes back in few arrays. To run one waits for
nothing: what comes next can be begun. What it tells is waited for.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from nablad_service.engine.executable import Traced, failures_told
from nablad_service.engine.values import on_host
from nablad_service.query import Query
from nablad_service.training.changes import Adding, Batch, Call, Stepping, Told
from nablad_service.training.gradients import Around, gradient_of
from nablad_service.training.optimisers import Arrays, Rule, StepValues
from nablad_service.training.session_questions import Start
from nablad_service.training.state import TrainingState, first_state, no_sums, size_of

UNSEEN: Mapping[str, Any] = {"gradients": {}, "value": None, "weight": None}
"""In place of sums that are zero: each array takes its time on the way into a program and out of it."""


@dataclass(frozen=True, eq=False)
class Beginning:
    """The first state, compiled."""

    compiled: Any

    def run(self, start: Start, values: StepValues, seed: int) -> TrainingState:
        """The state before the first step.

        Raises:
            Refusal: `out_of_memory`.
        """
        with failures_told():
            state: TrainingState = self.compiled(
                dict(start.params), dict(start.state), values, np.uint32(seed % 2**32)
            )
            return jax.block_until_ready(state)


def compile_beginning(start: Start, rule: Rule, values: StepValues) -> Beginning:
    """Compile for a start like this one."""

    def begin(params: Arrays, models: Any, values: StepValues, seed: Any) -> TrainingState:
        return first_state(params, models, rule, values, seed)

    given = (dict(start.params), dict(start.state), values, np.uint32(0))
    return Beginning(jax.jit(begin).lower(*given).compile())


@dataclass(frozen=True)
class Computed:
    """What a gradient's call tells, on the host."""

    value: float
    terms: dict[str, float]
    norms: dict[str, float]
    term_norms: dict[str, dict[str, float]]
    finite: bool
    outputs: Mapping[str, Any]
    gradients: Mapping[str, Any]
    """By label; empty unless asked for."""

    @property
    def bytes(self) -> int:
        """Of the arrays."""
        return size_of((self.outputs, self.gradients))


@dataclass(frozen=True)
class Stepped:
    """What a step tells, on the host."""

    learning_rate: float | None
    gradient_norm: float
    update_norm: float


@dataclass(frozen=True, eq=False)
class Accumulation:
    """A program's gradient, compiled to be added to the sums of a state."""

    program: Hashable
    """What it was compiled for."""
    adding: Adding
    compiled: Any
    structure: Any
    """Of the figures: a tree with their names."""

    def run(self, state: TrainingState, call: Call) -> tuple[TrainingState, Told, Batch]:
        """The state after the call, what `computed` reads, and the call as a line search needs it."""
        part = self.adding.part(state)
        with failures_told():
            changed, told, seed = self.compiled(part, call)
        around = Around(call.inputs, part.models, seed, call.terms)
        batch = Batch(self.program, self.adding.gradient, around, call.weight)
        return self.adding.merged(state, changed), told, batch

    def computed(self, told: Told) -> Computed:
        """What a call tells, waited for.

        Raises:
            Refusal: `out_of_memory`, `function_failed`.
        """
        with failures_told():
            return _computed(self.structure, on_host(told))


def compile_accumulation(program: Hashable, adding: Adding, state: TrainingState, call: Call) -> Accumulation:
    """Compile for a state and calls like these; specs do in place of arrays.

    Args:
        program: what to know it by.
        adding: what to compile.
        state: of a session that trains at least what the program differentiates.
        call: its values.
    """
    part = adding.part(state)
    compiled = jax.jit(adding).lower(part, call).compile()
    return Accumulation(program, adding, compiled, adding.structure(part, call))


def adding_of(traced: Traced, query: Query, *, tells_gradients: bool) -> Adding:
    """What adds the gradient of a query that was traced."""
    models, terms = tuple(query.state), query.signature.terms
    return Adding(gradient_of(traced, query), models, terms, tells_gradients)


@dataclass(frozen=True, eq=False)
class Step:
    """A step of an optimiser, compiled."""

    stepping: Stepping
    compiled: Any

    def run(
        self, state: TrainingState, values: StepValues, batches: Sequence[Batch]
    ) -> tuple[TrainingState, Any]:
        """The state after a step with the mean of the gradients, and what `stepped` reads."""
        with failures_told():
            after, figures = self.compiled(self.stepping.part(state), values, _values_of(batches))
        return self.stepping.merged(state, after), figures

    def stepped(self, figures: Any) -> Stepped:
        """What a step tells, waited for.

        Raises:
            Refusal: `out_of_memory`.
        """
        with failures_told():
            return _stepped(self.stepping.rule, on_host(figures))


def compile_step(rule: Rule, state: TrainingState, values: StepValues, batches: Sequence[Batch]) -> Step:
    """Compile for a state like this, and batches where the rule needs the loss; specs do for arrays."""
    stepping = Stepping(rule, [batch.gradient for batch in batches])
    given = (stepping.part(state), values, _values_of(batches))
    return Step(stepping, jax.jit(stepping).lower(*given).compile())


@dataclass(frozen=True, eq=False)
class GradientStep:
    """A gradient and the step with it, compiled as one: for rules that need no loss."""

    adding: Adding
    stepping: Stepping
    only: bool
    """Whether the gradient is the only one of its step."""
    compiled: Any
    structure: Any

    def run(self, state: TrainingState, call: Call, values: StepValues) -> tuple[TrainingState, Any]:
        """The state after the step, and what `told` reads."""
        with failures_told():
            after, told = self.compiled(_part(state, self.adding, only=self.only), call, values)
        if self.only:  # the sums are zero as before
            after = after._replace(gradients=state.gradients, value=state.value, weight=state.weight)
        return after._replace(models={**state.models, **after.models}), told

    def told(self, told: Any) -> tuple[Computed, Stepped]:
        """What a call tells, waited for.

        Raises:
            Refusal: `out_of_memory`, `function_failed`.
        """
        with failures_told():
            of_gradient, of_step = on_host(told)
        return _computed(self.structure, of_gradient), _stepped(self.stepping.rule, of_step)


def compile_gradient_step(
    adding: Adding, rule: Rule, state: TrainingState, call: Call, values: StepValues, *, only: bool
) -> GradientStep:
    """Compile for arguments like these, specs do in place of arrays; `only` as in `GradientStep`."""
    stepping = Stepping(rule)

    def both(state: TrainingState, call: Call, values: StepValues) -> Any:
        if only:
            state = state._replace(**no_sums(state.params))
        changed, told, _ = adding(adding.part(state), call)
        summed = adding.merged(state, changed)
        after, figures = stepping(stepping.part(summed), values, [])
        after = stepping.merged(summed, after)
        return after._replace(**UNSEEN) if only else after, (told, figures)

    part = _part(state, adding, only=only)
    compiled = jax.jit(both).lower(part, call, values).compile()
    return GradientStep(adding, stepping, only, compiled, adding.structure(adding.part(state), call))


def _part(state: TrainingState, adding: Adding, *, only: bool) -> TrainingState:
    """What a gradient and its step read of a state: no sums where the gradient is the only one."""
    models = {name: state.models[name] for name in adding.models}
    return state._replace(models=models, **(UNSEEN if only else {}))


def _computed(structure: Any, told: Told) -> Computed:
    figures = jax.tree.unflatten(structure, told.figures.tolist())
    return Computed(
        **{**figures, "finite": bool(figures["finite"])}, outputs=told.outputs, gradients=told.gradients
    )


def _stepped(rule: Rule, figures: Any) -> Stepped:
    rate, gradient_norm, update_norm = figures.tolist()
    return Stepped(rate if rule.has_learning_rate else None, gradient_norm, update_norm)


def _values_of(batches: Sequence[Batch]) -> list[tuple[Around, np.float64]]:
    return [(batch.around, batch.weight) for batch in batches]
