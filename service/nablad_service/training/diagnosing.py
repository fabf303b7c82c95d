"""A loss or a gradient that is not finite: where that began, with what was trained by then."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax.numpy as jnp

from nablad.messages import NonFinite
from nablad_service.planning.diagnosing import OnDevice, diagnosed
from nablad_service.planning.programs import Programs
from nablad_service.query import Query, arguments
from nablad_service.training.gradients import labels_of
from nablad_service.training.labels import leaf_of


async def diagnosed_training(
    programs: Programs, run: OnDevice, query: Query, value: float, norms: Mapping[str, float]
) -> NonFinite:
    """Where the gradient of `query`, which has its values, stopped being finite; nothing is raised.

    Args:
        programs: compiles what is needed, once for a program.
        run: on the device.
        query: the program with all that it was evaluated with.
        value: of the loss that was found.
        norms: of the gradients that were found, by entry of `wrt`.
    """
    given = arguments(query)
    for label in labels_of(query):
        # Once that is so, all calls that follow are like this: nothing is compiled or run for them.
        if not bool(jnp.isfinite(leaf_of(given, label)).all()):
            what = [] if math.isfinite(value) else ["value"]
            what += [f"gradients.{entry}" for entry, norm in norms.items() if not math.isfinite(norm)]
            message = f"'{label}' is not finite itself: a step before this one made it so, or it began so"
            return NonFinite(what=what, message=message)
    return NonFinite.model_validate(await diagnosed(programs, run, query))
