"""Optimisers: optax's, by name, so that what changes from step to step are values of a compiled update.

One step does what this does in a program of one's own, and to the same rounding:

    rule = optax.chain(optax.clip_by_global_norm(c), optax.adamw(schedule, weight_decay=w))
    updates, state = rule.update(gradients, state, params)
    params = optax.apply_updates(params, updates)

with the learning rate, `c`, `w` and the mask of what is frozen as arguments: another value compiles nothing.
What is frozen has no part in a step: its gradient counts for no norm, and its parameters and its part of the
optimiser's state stay as they are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad.training.messages import Optimiser, Schedule, StepSettings
from nablad_service.language.places import nearest
from nablad_service.training.labels import matching
from nablad_service.training.optax_calls import Settings, keywords, settings_of
from nablad_service.training.schedules import ByStep, by_step

OPTIMISERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adabelief": optax.adabelief,
    "adadelta": optax.adadelta,
    "adafactor": optax.adafactor,
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamax": optax.adamax,
    "adamaxw": optax.adamaxw,
    "adamw": optax.adamw,
    "adan": optax.adan,
    "amsgrad": optax.amsgrad,
    "fromage": optax.fromage,
    "lamb": optax.lamb,
    "lars": optax.lars,
    "lbfgs": optax.lbfgs,
    "lion": optax.lion,
    "nadam": optax.nadam,
    "nadamw": optax.nadamw,
    "novograd": optax.novograd,
    "optimistic_gradient_descent": optax.optimistic_gradient_descent,
    "polyak_sgd": optax.polyak_sgd,
    "radam": optax.radam,
    "rmsprop": optax.rmsprop,
    "rprop": optax.rprop,
    "sgd": optax.sgd,
    "sign_sgd": optax.sign_sgd,
    "signum": optax.signum,
    "sm3": optax.sm3,
    "yogi": optax.yogi,
}
UNSENDABLE = {"mask", "weight_decay_mask", "trust_ratio_mask", "linesearch"}
"""Settings that are functions or trees."""
VALUES = ("learning_rate", "weight_decay")
"""Settings that are values of a step."""
Arrays = Mapping[str, Any]
"""What is trained, and its gradients, by label."""


class StepValues(NamedTuple):
    """What a step may set: arguments of the compiled update."""

    learning_rate: np.float64
    """Not a number where the schedule says."""
    clip_norm: np.float64
    """Infinite for none."""
    weight_decay: np.float64
    frozen: NDArray[np.bool_]
    """Which of what is trained does not change, in the order of the sorted labels."""


class Updated(NamedTuple):
    """What a step gives."""

    params: Arrays
    state: Any
    learning_rate: Any
    """None where the optimiser has none."""
    gradient_norm: Any
    """Of what is not frozen, before clipping."""
    update_norm: Any


@dataclass(frozen=True)
class Rule:
    """What an update is compiled for: the optimiser without the values of a step. Hashable."""

    name: str
    settings: Settings
    schedule: ByStep | None
    """In place of a learning rate."""
    has_learning_rate: bool

    @property
    def needs_loss(self) -> bool:
        """Whether a step computes the loss at other parameters: a line search does."""
        return self.name == "lbfgs"

    @cached_property
    def has_weight_decay(self) -> bool:
        """Whether optax's function has a weight decay."""
        return "weight_decay" in inspect.signature(OPTIMISERS[self.name]).parameters

    def init(self, params: Arrays, values: StepValues) -> Any:
        """The state before the first step. Can be traced.

        Args:
            params: of one float type, by label.
            values: of the first step; `rprop` takes its learning rate from here.
        """
        learning_rate = self._learning_rate(values, jnp.zeros((), jnp.int32), params)
        return self._transformation(params, values, learning_rate).init(params)

    def update(
        self,
        gradients: Arrays,
        state: Any,
        params: Arrays,
        values: StepValues,
        *,
        step: Any,
        value: Any,
        value_fn: Callable[[Arrays], Any] | None = None,
    ) -> Updated:
        """One step. Can be traced; the result has the dtypes of what is given.

        Args:
            gradients: by label, in the float type of `params`.
            state: of `init` or of the last step.
            params: of one float type, by label.
            values: of this step.
            step: steps that this rule has done before, for its schedule; int32.
            value: the loss at `params`.
            value_fn: the loss as a function of the parameters, where the rule `needs_loss`; differentiable.
        """
        frozen = {label: values.frozen[index] for index, label in enumerate(sorted(params))}
        gradients = _unless(frozen, gradients)
        learning_rate = self._learning_rate(values, step, params)
        rule = optax.with_extra_args_support(self._transformation(params, values, learning_rate))
        extra = {"value_fn": value_fn} if self.needs_loss else {}
        updates, after = rule.update(gradients, state, params, value=value, grad=gradients, **extra)
        updates = _unless(frozen, updates)
        return Updated(
            optax.apply_updates(params, updates),
            # L-BFGS keeps pairs of differences of all leaves together: a frozen one has zeros there.
            after if self.needs_loss else _state_unless(frozen, state, after),
            learning_rate,
            optax.tree.norm(gradients),
            optax.tree.norm(updates),
        )

    def _learning_rate(self, values: StepValues, step: Any, params: Arrays) -> Any:
        if not self.has_learning_rate:
            return None
        dtype = _float_type(params)
        if self.schedule is None:
            return jnp.asarray(values.learning_rate, dtype)
        given = jnp.asarray(values.learning_rate)
        return jnp.where(jnp.isnan(given), self.schedule(step), given).astype(dtype)

    def _transformation(
        self, params: Arrays, values: StepValues, learning_rate: Any
    ) -> optax.GradientTransformation:
        dtype = _float_type(params)
        given = keywords(self.settings)
        if learning_rate is not None:
            given["learning_rate"] = learning_rate
        if self.has_weight_decay:
            given["weight_decay"] = jnp.asarray(values.weight_decay, dtype)
        clip = optax.clip_by_global_norm(jnp.asarray(values.clip_norm, dtype))
        return optax.chain(clip, OPTIMISERS[self.name](**given))


def rule_of(optimiser: Optimiser, params: Arrays) -> Rule:
    """The rule that a request asks for, to train `params`, or what has their shapes.

    Raises:
        Refusal: `optimiser` where optax has none of that name, or not with these settings, or not for these
            shapes; `invalid_request` where something frozen is not trained.
    """
    name = optimiser.name
    if name not in OPTIMISERS:
        hint = nearest(name, OPTIMISERS) or f"; there are {', '.join(OPTIMISERS)}"
        raise Refusal("optimiser", f"there is no optimiser '{name}'{hint}")
    given: dict[str, Any] = dict(optimiser.model_extra or {})
    rate = optimiser.learning_rate
    if rate is not None:
        given["learning_rate"] = 0.0 if isinstance(rate, Schedule) else rate
    schedule = by_step(rate) if isinstance(rate, Schedule) else None
    if schedule is not None and name == "rprop":
        raise Refusal("optimiser", "rprop takes its learning rate at the first step only; send a number")
    checked = settings_of(OPTIMISERS[name], name, given, without=UNSENDABLE)
    rule = Rule(
        name,
        tuple(one for one in checked if one[0] not in VALUES),
        schedule,
        has_learning_rate=rate is not None,
    )
    _try(rule, params, values_of(optimiser, rule, list(params)))
    return rule


def values_of(
    optimiser: Optimiser, rule: Rule, labels: Sequence[str], step: StepSettings | None = None
) -> StepValues:
    """The values of a step: those that it names, the optimiser's own for the others.

    Args:
        labels: of what is trained.

    Raises:
        Refusal: `optimiser` where the step names what the optimiser does not have, `invalid_request` where
            something frozen is not trained.
    """
    asked = StepSettings() if step is None else step
    rate = asked.learning_rate
    if rate is not None and (not rule.has_learning_rate or rule.name == "rprop"):
        raise Refusal(
            "optimiser", f"this {rule.name} has no learning rate that a step could set{_instead(rule)}"
        )
    if rate is None:
        rate = optimiser.learning_rate if isinstance(optimiser.learning_rate, float) else math.nan
    decay = asked.weight_decay
    if decay is not None and not rule.has_weight_decay:
        having = [name for name in OPTIMISERS if name.endswith("w")]
        detail = f"{rule.name} has no weight decay that a step could set; {', '.join(having)} and others have"
        raise Refusal("optimiser", detail)
    if decay is None and rule.has_weight_decay:
        default = inspect.signature(OPTIMISERS[rule.name]).parameters["weight_decay"].default
        decay = (optimiser.model_extra or {}).get("weight_decay", default)
    clip = asked.clip_norm if asked.clip_norm is not None else optimiser.clip_norm
    frozen = optimiser.frozen if asked.frozen is None else asked.frozen
    return StepValues(
        np.float64(rate),
        np.float64(math.inf if clip is None else clip),
        np.float64(0.0 if decay is None else decay),
        np.asarray(matching(frozen, sorted(labels)), bool),
    )


def _instead(rule: Rule) -> str:
    if rule.name == "lbfgs":
        return ": a line search finds the length of its steps"
    if rule.name == "rprop":
        return ": it takes one at the first step only"
    return "; give it one from the start" if rule.name != "polyak_sgd" else ", but a max_learning_rate"


def _try(rule: Rule, params: Arrays, values: StepValues) -> None:
    """Trace a step: optax says only then what it cannot use."""

    def step(params: Arrays) -> Updated:
        def loss(params: Arrays) -> Any:
            return sum(jnp.sum(one) for one in params.values())

        zero, count = jnp.zeros((), _float_type(params)), jnp.zeros((), jnp.int32)
        state = rule.init(params, values)
        return rule.update(params, state, params, values, step=count, value=zero, value_fn=loss)

    try:
        jax.eval_shape(step, params)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise Refusal("optimiser", f"optax cannot make {rule.name} with these settings: {reason}") from error


def _float_type(params: Arrays) -> Any:
    return jnp.result_type(*params.values())


def _unless(frozen: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Zeros of what is frozen, else the arrays."""
    return {label: jnp.where(frozen[label], jnp.zeros_like(one), one) for label, one in arrays.items()}


def _state_unless(frozen: Mapping[str, Any], before: Any, after: Any) -> Any:
    """The state after a step, but as it was `before` of what is frozen: leaves stand under their label."""

    def choose(path: tuple[Any, ...], old: Any, new: Any) -> Any:
        of = next((key.key for key in path if getattr(key, "key", None) in frozen), None)
        return new if of is None else jnp.where(frozen[of], old, new)

    return jax.tree_util.tree_map_with_path(choose, before, after)
