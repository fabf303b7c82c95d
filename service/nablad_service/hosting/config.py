"""`model.json`: what a folder of the repository says about its model."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from nablad.messages import ModelSource

CONFIG = "model.json"
# A file beside the configuration: never a path, never hidden, never the configuration itself.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,200}$")]
NEEDS: dict[ModelSource, str] = {"layers": "architecture", "stablehlo": "artifact", "python": "digest"}


class Damaged(Exception):
    """A folder that cannot be loaded; the message names the file and what is wrong with it."""


class ModelConfig(BaseModel):
    """Where a model comes from, and which of the files beside it are its parameters.

    The server writes every member that applies. By hand `source` and what it needs will do: without `params`
    parameters are drawn from `seed` in `dtype`, and without `version` any bytes are welcome.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    source: ModelSource
    architecture: dict[str, Any] | None = None
    artifact: FileName | None = Field(None, description="File with serialised StableHLO.")
    digest: str | None = Field(None, description="Identity of the Python model that the parameters are of.")
    version: str | None = Field(None, description="Digest of parameters and state.")
    params: FileName | None = Field(None, description="File with the parameters, safetensors.")
    state: FileName | None = Field(None, description="File with the state, safetensors.")
    seed: int = 0
    dtype: Literal["float16", "float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _complete(self) -> ModelConfig:
        needed = NEEDS[self.source]
        if getattr(self, needed) is None:
            raise ValueError(f'the source "{self.source}" needs the member "{needed}"')
        return self

    def files(self) -> set[str]:
        """The files beside the configuration that belong to it."""
        return {name for name in (self.artifact, self.params, self.state) if name is not None}

    def written(self) -> bytes:
        """The file's bytes, members that do not apply left out."""
        return json.dumps(self.model_dump(exclude_none=True), indent=2, allow_nan=False).encode() + b"\n"


def read_config(data: bytes) -> ModelConfig:
    """The configuration in a file's bytes.

    Raises:
        Damaged: where the bytes are no JSON, or not of this form.
    """
    try:
        structure = json.loads(data)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise Damaged(f"{CONFIG} is not valid JSON: {error.msg} at {at}") from None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{CONFIG} is not valid JSON: {error}") from None
    try:
        return ModelConfig.model_validate(structure)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise Damaged(f"{CONFIG}: {where + ': ' if where else ''}{fault['msg']}") from None
