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
from nablad_service.training.packing import PackedState, Packing, State
from nablad_service.training.session_questions import Start
from nablad_service.training.state import TrainingState, first_state, no_sums, size_of


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
    packing: Packing | None
    """Of the state, where the gradient is the only one of its step."""
    compiled: Any
    structure: Any

    def run(self, state: State, call: Call, values: StepValues) -> tuple[State, Any]:
        """The state after the step, and what `told` reads."""
        if self.packing is None:
            whole = state.whole()
            models = {name: whole.models[name] for name in self.adding.models}
            with failures_told():
                after, told = self.compiled(whole._replace(models=models), call, values)
            return after._replace(models={**whole.models, **after.models}), told
        if not isinstance(state, PackedState) or state.packing != self.packing:
            state = PackedState.of(state.whole(), self.adding.models, self.packing)
        with failures_told():
            arrays, told = self.compiled(state.arrays, call, values)
        return PackedState(self.packing, arrays, state.rest), told

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
    """Compile for arguments like these; specs do in place of arrays.

    Args:
        adding: the gradient.
        rule: the optimiser.
        state: of a session.
        call: its values.
        values: of a step.
        only: whether there are no other gradients since the last step.
    """
    stepping = Stepping(rule)

    def both(state: TrainingState, call: Call, values: StepValues) -> Any:
        changed, told, _ = adding(adding.part(state), call)
        summed = adding.merged(state, changed)
        after, figures = stepping(stepping.part(summed), values, [])
        return stepping.merged(summed, after), (told, figures)

    part = state.part(adding.models)
    structure = adding.structure(adding.part(state), call)
    if not only:
        compiled = jax.jit(both).lower(state._replace(models=part.models), call, values).compile()
        return GradientStep(adding, stepping, None, compiled, structure)
    packing = Packing.of(part)

    def both_packed(arrays: tuple[Any, ...], call: Call, values: StepValues) -> Any:
        part: TrainingState = packing.unpacked(arrays)
        after, told = both(part._replace(**no_sums(part.params)), call, values)
        return packing.packed(after.part(adding.models)), told

    arrays = jax.eval_shape(packing.packed, part)
    compiled = jax.jit(both_packed).lower(arrays, call, values).compile()
    return GradientStep(adding, stepping, packing, compiled, structure)


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
