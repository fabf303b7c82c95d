"""A session as its save holds it, and the session that comes from a save."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import jax
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from nablad.messages import Mode
from nablad.problems import Refusal
from nablad.training.messages import Optimiser, SessionGradient, Standing
from nablad_service.hosting import HostedModel, ModelStore
from nablad_service.language import Limits
from nablad_service.training.changes import Batch
from nablad_service.training.gradients import Around, gradient_of
from nablad_service.training.labels import parameter_label
from nablad_service.training.optimisers import Rule, StepValues, rule_of, values_of
from nablad_service.training.pieces import program_key
from nablad_service.training.session import Device, Pending, Progress, Session
from nablad_service.training.session_questions import Questions, Start, Trainee, stand_in
from nablad_service.training.state import Saved, TrainingState, first_state, on_device, on_host

BATCH = "batch"
"""Of the paths of what a batch took."""


def specs_of(start: Start, rule: Rule, values: StepValues) -> TrainingState:
    """The state that a session begins with, without its arrays; computes nothing."""
    return jax.eval_shape(
        lambda params, models, seed: first_state(params, models, rule, values, seed),
        dict(start.params),
        dict(start.state),
        jax.ShapeDtypeStruct((), np.uint32),
    )


class BatchAbout(BaseModel):
    """What is kept of a gradient's call beside its arrays."""

    request: dict[str, Any]
    trees: dict[str, list[str]]
    """Leaves of the inputs that are trees."""


class About(BaseModel):
    """The document of a save, as far as a session reads it; the one of a run's save has the same members."""

    kind: Literal["session", "run"] = "session"
    sequence: int = 0
    """Number of the last call that was done."""
    generation: int = 0
    step: int
    accumulated: int = 0
    optimiser: Optimiser
    models: dict[str, str]
    """Hosted models by the programs' names, as the two below."""
    digests: dict[str, str]
    modes: dict[str, Mode]
    trained: list[str]
    """Inputs."""
    choices: dict[str, dict[int, str]] = {}
    """Of the planner, by program."""
    batches: list[BatchAbout] = []
    bytes: int = 0

    @classmethod
    def read(cls, document: Mapping[str, Any], name: str) -> About:
        """The document of the save of `name`.

        Raises:
            Refusal: `unfit_save` where it is another one.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            detail = f"the save of '{name}' is none that a session reads: {where} is missing or wrong"
            raise Refusal("unfit_save", detail) from error


def about_of(session: Session, progress: Progress, sequence: int) -> dict[str, Any]:
    """The document of a save of what a session had done after the call of that number."""
    about = About(
        sequence=sequence,
        generation=session.generation,
        step=progress.step,
        accumulated=progress.accumulated,
        optimiser=session.optimiser,
        models={name: one.hosted for name, one in session.models.items()},
        modes={name: one.mode for name, one in session.models.items()},
        digests={name: one.model.digest for name, one in session.models.items()},
        trained=list(session.inputs),
        choices=session.choices,
        batches=[_batch_about(one) for one in progress.pending],
        bytes=session.bytes,
    )
    return about.model_dump(mode="json")


def _batch_about(pending: Pending) -> BatchAbout:
    inputs = pending.batch.around.inputs
    trees = {name: list(one) for name, one in inputs.items() if isinstance(one, Mapping)}
    return BatchAbout(request=pending.request.model_dump(mode="json"), trees=trees)


def arrays_of(progress: Progress) -> dict[str, NDArray[Any]]:
    """The arrays of a save, copied to the host's memory."""
    batches = {f"{BATCH}{index}": one.batch.around for index, one in enumerate(progress.pending)}
    assert progress.state is not None  # only what is in memory is saved
    return {**on_host(progress.state.whole()), **on_host(batches)}


def standing_of(name: str, about: About, generation: int, steps: list[int], used: datetime) -> Standing:
    """Where a session stands that only its save knows."""
    return Standing(
        name=name,
        sequence=about.sequence,
        generation=generation,
        step=about.step,
        accumulated=about.accumulated,
        saved=steps,
        loaded=False,
        optimiser=about.optimiser,
        models=about.models,
        bytes=about.bytes,
        last_used=used,
    )


async def restored(
    saved: Saved,
    about: About,
    *,
    tenant: str,
    name: str,
    hosted: ModelStore,
    device: Device,
    limits: Limits,
    patience: float,
) -> Session:
    """The session that a save holds, its state in memory; also one that goes on from a run.

    Raises:
        Refusal: `unfit_save` where a model is hosted no more, or another one under its name.
    """
    models = {model: _trainee(model, saved, about, hosted) for model in about.models}
    optimiser = about.optimiser
    start = _start(models, saved, about)
    rule = rule_of(optimiser, start.params)
    session = Session(
        tenant=tenant,
        name=name,
        optimiser=optimiser,
        rule=rule,
        models=models,
        inputs=start.inputs,
        questions=Questions(models, start.inputs, limits),
        specs=specs_of(start, rule, values_of(optimiser, rule, list(start.params))),
        device=device,
        progress=Progress(None),
        done=about.sequence,
        patience=patience,
    )
    session.progress = await progress_of(session, saved, about)
    session.saved_as = session.order.done
    return session


async def progress_of(session: Session, saved: Saved, about: About) -> Progress:
    """Where a save stands, for a session that it fits; the session takes over its choices of strategies.

    Raises:
        Refusal: `unfit_save` with what differs.
    """
    what = f"the save of '{session.name}' at step {about.step}"
    for model, trainee in session.models.items():
        if about.digests.get(model) != trainee.model.digest:
            detail = f"{what} does not fit: it was made with another model for '{model}'"
            raise Refusal("unfit_save", detail)
    if about.optimiser.name != session.optimiser.name:
        detail = f"it holds the state of {about.optimiser.name}, the session has {session.optimiser.name}"
        raise Refusal("unfit_save", f"{what} does not fit: {detail}")
    session.take_choices(about.choices)
    of_state = {path: leaf for path, leaf in saved.items() if not path.startswith(BATCH)}
    on = await session.device.scheduler.run(lambda: on_device(of_state, session.specs, what))
    pending = [await _pending(session, index, saved, one) for index, one in enumerate(about.batches)]
    return Progress(on.result, about.step, about.accumulated, tuple(pending))


def _trainee(model: str, saved: Saved, about: About, hosted: ModelStore) -> Trainee:
    name = about.models[model]
    try:
        found: HostedModel = hosted.get(name)
    except Refusal as refusal:
        detail = f"the save needs the model '{name}', and {refusal.detail}"
        raise Refusal("unfit_save", detail) from refusal
    if found.model.digest != about.digests[model]:
        detail = f"the save was made with another model than the one that is hosted as '{name}' now"
        raise Refusal("unfit_save", f"{detail}; host that one again")
    leaves = {leaf: saved.get(f"params/{parameter_label(model, leaf)}") for leaf in found.params}
    state = {leaf: saved.get(f"models/{model}/{leaf}") for leaf in found.state}
    missing = [leaf for leaf, one in {**leaves, **state}.items() if one is None]
    if missing:
        raise Refusal("unfit_save", f"the save has no '{missing[0]}' of the model '{name}'")
    return Trainee(name, found.model, about.modes[model], _stand_ins(leaves), _stand_ins(state))


def _stand_ins(leaves: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: stand_in(one.shape, one.dtype) for name, one in leaves.items()}


def _start(models: Mapping[str, Trainee], saved: Saved, about: About) -> Start:
    inputs = _stand_ins({name: saved[f"params/{name}"] for name in about.trained})
    params = {
        parameter_label(model, leaf): one
        for model, trainee in models.items()
        for leaf, one in trainee.resident_params.items()
    }
    state = {model: trainee.resident_state for model, trainee in models.items()}
    return Start(models, inputs, {**params, **inputs}, state)


async def _pending(session: Session, index: int, saved: Saved, about: BatchAbout) -> Pending:
    """A batch as it was before the save, its program traced again."""
    prefix = f"{BATCH}{index}/"
    own = {path.removeprefix(prefix): leaf for path, leaf in saved.items() if path.startswith(prefix)}
    trees = about.trees
    inputs: dict[str, Any] = {
        name: {leaf: own[f"inputs/{name}/{leaf}"] for leaf in leaves} for name, leaves in trees.items()
    }
    for path, leaf in own.items():
        section, _, rest = path.partition("/")
        if section == "inputs" and "/" not in rest:
            inputs[rest] = leaf
    request = SessionGradient.model_validate({**about.request, "inputs": inputs})
    query = session.questions.query(request, lambda handles: {})
    choices = session.choices_of(query)
    traced = await session.device.pieces.traced(query, choices)
    around = Around(
        inputs,
        {
            model: {leaf: own[f"state/{model}/{leaf}"] for leaf in leaves}
            for model, leaves in query.state.items()
        },
        own["seed"],
        {name: own[f"weights/{name}"] for name in query.weights},
    )
    program = program_key(query, choices, session.specs)
    batch = Batch(program, gradient_of(traced, query), around, np.float64(request.weight))
    return Pending(request.model_copy(update={"inputs": {}}), batch.kept())
