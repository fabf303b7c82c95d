"""Many steps of training as one device call.

The steps are a `while` loop of XLA with their number as an argument: one compiled loop serves calls of any
length, and where a run is cut into calls changes no number of it. What a report may tell of a step is
written into small arrays, one entry a step, and fetched once a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nablad_service.engine.executable import failures_told
from nablad_service.engine.values import on_host
from nablad_service.training.feeds import Block, Picked, inputs_at
from nablad_service.training.gradients import Around, Found, Gradient, norms_of
from nablad_service.training.labels import entry_of
from nablad_service.training.optimisers import Arrays, Rule, StepValues

MOST_STEPS = 1024
"""In one call: entries of its records."""


class LoopState(NamedTuple):
    """Everything that a step changes."""

    params: Arrays
    """What is trained, by label."""
    models: Mapping[str, Any]
    """State of models, by the program's names."""
    optimiser: Any


class Given(NamedTuple):
    """What a loop takes beside its state: the same for all steps of a call."""

    inputs: Mapping[str, Any]
    """Arrays and trees by name."""
    blocks: Mapping[str, Block]
    """Of samplers, by name."""
    data: Mapping[str, Mapping[str, Any]]
    """All examples, by sampler and input."""
    weights: Mapping[str, Any]
    """Of terms; empty where the loss is the last expression."""
    values: StepValues
    seed: Any
    """Of the run, uint32: random operators draw anew each step."""
    begin: Any
    """The step at which the optimiser began, int32."""


class Records(NamedTuple):
    """What is told of each step: arrays with an entry a step, or zeros where the call had fewer."""

    value: Any
    """Of the loss at the parameters that the step began with."""
    terms: Mapping[str, Any]
    norms: Mapping[str, Any]
    """Of the gradients, by entry of `wrt`."""
    learning_rate: Any
    """Zero where the optimiser has none."""
    finite: Any
    """Whether value and gradients are."""


@dataclass(frozen=True)
class Loop:
    """A step, and how it is repeated."""

    gradient: Gradient
    rule: Rule
    picked: Mapping[str, Picked]
    together: int
    """Draws of the samplers in one step, which takes the mean of what the program finds with each."""

    def advance(self, state: LoopState, given: Given, first: Any, count: Any) -> tuple[LoopState, Records]:
        """`count` steps, at most `MOST_STEPS`, of which the first has the number `first`. Can be traced."""

        def body(i: Any, carry: tuple[LoopState, Records]) -> tuple[LoopState, Records]:
            state, records = carry
            state, record = self._step(state, given, first + i)
            written = jax.tree.map(lambda entries, one: entries.at[i].set(one), records, record)
            return state, written

        shapes = jax.eval_shape(lambda: self._step(state, given, first)[1])
        records = jax.tree.map(lambda one: jnp.zeros((MOST_STEPS, *one.shape), one.dtype), shapes)
        return jax.lax.fori_loop(0, count, body, (state, records))

    def look(self, state: LoopState, given: Given, step: Any) -> Found:
        """What the gradient's program finds at a step, in the mean of its draws. Can be traced."""
        found = self._once(state, given, step, 0)
        if self.together == 1:
            return found

        def add(turn: Any, found: Found) -> Found:
            one = self._once(state._replace(models=found.state), given, step, turn)
            summed = jax.tree.map(jnp.add, _means(found), _means(one))
            return one._replace(**summed, finite=found.finite & one.finite)

        total = jax.lax.fori_loop(1, self.together, add, found)
        return total._replace(**jax.tree.map(lambda one: one / self.together, _means(total)))

    def _once(self, state: LoopState, given: Given, step: Any, turn: Any) -> Found:
        return self.gradient(state.params, self.around(state, given, step, turn))

    def around(self, state: LoopState, given: Given, step: Any, turn: Any) -> Around:
        """What the program takes in a step, with the `turn`th of its draws. Can be traced."""
        inputs = {**given.inputs, **inputs_at(step, turn, self.picked, given.blocks, given.data)}
        seed = seed_at(given.seed, step * self.together + turn)
        return Around(inputs, state.models, seed, given.weights)

    def _loss(self, state: LoopState, given: Given, step: Any) -> Callable[[Arrays], Any]:
        """The loss of a step, for a line search: the mean over its draws, at the models' state before it."""

        def loss(params: Arrays) -> Any:
            turns = range(self.together)
            each = [self.gradient.loss(self.around(state, given, step, turn))(params) for turn in turns]
            return sum(each) / self.together

        return loss

    def _step(self, state: LoopState, given: Given, step: Any) -> tuple[LoopState, Records]:
        # L-BFGS keeps what its line search found here, and `optax.value_and_grad_from_state` gives it back: a
        # step of a Poisson PINN would take 0.64 of the time. But a line search knows no terms, what it found
        # holds only for the same draws, weights, seed and models' state, and differs in its last bits: a run
        # that goes on from a save, where any of these may be another, would not come to the same numbers.
        found = self.look(state, given, step)
        updated = self.rule.update(
            found.gradients,
            state.optimiser,
            state.params,
            given.values,
            step=step - given.begin,
            value=found.value,
            value_fn=self._loss(state, given, step) if self.rule.needs_loss else None,
        )
        rate = updated.learning_rate
        record = Records(
            found.value,
            found.terms,
            norms_of(found.gradients, entry_of),
            jnp.zeros_like(found.value) if rate is None else rate,
            found.finite,
        )
        return LoopState(updated.params, found.state, updated.state), record


def _means(found: Found) -> dict[str, Any]:
    """What of an evaluation has a mean over several."""
    return {name: getattr(found, name) for name in ("value", "terms", "gradients", "term_norms")}


def seed_at(seed: Any, number: Any) -> Any:
    """The seed of random operators in one evaluation of the program, by its number; uint32."""
    return jax.random.bits(jax.random.fold_in(jax.random.key(seed), number), (), "uint32")


@dataclass(frozen=True, eq=False)
class CompiledLoop:
    """A loop, compiled for the device."""

    advance: Callable[..., tuple[LoopState, Records]]
    begin: Callable[[Arrays, StepValues], Any]
    """The state of a new optimiser."""
    look: Callable[..., Any] | None = None
    """The norms of the terms' gradients, for a balance."""

    def run(self, state: LoopState, given: Given, first: int, count: int) -> tuple[LoopState, Records]:
        """`count` steps; the records of these, on the host."""
        with failures_told():
            state, records = self.advance(state, given, np.int32(first), np.int32(count))
            return state, jax.tree.map(lambda entries: entries[:count], on_host(records))

    def term_norms(self, state: LoopState, given: Given, step: int) -> dict[str, dict[str, float]]:
        """The norm of each term's gradient by entry of `wrt`, at a step that is not done yet."""
        assert self.look is not None
        with failures_told():
            return jax.tree.map(float, on_host(self.look(state, given, np.int32(step))))


def compile_loop(loop: Loop, state: LoopState, given: Given) -> CompiledLoop:
    """Compile for arguments like these; specs do in place of arrays."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    advance = jax.jit(loop.advance).lower(state, given, step, step).compile()
    begin = jax.jit(loop.rule.init).lower(state.params, given.values).compile()
    return CompiledLoop(advance, begin)


def compile_look(loop: Loop, state: LoopState, given: Given) -> Callable[..., Any]:
    """Compile what finds the norms of the terms' gradients, of a loop whose query asks for them."""

    def look(state: LoopState, given: Given, step: Any) -> Any:
        return loop.look(state, given, step).term_norms

    return jax.jit(look).lower(state, given, jax.ShapeDtypeStruct((), jnp.int32)).compile()
