"""What a request and an answer consist of: the one definition, used by client and server."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from nablad.arrays import Received, decode_array, is_array_form
from nablad.place import Place

NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"

ARRAY_SCHEMA: dict[str, Any] = {
    "description": "A number, nested lists of numbers, {dtype, shape, data}, or {handle}.",
    "anyOf": [
        {"type": "number"},
        {"type": "array", "items": {}},
        {
            "type": "object",
            "required": ["dtype", "data"],
            "properties": {
                "dtype": {"type": "string", "examples": ["float32", "float64"]},
                "shape": {"type": "array", "items": {"type": "integer"}},
                "data": {"description": "base64 of the little-endian buffer, or nested lists"},
            },
        },
        {
            "type": "object",
            "required": ["handle"],
            "properties": {"handle": {"type": "string", "description": "of `PUT /v1/values`"}},
        },
    ],
}

ARTIFACT_SCHEMA: dict[str, Any] = {
    "description": "A byte string in msgpack, base64 in JSON.",
    "anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}],
}


Array: TypeAlias = Annotated[Any, WithJsonSchema(ARRAY_SCHEMA)]
"""An array in its travelling form; `decode_inputs` makes NumPy of it, so that an error can name the entry."""

Nesting: TypeAlias = Literal["auto", "default", "reverse_over_reverse", "forward_over_reverse"]
TermGradients: TypeAlias = Literal["none", "norms", "full"]
Mode: TypeAlias = Literal["eval", "train"]
ModelSource: TypeAlias = Literal["layers", "python", "stablehlo"]
"""Where a model comes from: layers in JSON, a Python file of the operator's, a StableHLO artifact."""


class Message(BaseModel):
    """A part of a request: unknown members are refused, a misspelt one must not pass in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Binding(Message):
    """A hosted model under a name of the program, with the resident parameters or others."""

    name: str = Field(description="Name of the hosted model.")
    mode: Mode = Field("eval", description='"train" uses batch statistics and returns the new state.')
    params: dict[str, Array] | None = Field(
        None, description="Parameters for this call; resident ones by default."
    )
    state: dict[str, Array] | None = Field(
        None, description="State for this call; the resident one by default."
    )
    version: str | None = Field(
        None, description="Version of the resident parameters to use; by default the current one."
    )


class Question(Message):
    """What every request with a program has."""

    models: dict[str, Binding | str] = Field(
        default_factory=dict,
        description='Hosted models by the names the program uses; a bare string is {"name": string}.',
        examples=[{"model": "net"}],
    )
    inputs: dict[str, Array] = Field(
        default_factory=dict,
        description="Arrays, numbers or parameter-shaped trees by the names the program uses.",
    )
    nesting: Nesting = Field("auto", description="How inner gradients are differentiated.")
    strategies: dict[str, str] = Field(
        default_factory=dict,
        description="Strategies pinned by operator; `POST /v1/plan` lists what there is.",
        examples=[{"laplacian": "forward_over_reverse"}],
    )
    examples_at_once: int | None = Field(
        None, gt=0, description="Compute so many examples at a time; by default the server chooses."
    )
    memory_limit: int | None = Field(
        None, gt=0, description="Bytes that the computation may take, by estimate; fewer examples at once."
    )
    tune: bool = Field(
        True, description="Whether this call may lead to tuning of its program; what is learned is used."
    )
    buckets: list[Annotated[int, Field(gt=0, lt=2**31)]] = Field(
        default_factory=list,
        max_length=64,
        description="Numbers of examples to compile for; fewer are filled up to the next one, where exact.",
        examples=[[32, 64, 128]],
    )
    batch: bool = Field(
        True, description="Whether the call may be computed together with others that wait for the same."
    )
    seed: int = Field(0, description="Seed of the program's random operators.")
    deadline_ms: float | None = Field(
        None, gt=0, description="Give up with 504 after this many milliseconds."
    )


class GradientRequest(Question):
    """`POST /v1/gradient`: the loss, its terms and its gradients."""

    loss: str = Field(description="The program; its last expression is the loss.")
    wrt: list[str] = Field(
        default_factory=lambda: ["params"],
        description='What to differentiate: "params", "u.params", "u.params[layer_1.weight]", or inputs.',
        examples=[["params", "x"]],
    )
    terms: list[str] | dict[str, float] = Field(
        default_factory=list,
        description="Named scalars to return, or their weights when the loss is the weighted sum.",
    )
    outputs: list[str] = Field(default_factory=list, description="Named values to return.")
    term_gradients: TermGradients = Field(
        "none", description='Of each term: "norms" of its gradients, or the "full" gradients too.'
    )


class EvaluateRequest(Question):
    """`POST /v1/evaluate`: named values of a program, without an outer gradient."""

    program: str = Field(description="The program.")
    outputs: list[str] | None = Field(
        None, description='Named values to return; by default the last expression, as "result".'
    )


class Warming(Message):
    """What `POST /v1/warm` takes beside the members of a gradient or an evaluation."""

    batch_sizes: list[Annotated[int, Field(gt=1, le=4096)]] = Field(
        default_factory=list,
        max_length=16,
        description="Batches to compile too, for so many calls; rounded up to powers of two.",
    )


class WarmRequest(GradientRequest, Warming):
    """`POST /v1/warm`: a gradient, or with `program` for `loss` an evaluation; compiled, and not run.

    Arrays may be `{dtype, shape}` without `data`.
    """


class CheckRequest(GradientRequest):
    """`POST /v1/check`: the gradients against central differences in float64."""


class ShortcutRequest(Message):
    """`POST /v1/models/{name}/jvp` and its kin: one operator on one model."""

    x: Array = Field(description="The model's input.")
    v: Array | None = Field(None, description="A tangent (jvp, hvp) or probes (hutchinson).")
    u: Array | None = Field(None, description="A cotangent (vjp).")
    wrt: Literal["x", "params"] = Field("x", description="The variable of the derivative.")
    batched: bool = Field(False, description="One Jacobian an example.")
    probes: int = Field(16, ge=2, le=65536, description="Probes that hutchinson draws where none are given.")
    mode: Mode = "eval"
    params: dict[str, Array] | None = None
    state: dict[str, Array] | None = None
    version: str | None = None
    nesting: Nesting = "auto"
    seed: int = Field(0, description="Seed of the probes.")
    deadline_ms: float | None = Field(None, gt=0)


class ModelRequest(Message):
    """`PUT /v1/models/{name}`: host an architecture, or a StableHLO artifact."""

    architecture: dict[str, Any] | None = Field(
        None, examples=[{"layers": [{"dense": [2, 4], "activation": "tanh"}, {"dense": [4, 2]}]}]
    )
    stablehlo: Annotated[bytes | str | None, WithJsonSchema(ARTIFACT_SCHEMA)] = Field(
        None, description="In place of an architecture: what `jax.export` serialised."
    )
    params: dict[str, Array] | None = Field(
        None, description="Start parameters; drawn from seed by default, which an artifact cannot."
    )
    state: dict[str, Array] | None = None
    seed: int = Field(0, description="Seed of the drawn parameters.")


class ParamsRequest(Message):
    """`PUT /v1/models/{name}/params`: replace resident parameters, and state where given."""

    params: dict[str, Array]
    state: dict[str, Array] | None = None


class ValueRequest(Message):
    """`PUT /v1/values`: an array or a flat tree of arrays, to be named by its handle."""

    value: Array = Field(description="An array with its dtype, or an object of such arrays.")
    pinned: bool | None = Field(
        None, description="Whether it stays whatever else comes; null leaves that as it is, false at first."
    )


class PinRequest(Message):
    """`PATCH /v1/values/{handle}`."""

    pinned: bool


class ParameterInfo(BaseModel):
    """Shape and dtype of one parameter."""

    shape: list[int]
    dtype: str


class ModelInfo(BaseModel):
    """A hosted model, described."""

    name: str
    source: ModelSource
    architecture: dict[str, Any] | None = Field(description="Layers in normal form; null for other sources.")
    inputs: dict[str, list[int | None] | None] = Field(
        description="Shape of one example by input, null for an open size or an unknown shape."
    )
    parameters: dict[str, ParameterInfo]
    state: dict[str, ParameterInfo]
    parameter_count: int
    derivative_order: int | None = Field(description="Most derivatives that can be taken; null for any.")
    version: str
    loaded: bool = Field(description="False after an unload: the repository has it, memory does not.")


class ValueInfo(BaseModel):
    """A value that is resident, described: an `array`, or a `tree` of them."""

    handle: str
    bytes: int
    pinned: bool
    last_used: datetime
    array: ParameterInfo | None
    tree: dict[str, ParameterInfo] | None


class FailedModel(BaseModel):
    """What the server was given and could not load."""

    name: str | None = Field(description="The model's name; null where a whole file failed.")
    place: str = Field(description="Its folder in the repository, its Python file or its package.")
    reason: str


class OperatorInfo(BaseModel):
    """A row of the operator table."""

    name: str
    signature: str
    doc: str
    family: str
    aliases: list[str]


class WarmProgram(BaseModel):
    """One compiled form of a program."""

    calls: int = Field(description="Calls that it computes together.")
    compiled: bool = Field(description="Whether this request compiled it; else it was there already.")
    milliseconds: float = Field(description="How long that took, the wait for other compilations included.")
    reason: str | None = Field(None, description="Why there is no such form; null where there is.")


class Timing(BaseModel):
    """Where the time of a call went, in milliseconds."""

    decode_ms: float = 0.0
    queue_ms: float = 0.0
    compile_ms: float = 0.0
    device_ms: float = 0.0
    encode_ms: float = 0.0
    compiled: bool = Field(False, description="Whether this call compiled its program.")
    together: int = Field(1, description="Calls that were computed in one go, this one among them.")


class NonFinite(BaseModel):
    """Where a result stopped being finite."""

    what: list[str] = Field(description='Entries of the answer: "value", "gradients.x", "outputs.u".')
    message: str = Field(description="One sentence: the step at fault, and what to write instead.")
    where: Place | None = Field(None, description="The step at fault, in the program's text.")
    derivative: str | None = Field(None, description="The derivative in which it first appeared.")
    terms: list[str] = Field([], description="The terms that rest on that step.")

    def __str__(self) -> str:
        line = f"line {self.where.line}: " if self.where else ""
        inside = f" in {self.derivative}" if self.derivative else ""
        of = f" (terms {', '.join(self.terms)})" if self.terms else ""
        return f"{line}{self.message}{inside}{of}"


def decode_inputs(given: dict[str, Any], what: str) -> dict[str, Received | dict[str, Received]]:
    """Arrays and trees from their travelling forms, each error naming its entry."""
    decoded: dict[str, Received | dict[str, Received]] = {}
    for name, value in given.items():
        if is_array_form(value):
            decoded[name] = decode_array(value, f"{what}{name}")
        else:
            decoded[name] = decode_arrays(value, f"{what}{name}.")
    return decoded


def decode_arrays(given: dict[str, Any], what: str) -> dict[str, Received]:
    """A flat mapping of arrays from its travelling form."""
    return {name: decode_array(value, f"{what}{name}") for name, value in given.items()}
