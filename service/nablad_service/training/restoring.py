"""A session as its save holds it, and the session that comes from a save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from nablad.problems import Refusal
from nablad.training.messages import Optimiser, SessionGradient, Standing
from nablad_service.hosting import HostedModel, ModelStore
from nablad_service.language import Limits
from nablad_service.programs import Programs
from nablad_service.training.computing import Batch
from nablad_service.training.gradients import Around, gradient_of
from nablad_service.training.labels import parameter_label
from nablad_service.training.optimisers import Rule, StepValues, rule_of, values_of
from nablad_service.training.session import Device, Pending, Progress, Session
from nablad_service.training.session_questions import Start, Trainee, session_query, stand_in
from nablad_service.training.state import Saved, TrainingState, first_state, on_device, on_host

BATCH = "batch"
"""Of the paths of what a batch took."""


def specs_of(start: Start, rule: Rule, values: StepValues) -> TrainingState:
    """The state that a session begins with, without its arrays; computes nothing."""
    seed = jax.ShapeDtypeStruct((), np.uint32)
    return jax.eval_shape(  # type: ignore[no-any-return] # what the function gives
        lambda params, models, seed: first_state(params, models, rule, values, seed),
        dict(start.params),
        dict(start.state),
        seed,
    )


def about_of(session: Session, sequence: int) -> dict[str, Any]:
    """The document of a save, after the call of that number."""
    progress = session.progress
    return {
        "kind": "session",
        "name": session.name,
        "tenant": session.tenant,
        "sequence": sequence,
        "generation": session.generation,
        "step": progress.step,
        "accumulated": progress.accumulated,
        "optimiser": session.optimiser.model_dump(mode="json"),
        "models": {name: one.hosted for name, one in session.models.items()},
        "modes": {name: one.mode for name, one in session.models.items()},
        "digests": {name: one.model.digest for name, one in session.models.items()},
        "trained": list(session.inputs),
        "choices": [[key, list(choices.items())] for key, choices in session.choices.items()],
        "batches": [_batch_about(one) for one in progress.pending],
        "bytes": session.bytes,
    }


def _batch_about(pending: Pending) -> dict[str, Any]:
    trees = {name: list(one) for name, one in pending.batch.around.inputs.items() if isinstance(one, Mapping)}
    return {"request": pending.request.model_dump(mode="json"), "trees": trees}


def arrays_of(progress: Progress) -> dict[str, NDArray[Any]]:
    """The arrays of a save, copied to the host's memory."""
    batches = {f"{BATCH}{index}": one.batch.around for index, one in enumerate(progress.pending)}
    return {**on_host(progress.state), **on_host(batches)}


def standing_of(about: Mapping[str, Any], generation: int, steps: list[int], used: Any) -> Standing:
    """Where a session stands that only its save knows."""
    return Standing(
        name=about["name"],
        sequence=about["sequence"],
        generation=generation,
        step=about["step"],
        accumulated=about["accumulated"],
        saved=steps,
        loaded=False,
        optimiser=about["optimiser"],
        models=about["models"],
        bytes=about["bytes"],
        last_used=used,
    )
