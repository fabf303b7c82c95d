"""A run as its save holds it, and where a run stands that goes on from a save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nablad.problems import Refusal
from nablad.training.messages import TrainRequest
from nablad_service.requests.validation import binding_of
from nablad_service.training.loop import LoopState
from nablad_service.training.stages import Choices, Stage
from nablad_service.training.state import Saved, on_device


@dataclass(frozen=True)
class Stand:
    """Where a run stands, beside its arrays and its step."""

    stage: int
    """The phase that the state belongs to, from 0."""
    weights: Mapping[str, float]
    """Of the terms."""
    value: float | None
    """Of the last step."""
    best: tuple[float, int] | None
    """The lowest value that was reported, and its step."""
    event: int
    """Number of the event that tells of the save."""
    seconds: float
    """That it took."""


def about_of(request: TrainRequest, stages: Sequence[Stage], step: int, stand: Stand) -> dict[str, Any]:
    """The document of a save; a session reads all but its member `loop`."""
    stage = stages[stand.stage]
    models = stage.query.signature.models
    choices = {one.dtype: {str(node): strategy for node, strategy in one.choices.items()} for one in stages}
    return {
        "kind": "run",
        "step": step,
        "optimiser": stage.optimiser.model_dump(),
        "models": {name: binding_of(bound).name for name, bound in request.models.items()},
        "digests": {one.name: one.digest for one in models},
        "modes": {one.name: one.mode for one in models},
        "trained": list(request.trained),
        "loop": {**asdict(stand), "choices": choices},
    }


def choices_of(about: Mapping[str, Any]) -> dict[str, Choices]:
    """The strategies that a save was made with, by float type."""
    kept = about.get("loop", {}).get("choices", {})
    return {
        dtype: {int(node): strategy for node, strategy in choices.items()} for dtype, choices in kept.items()
    }


def resumed(
    name: str, request: TrainRequest, stages: Sequence[Stage], saved: Saved, about: Mapping[str, Any]
) -> tuple[int, Stand, LoopState]:
    """The step of a save, where a run stands that goes on from it, and its state, on the device.

    Args:
        name: of the run.
        request: what is asked for now.
        stages: its phases.
        saved: the leaves of the save.
        about: its document.

    Raises:
        Refusal: `unfit_save` where it does not fit the stages, with what differs.
    """
    what = f"the save of '{name}' at step {about['step']}"
    if about.get("kind") != "run":
        raise Refusal("unfit_save", f"{what} is a session's; go on with it as a session")
    step, loop = int(about["step"]), about["loop"]
    stage = _stage(stages, step, loop["stage"], what)
    for model in stage.query.signature.models:
        if about["digests"].get(model.name) != model.digest:
            raise Refusal("unfit_save", f"{what} has another model for '{model.name}'; bind that one")
    maker = about["optimiser"]["name"]
    if maker != stage.optimiser.name:
        detail = f"{what} was made by {maker}, here phase {stage.number + 1} has {stage.optimiser.name}"
        raise Refusal("unfit_save", f"{detail}; the state of one is of no use to the other")
    state = on_device(saved, stage.like(), what)
    # Weights that nothing balances are the request's.
    balanced = request.balance is not None and set(loop["weights"]) == set(stage.query.weights)
    stand = Stand(
        stage=stage.number,
        weights=loop["weights"] if balanced else stage.query.weights,
        value=loop["value"],
        best=(loop["best"][0], loop["best"][1]) if loop["best"] else None,
        event=int(loop["event"]),
        seconds=loop["seconds"],
    )
    return step, stand, LoopState(state.params, state.models, state.optimiser)


def _stage(stages: Sequence[Stage], step: int, number: int, what: str) -> Stage:
    """The stage that a save belongs to."""
    for stage in stages:
        if stage.number == number and stage.end >= step:
            return stage
    detail = f"{what} was made in phase {number + 1}, which here ends before it, or is not there"
    raise Refusal("unfit_save", f"{detail}; send the phases that it was begun with, or longer ones")
