"""What requests and answers about training state consist of; used by client and server."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from nablad.messages import Array, Binding, Message, Nesting, NonFinite, Timing

Setting: TypeAlias = "float | int | bool | str | None"


class Schedule(Message):
    """A learning rate by step: one of optax's schedules, with its settings beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    schedule: str = Field(description="optax's name without `_schedule`.", examples=["cosine_decay"])


class Optimiser(Message):
    """One of optax's optimisers, with its settings beside the name: `{"name": "adam", "b1": 0.95}`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="optax's name.", examples=["adam", "adamw", "sgd", "lbfgs"])
    learning_rate: float | Schedule | None = Field(
        None, description="A number or a schedule by step; what optax has by default, where it has one."
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of all gradients together, frozen ones aside."
    )
    frozen: list[str] = Field(
        default_factory=list,
        description="What does not change, as `wrt` names it, with * for any letters of a leaf.",
        examples=[["model.params[layer_0.*]"]],
    )


class Trained(Message):
    """What is trained: parameters of models, and inputs beside them."""

    models: dict[str, Binding | str] = Field(
        default_factory=dict,
        description="Hosted models by the names the programs use; training starts at their parameters.",
        examples=[{"model": "net"}],
    )
    trained: dict[str, Array] = Field(
        default_factory=dict,
        description="Inputs of the programs that are trained like parameters, by name, with start values.",
        examples=[{"coefficient": 2.0}],
    )
    seed: int = Field(0, description="Seed of all that is drawn at random.")


class SessionRequest(Trained):
    """`POST /v1/sessions`: begin to train."""

    optimiser: Optimiser
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="The session's name; drawn by default. One that is kept under it is refused.",
    )


class Numbered(Message):
    """A call of a session: done in the order of the numbers, each number once."""

    sequence: int = Field(ge=1, description="1 for the first call of a session, then one more each.")
    generation: int = Field(
        1, ge=1, description="Of the session, as it was told; another one is refused with where it stands."
    )


class Computation(Message):
    """A loss and how to compute it."""

    loss: str = Field(description="The program; its last expression is the loss.")
    inputs: dict[str, Array] = Field(
        default_factory=dict, description="Arrays, numbers, trees or handles, beside what is trained."
    )
    terms: list[str] | dict[str, float] = Field(
        default_factory=list,
        description="Named scalars to return, or their weights when the loss is the weighted sum.",
    )
    nesting: Nesting = "auto"
    strategies: dict[str, str] = Field(default_factory=dict, description="Strategies pinned by operator.")
    examples_at_once: int | None = Field(None, gt=0)
    memory_limit: int | None = Field(None, gt=0)


class StepSettings(Message):
    """What holds for one step, in place of the optimiser's own settings."""

    learning_rate: float | None = Field(None, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    frozen: list[str] | None = None


class SessionGradient(Numbered, Computation):
    """`POST /v1/sessions/{name}/gradient`: compute, and add to what the next step takes the mean of."""

    outputs: list[str] = Field(default_factory=list, description="Named values to return.")
    term_gradients: Literal["none", "norms"] = Field(
        "none", description="Whether to return the norms of each term's gradients."
    )
    gradients: bool = Field(False, description="Whether to return the arrays of this call's gradients too.")
    weight: float = Field(1.0, gt=0, description="Of this call in the mean; examples in the batch, say.")
    seed: int | None = Field(None, description="Of random operators; by default the session draws one.")
    step: StepSettings | None = Field(
        None, description="Whether to update at once, as `step` does: one call in place of two."
    )


class SessionStep(Numbered, StepSettings):
    """`POST /v1/sessions/{name}/step`: update with the mean of the gradients since the last step."""


class SessionSave(Numbered):
    """`POST /v1/sessions/{name}/save`: keep all of it, durable when answered."""


class SessionLoad(Numbered):
    """`POST /v1/sessions/{name}/load`: go back to what was saved."""

    step: int | None = Field(None, ge=0, description="Which save, by its step; by default the last.")


class Standing(BaseModel):
    """Where a session stands; the answer of every question about one, and of save and load."""

    name: str
    sequence: int = Field(description="Number of the last call that was done.")
    generation: int = Field(description="1 at first, one more whenever it came from a save.")
    step: int
    accumulated: int = Field(description="Gradients since the last step.")
    saved: list[int] = Field(description="Steps that were saved and can be loaded, last one last.")
    loaded: bool = Field(description="Whether it is in memory; else the next call loads its last save.")
    optimiser: Optimiser
    models: dict[str, str] = Field(description="Hosted models by the names the programs use.")
    bytes: int = Field(description="Of parameters, optimiser state and gradients.")
    last_used: datetime


class Stepped(BaseModel):
    """What came of a step."""

    step: int = Field(description="Steps done, this one counted.")
    learning_rate: float | None
    gradient_norm: float = Field(description="Of the mean of the gradients, before clipping.")
    update_norm: float


class SessionGradientAnswer(BaseModel):
    """The answer of `gradient`; arrays among `outputs` and `gradients` only."""

    sequence: int
    value: float
    terms: dict[str, float]
    norms: dict[str, float] = Field(description="Norm of this call's gradient by what is trained.")
    term_norms: dict[str, dict[str, float]] = Field(default_factory=dict)
    accumulated: int = Field(description="Gradients since the last step.")
    stepped: Stepped | None = Field(None, description="Of the step, where the call asked for one.")
    non_finite: NonFinite | None = Field(
        None, description="Where NaN or infinity in value or gradients began, when there is any."
    )
    timing: Timing


class SessionStepAnswer(Stepped):
    """The answer of `step`."""

    sequence: int


# Loops -----------------------------------------------------------------------------------------------


class Box(Message):
    """Points drawn on the server: `n` of them between `low` and `high`, by coordinate."""

    distribution: Literal["uniform", "faces", "latin_hypercube", "sobol"]
    low: list[float]
    high: list[float]
    n: int = Field(gt=0)
    names: list[str] = Field(
        default_factory=list,
        description="Inputs that take a coordinate each, shaped (n,); by default one input takes (n, d).",
    )


class Batches(Message):
    """Some examples of an array for each step: `n` of `data`, drawn anew without replacement by epoch."""

    distribution: Literal["batches"] = "batches"
    data: dict[str, Array] = Field(description="Inputs of the program with all their examples.")
    n: int = Field(gt=0)


class Balance(Message):
    """Weights of terms from the norms of their gradients."""

    every: int = Field(100, gt=0, description="Steps between two looks at the norms.")
    decay: float = Field(0.9, ge=0, lt=1, description="How much of the old weight stays.")


class Phase(Message):
    """Part of a loop with one optimiser."""

    optimiser: Optimiser
    steps: int = Field(gt=0)
    dtype: Literal["float32", "float64"] | None = Field(
        None, description="From here on; by default as it was."
    )


class Stop(Message):
    """When a loop ends before its last step."""

    value_below: float | None = None
    no_better_for: int | None = Field(None, gt=0, description="Steps without a lower reported value.")


class TrainRequest(Trained, Computation):
    """`POST /v1/train`: a whole loop, reported as server-sent events."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    optimiser: Optimiser | None = Field(None, description="With `steps`, in place of one phase.")
    steps: int | None = Field(None, gt=0)
    phases: list[Phase] = Field(default_factory=list)
    samplers: dict[str, Annotated[Box | Batches, Field(discriminator="distribution")]] = Field(
        default_factory=dict, description="Inputs that are drawn on the server, by name."
    )
    resample_every: int | None = Field(None, gt=0, description="Steps; by default points are drawn once.")
    accumulate: int = Field(
        1, gt=0, description="Draws of the samplers for each step, which takes the mean of their gradients."
    )
    balance: Balance | None = Field(None, description="In place of fixed weights of `terms`.")
    stop: Stop | None = None
    report_every: int = Field(100, gt=0)
    checkpoint_every: int | None = Field(None, gt=0)
    keep_going: bool = Field(False, description="Whether it goes on when its caller leaves; else it stops.")
    resume: bool = Field(False, description="Whether to go on from the last save of `name`.")


class Report(BaseModel):
    """Event `report`: where a loop stands."""

    step: int
    value: float
    terms: dict[str, float]
    weights: dict[str, float]
    norms: dict[str, float] = Field(description="Norm of the gradient by what is trained.")
    learning_rate: float | None
    steps_per_second: float
    seconds: float


class Ended(BaseModel):
    """The last event: `done`, `stopped` (asked to, or its caller left) or `diverged`."""

    name: str
    step: int
    value: float | None
    reason: str
    checkpoint: int | None = Field(description="Step of the last save, to resume or to load.")
    seconds: float
    non_finite: NonFinite | None = Field(
        None, description="Of a loop that diverged: where NaN or infinity began."
    )


class RunStanding(BaseModel):
    """Where a run of `POST /v1/train` stands."""

    name: str
    status: Literal["running", "done", "stopped", "diverged", "failed", "saved"] = Field(
        description="`saved` where it is not in memory and its last save is all that there is."
    )
    step: int
    steps: int | None = Field(description="Of all phases; null where only a save is there.")
    value: float | None = Field(description="Of the loss in the last step.")
    saved: list[int] = Field(description="Steps that were saved, last one last.")
    reason: str | None = Field(description="Why it ended.")
