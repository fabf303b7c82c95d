"""A training loop described in a file: TOML, or JSON with the same members."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nablad.client import Client
from nablad.command_line.program import read_input
from nablad.command_line.tensors import read_tensors
from nablad.messages import Message
from nablad.tracing.errors import nearest
from nablad.training.messages import TrainRequest


class Server(Message):
    """`[server]`: where it listens."""

    url: str


class Hosted(Message):
    """`[model.NAME]`: a model to host under that name before the loop begins."""

    architecture: dict[str, Any] | str | None = Field(None, description="Layers, or a .json file of them.")
    stablehlo: str | None = Field(None, description="In place of layers, a file that jax.export serialised.")
    params: str | None = Field(None, description="Start parameters, .npz or .safetensors.")
    state: str | None = Field(None, description="Start state, likewise.")
    seed: int = Field(0, description="Of parameters that are drawn.")


class Files(BaseModel):
    """What the file has beside the members of the request."""

    model_config = ConfigDict(extra="allow", frozen=True)

    server: Server | None = None
    model: dict[str, Hosted] = Field(default_factory=dict)
    out: str | None = Field(None, description="Where to save what was trained, .npz or .safetensors.")
    history: str | None = Field(None, description="Where to save the reports, .csv.")
    curve: str | None = Field(None, description="Where to draw them: .png, .svg or .pdf.")


@dataclass(frozen=True)
class TrainFile:
    """A description that was read and checked; file names in it are relative to its folder."""

    path: Path
    files: Files
    members: Mapping[str, Any]
    """Arguments of `Client.train`."""

    def place(self, name: str) -> Path:
        """Where a file of the description is."""
        return self.path.parent / name

    def host(self, client: Client, *, missing_only: bool) -> None:
        """Host the models of the description, or only those that the server lacks."""
        there = {model.name for model in client.models()} if missing_only else set()
        for name, model in self.files.model.items():
            if name in there:
                continue
            params, state = (
                read_tensors(str(self.place(file))) if file else None for file in (model.params, model.state)
            )
            artifact = self.place(model.stablehlo).read_bytes() if model.stablehlo else None
            client.create_model(
                name, self._architecture(model), params, state, model.seed, stablehlo=artifact
            )

    def _architecture(self, model: Hosted) -> dict[str, Any] | None:
        if not isinstance(model.architecture, str):
            return model.architecture
        return _parsed(self.place(model.architecture))


def read_train_file(path: str) -> TrainFile:
    """Read a description and check its members; arrays are read from their files.

    Raises:
        ValueError: where there is none, it cannot be read, or a member is wrong, with its name.
    """
    place = Path(path)
    given = _parsed(place)
    try:
        files = Files.model_validate(given)
        members = {name: value for name, value in given.items() if name not in Files.model_fields}
        TrainRequest.model_validate(members)
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from None
    for name, model in files.model.items():
        if (model.architecture is None) == (model.stablehlo is None):
            raise ValueError(f"{path}: model.{name} needs architecture, or stablehlo with a file")
    read = TrainFile(place, files, members)
    return TrainFile(place, files, {**members, **_values(read, members)})


def _values(file: TrainFile, members: Mapping[str, Any]) -> dict[str, Any]:
    """Members whose values may lie in files: the loss, and arrays."""
    found: dict[str, Any] = {"loss": _loss(file, members["loss"])}
    for part in ("inputs", "trained"):
        found[part] = _arrays(file, part, members.get(part, {}))
    found["samplers"] = {
        name: {**given, "data": _arrays(file, f"samplers.{name}.data", given["data"])}
        if "data" in given
        else given
        for name, given in members.get("samplers", {}).items()
    }
    # Without a word about names, programs call the models of the file by theirs.
    found["models"] = members.get("models") or {name: name for name in file.files.model}
    return found


def _loss(file: TrainFile, text: str) -> str:
    place = file.place(text) if "\n" not in text else None
    try:
        return place.read_text() if place is not None and place.is_file() else text
    except OSError:  # a long text is no file name
        return text


def _arrays(file: TrainFile, part: str, given: Mapping[str, Any]) -> dict[str, Any]:
    def read(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return read_input(str(file.place(value)))
        except ValueError as error:
            raise ValueError(f"{file.path}: {part}.{name}: {error}") from None

    return {name: read(name, value) for name, value in given.items()}


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file '{path}'")
    try:
        found = json.loads(path.read_text()) if path.suffix == ".json" else tomllib.loads(path.read_text())
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ValueError(f"'{path}' is not valid {kind}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' must hold an object, with loss, optimiser and steps")
    return found


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, by its member."""
    first = error.errors()[0]
    member = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = (*TrainRequest.model_fields, *Files.model_fields) if len(first["loc"]) == 1 else ()
        return f"there is no member '{member}'" + (f"; {nearest(member, known)}" if known else "")
    if first["type"] == "missing":
        return f"{member} is missing"
    return f"{member}: {first['msg'][0].lower()}{first['msg'][1:]}"
