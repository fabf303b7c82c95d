"""Learning rates by step: optax's schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nablad.problems import Refusal
from nablad.training.messages import Schedule
from nablad_service.language.places import nearest
from nablad_service.training.optax_calls import Settings, keywords, settings_of

SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": optax.constant_schedule,
    "cosine_decay": optax.cosine_decay_schedule,
    "cosine_onecycle": optax.cosine_onecycle_schedule,
    "exponential_decay": optax.exponential_decay,
    "linear": optax.linear_schedule,
    "linear_onecycle": optax.linear_onecycle_schedule,
    "piecewise_constant": optax.piecewise_constant_schedule,
    "piecewise_interpolate": optax.piecewise_interpolate_schedule,
    "polynomial": optax.polynomial_schedule,
    "warmup_constant": optax.warmup_constant_schedule,
    "warmup_cosine_decay": optax.warmup_cosine_decay_schedule,
    "warmup_exponential_decay": optax.warmup_exponential_decay_schedule,
}


@dataclass(frozen=True)
class ByStep:
    """A schedule of optax with its settings; call it with the number of steps done."""

    name: str
    settings: Settings

    def __call__(self, step: Any) -> Any:
        return SCHEDULES[self.name](**keywords(self.settings))(step)


def by_step(schedule: Schedule) -> ByStep:
    """The schedule that a request asks for.

    Raises:
        Refusal: `optimiser` where optax has none of that name, or not with these settings.
    """
    name = schedule.schedule.removesuffix("_schedule")
    if name not in SCHEDULES:
        hint = nearest(name, SCHEDULES) or f"; there are {', '.join(SCHEDULES)}"
        raise Refusal("optimiser", f"there is no schedule '{schedule.schedule}'{hint}")
    given = schedule.model_extra or {}
    found = ByStep(name, settings_of(SCHEDULES[name], f"the schedule {name}", given))
    try:
        jax.eval_shape(found, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:  # whatever optax says of settings that it cannot use
        raise Refusal("optimiser", f"optax cannot make the schedule {name}: {error}") from error
    return found
