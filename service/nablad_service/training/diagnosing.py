"""A loss or a gradient that is not finite: where that began, with what was trained by then."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from nablad.messages import NonFinite
from nablad_service.planning.diagnosing import OnDevice, diagnosed
from nablad_service.planning.programs import Programs
from nablad_service.query import Query, arguments
from nablad_service.running.off_loop import off_loop
from nablad_service.training.gradients import Arrays, labels_of
from nablad_service.training.labels import leaf_of
from nablad_service.training.loop import Records
from nablad_service.training.state import size_of


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
    trained = {label: leaf_of(given, label) for label in labels_of(query)}
    spoiled = await off_loop(size_of(trained), lambda: _spoiled(trained))
    if spoiled is None:
        return NonFinite.model_validate(await diagnosed(programs, run, query))
    # All calls that follow are like this: nothing is compiled or run for them.
    what = [] if math.isfinite(value) else ["value"]
    what += [f"gradients.{entry}" for entry, norm in norms.items() if not math.isfinite(norm)]
    message = f"'{spoiled}' is not finite itself: a step before this one made it so, or it began so"
    return NonFinite(what=what, message=message)


def _spoiled(trained: Arrays) -> str | None:
    """The label of what is not finite before anything is computed with it."""
    return next((label for label, array in trained.items() if not np.isfinite(array).all()), None)


def divergence(step: int, good: int, records: Records, index: int, found: NonFinite) -> str:
    """Why a loop ends that is not finite any more, and what to do, in one sentence.

    Args:
        step: that failed, from 0.
        good: steps after which the loss was finite; `step` itself where the loop went on from a save at which
            it is not.
        records: of the call with that step.
        index: of the step among them.
        found: the diagnosis.
    """
    wrong = [name for name, entries in records.terms.items() if not math.isfinite(float(entries[index]))]
    if math.isfinite(float(records.value[index])):
        what = "the gradient of the loss"
    elif wrong:
        what = f"the term {' and the term '.join(map(repr, wrong))}"
    else:
        what = "the loss"
    detail = f"{what} is not finite in step {step + 1}"
    if not step:
        return f"{detail}, at the start values: {found}"
    if good == step:
        then = f"the save of step {step} is at fault: begin anew, or load an earlier one in a session"
        return f"{detail}, at the values of the save: {found}; {then}"
    then = f"what {good} steps gave is kept: try a smaller learning rate from there, or clip_norm"
    return f"{detail}: {found}; {then}"
