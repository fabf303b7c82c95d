"""How a call of a session changes its training state: functions to be traced, one by one or together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nablad_service.training.gradients import Around, Found, Gradient, norms_of
from nablad_service.training.labels import entry_of
from nablad_service.training.optimisers import Arrays, Rule, StepValues
from nablad_service.training.state import TrainingState, no_sums

DRAWN = -1
"""In place of a seed: the state draws one."""


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


class Batch(NamedTuple):
    """A gradient's call as a line search needs it again."""

    program: Hashable
    gradient: Gradient
    around: Around
    weight: np.float64

    def kept(self) -> Batch:
        """The same with arrays of its own: what a request brought may lie in its sender's memory."""
        return self._replace(around=jax.tree.map(jnp.array, self.around))


class Told(NamedTuple):
    """What the host may learn of a gradient's call."""

    figures: Any
    """All numbers of `figures`, float64: one array is one transfer."""
    outputs: Mapping[str, Any]
    gradients: Arrays
    """Empty unless asked for."""


@dataclass(frozen=True, eq=False)
class Adding:
    """Adds a program's gradient to the sums of a state."""

    gradient: Gradient
    models: tuple[str, ...]
    """Whose state the program reads."""
    terms: tuple[str, ...]
    tells_gradients: bool

    def part(self, state: TrainingState) -> TrainingState:
        """What of a state it reads; that of another session may have more parameters."""
        labels = self.gradient.labels
        return state._replace(
            params={label: state.params[label] for label in labels},
            models={name: state.models[name] for name in self.models},
            gradients={label: state.gradients[label] for label in labels},
            optimiser=None,
            step=None,
        )

    def __call__(self, part: TrainingState, call: Call) -> tuple[TrainingState, Told, Any]:
        """What of the part changes, what is told, and the seed that was taken."""
        seed, key = _drawn(part.key, call)
        found = self.gradient(part.params, Around(call.inputs, part.models, seed, call.terms))
        weight = call.weight.astype(part.value.dtype)
        changed = part._replace(
            params={},
            models=found.state,
            gradients={label: one + weight * found.gradients[label] for label, one in part.gradients.items()},
            value=part.value + weight * found.value.astype(part.value.dtype),
            weight=part.weight + weight,
            key=key,
        )
        # Every float of a program is one of float64 too.
        figures = jnp.stack([one.astype(jnp.float64) for one in jax.tree.leaves(self._figures(found))])
        return changed, Told(figures, found.outputs, found.gradients if self.tells_gradients else {}), seed

    def around(self, state: TrainingState, call: Call) -> Around:
        """What the program takes, beside what is trained, in a call at this state."""
        models = {name: state.models[name] for name in self.models}
        return Around(call.inputs, models, _drawn(state.key, call)[0], call.terms)

    def merged(self, state: TrainingState, changed: TrainingState) -> TrainingState:
        """A state with what has changed of it."""
        return state._replace(
            models={**state.models, **changed.models},
            gradients={**state.gradients, **changed.gradients},
            value=changed.value,
            weight=changed.weight,
            key=changed.key,
        )

    def structure(self, part: TrainingState, call: Call) -> Any:
        """The tree of the figures, for arguments like these."""

        def figures(part: TrainingState, call: Call) -> Any:
            around = Around(call.inputs, part.models, np.uint32(0), call.terms)
            return self._figures(self.gradient(part.params, around))

        return jax.tree.structure(jax.eval_shape(figures, part, call))

    def _figures(self, found: Found) -> Any:
        return {
            "value": found.value,
            "terms": {name: found.terms[name] for name in self.terms},
            "norms": norms_of(found.gradients, entry_of),
            "term_norms": {name: dict(one) for name, one in found.term_norms.items()},
            "finite": found.finite,
        }


@dataclass(frozen=True, eq=False)
class Stepping:
    """Updates the parameters with the mean of the gradients."""

    rule: Rule
    gradients: Sequence[Gradient] = ()
    """Of the batches since the last step, where the rule needs the loss."""

    def part(self, state: TrainingState) -> TrainingState:
        """What of a state it reads."""
        return state._replace(models={}, key=None)

    def __call__(self, part: TrainingState, values: StepValues, batches: Any) -> tuple[TrainingState, Any]:
        """The part after the step, and its learning rate and norms in one array, float64.

        Args:
            part: of a state.
            values: of this step.
            batches: what surrounds each of the gradients, and its weight.
        """

        def loss(params: Arrays) -> Any:
            total = jnp.zeros_like(part.value)
            for gradient, (around, weight) in zip(self.gradients, batches, strict=True):
                own = {label: params[label] for label in gradient.labels}
                total += weight.astype(total.dtype) * gradient.loss(around)(own).astype(total.dtype)
            return total / part.weight

        done = self.rule.update(
            {label: one / part.weight for label, one in part.gradients.items()},
            part.optimiser,
            part.params,
            values,
            step=part.step,
            value=part.value / part.weight,
            value_fn=loss,
        )
        rate = jnp.nan if done.learning_rate is None else done.learning_rate
        figures = [jnp.asarray(one, jnp.float64) for one in (rate, done.gradient_norm, done.update_norm)]
        after = part._replace(
            params=done.params,
            optimiser=done.state,
            step=part.step + 1,
            **no_sums(part.params),
        )
        return after, jnp.stack(figures)

    def merged(self, state: TrainingState, after: TrainingState) -> TrainingState:
        """A state with what has changed of it."""
        return after._replace(models=state.models, key=state.key)


def _drawn(key: Any, call: Call) -> tuple[Any, Any]:
    """The seed of a call's random operators, and the key of the state after it. Can be traced."""
    rest, drawn = jax.random.split(jax.random.wrap_key_data(key))
    draws = call.seed == DRAWN
    seed = jnp.where(draws, jax.random.bits(drawn, (), "uint32"), call.seed.astype(jnp.uint32))
    return seed, jnp.where(draws, jax.random.key_data(rest), key)
