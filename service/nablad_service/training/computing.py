"""What a session computes, compiled: a gradient that is added to the others, and a step with their mean.

Either is one call of the device; what the host learns of it (the loss, norms) comes back in one array.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nablad_service.engine.executable import Traced, failures_told
from nablad_service.engine.values import on_host
from nablad_service.query import Query
from nablad_service.training.gradients import Around, Found, Gradient, gradient_of, norms_of
from nablad_service.training.labels import entry_of
from nablad_service.training.optimisers import Arrays, Rule, StepValues
from nablad_service.training.session_questions import Start
from nablad_service.training.state import TrainingState, first_state, size_of

DRAWN = -1
"""In place of a seed: the state draws one."""


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


class Call(NamedTuple):
    """The values of a gradient's call."""

    inputs: Mapping[str, Any]
    """Arrays and trees by name."""
    terms: Mapping[str, Any]
    """Weights of terms; empty where the loss is the last expression."""
    weight: np.float64
    """In the mean."""
    seed: np.int64
    """Of random operators; `DRAWN` for one that the state draws."""


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


class Batch(NamedTuple):
    """A gradient's call as a line search needs it again."""

    program: Hashable
    gradient: Gradient
    around: Around
    weight: np.float64

    def kept(self) -> Batch:
        """The same with arrays of its own: what a request brought may lie in its sender's memory."""
        return self._replace(around=jax.tree.map(jnp.array, self.around))


@dataclass(frozen=True, eq=False)
class Accumulation:
    """A program's gradient, compiled to be added to the sums of a state."""

    program: Hashable
    """What it was compiled for."""
    gradient: Gradient
    compiled: Any
    models: tuple[str, ...]
    structure: Any
    """Of the figures: a tree with their names."""

    def run(self, state: TrainingState, call: Call) -> tuple[TrainingState, Any, Batch]:
        """The state after the call, what `computed` reads, and the call as a line search needs it.

        Nothing is waited for: what comes next can be begun.
        """
        models = {name: state.models[name] for name in self.models}
        params, gradients = (
            {label: tree[label] for label in self.gradient.labels} for tree in (state.params, state.gradients)
        )
        with failures_told():
            done = self.compiled(params, models, gradients, state.value, state.weight, state.key, call)
        after = state._replace(
            models={**state.models, **done["models"]},
            gradients={**state.gradients, **done["gradients"]},
            value=done["value"],
            weight=done["weight"],
            key=done["key"],
        )
        around = Around(call.inputs, models, done["seed"], call.terms)
        return after, done["told"], Batch(self.program, self.gradient, around, call.weight)

    def computed(self, told: Any) -> Computed:
        """What a call tells, waited for.

        Raises:
            Refusal: `out_of_memory`, `function_failed`.
        """
        with failures_told():
            told = on_host(told)
        figures = jax.tree.unflatten(self.structure, told["figures"].tolist())
        return Computed(
            **{**figures, "finite": bool(figures["finite"])},
            outputs=told["outputs"],
            gradients=told["gradients"],
        )


def compile_accumulation(
    program: Hashable, traced: Traced, query: Query, state: TrainingState, call: Call, *, with_gradients: bool
) -> Accumulation:
    """Compile for a state and calls like these; specs do in place of arrays.

    Args:
        program: what to know it by.
        traced: the gradient's program.
        query: likewise.
        state: of a session that trains at least what the query differentiates.
        call: its values.
        with_gradients: whether it tells the arrays too.
    """
    gradient = gradient_of(traced, query)
    names = tuple(query.state)
    terms = query.signature.terms
    structure: list[Any] = []

    def told(found: Found) -> Any:
        norms = norms_of(found.gradients, entry_of)
        figures = {
            "value": found.value,
            "terms": {name: found.terms[name] for name in terms},
            "norms": norms,
            "term_norms": {name: dict(one) for name, one in found.term_norms.items()},
            "finite": found.finite,
        }
        leaves, tree = jax.tree.flatten(figures)
        structure.append(tree)
        # Every float of a program is one of float64 too.
        row = jnp.stack([leaf.astype(jnp.float64) for leaf in leaves])
        return {
            "figures": row,
            "outputs": found.outputs,
            "gradients": found.gradients if with_gradients else {},
        }

    def compute(
        params: Arrays, models: Any, gradients: Arrays, value: Any, weight: Any, key: Any, call: Call
    ) -> Any:
        rest, drawn = jax.random.split(jax.random.wrap_key_data(key))
        draws = call.seed == DRAWN
        seed = jnp.where(draws, jax.random.bits(drawn, (), "uint32"), call.seed.astype(jnp.uint32))
        found = gradient(params, Around(call.inputs, models, seed, call.terms))
        own = call.weight.astype(value.dtype)
        return {
            "told": told(found),
            "models": found.state,
            "gradients": {label: one + own * found.gradients[label] for label, one in gradients.items()},
            "value": value + own * found.value.astype(value.dtype),
            "weight": weight + own,
            "key": jnp.where(draws, jax.random.key_data(rest), key),
            "seed": seed,
        }

    given = (
        {label: state.params[label] for label in gradient.labels},
        {name: state.models[name] for name in names},
        {label: state.gradients[label] for label in gradient.labels},
        state.value,
        state.weight,
        state.key,
        call,
    )
    compiled = jax.jit(compute).lower(*given).compile()
    return Accumulation(program, gradient, compiled, names, structure[-1])


@dataclass(frozen=True)
class Stepped:
    """What a step tells, on the host."""

    learning_rate: float | None
    gradient_norm: float
    update_norm: float


@dataclass(frozen=True, eq=False)
class Stepping:
    """A step of an optimiser, compiled."""

    compiled: Any
    rated: bool

    def run(
        self, state: TrainingState, values: StepValues, batches: Sequence[Batch]
    ) -> tuple[TrainingState, Any]:
        """The state after a step with the mean of the gradients, and what `stepped` reads.

        Nothing is waited for.
        """
        with failures_told():
            done, figures = self.compiled(_changing(state), values, _values_of(batches))
        return done._replace(models=state.models, key=state.key), figures

    def stepped(self, figures: Any) -> Stepped:
        """What a step tells, waited for.

        Raises:
            Refusal: `out_of_memory`.
        """
        with failures_told():
            rate, gradient_norm, update_norm = on_host(figures).tolist()
        return Stepped(rate if self.rated else None, gradient_norm, update_norm)


def compile_step(rule: Rule, state: TrainingState, values: StepValues, batches: Sequence[Batch]) -> Stepping:
    """Compile for a state like this, and batches where the rule needs the loss; specs do for arrays."""
    programs = [batch.gradient for batch in batches]

    def compute(state: TrainingState, values: StepValues, given: Any) -> Any:
        def loss(params: Arrays) -> Any:
            total = jnp.zeros_like(state.value)
            for gradient, (around, weight) in zip(programs, given, strict=True):
                own = {label: params[label] for label in gradient.labels}
                total += weight.astype(total.dtype) * gradient.loss(around)(own).astype(total.dtype)
            return total / state.weight

        done = rule.update(
            {label: one / state.weight for label, one in state.gradients.items()},
            state.optimiser,
            state.params,
            values,
            step=state.step,
            value=state.value / state.weight,
            value_fn=loss,
        )
        rate = jnp.nan if done.learning_rate is None else done.learning_rate
        figures = [jnp.asarray(one, jnp.float64) for one in (rate, done.gradient_norm, done.update_norm)]
        after = state._replace(
            params=done.params,
            optimiser=done.state,
            gradients={label: jnp.zeros_like(one) for label, one in state.gradients.items()},
            value=jnp.zeros_like(state.value),
            weight=jnp.zeros_like(state.weight),
            step=state.step + 1,
        )
        return after, jnp.stack(figures)

    compiled = jax.jit(compute).lower(_changing(state), values, _values_of(batches)).compile()
    return Stepping(compiled, rule.has_learning_rate)


def _changing(state: TrainingState) -> TrainingState:
    """What a step changes or reads: no program is compiled anew for the rest."""
    return state._replace(models={}, key=None)


def _values_of(batches: Sequence[Batch]) -> list[tuple[Around, np.float64]]:
    return [(batch.around, batch.weight) for batch in batches]
