"""The folder that keeps models across restarts: one folder a model, one rename a change.

A model's files carry the digests of their contents in their names, and `model.json` names those that belong
together. A change writes new files beside the old ones, flushes them, and then renames one new `model.json`
into place: before that rename the folder holds the old model, after it the new one, and no reader can pair
the configuration of one with the parameters of the other. Old files go afterwards, leftovers of a crash at
the start.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nablad_service.hosting import durable
from nablad_service.hosting.config import CONFIG, Damaged, ModelConfig, read_config
from nablad_service.hosting.names import is_name

LOCK = ".lock"
# Beginnings of folders that are being made or removed; never a model's, since they are hidden.
NEW, GONE = ".new-", ".gone-"
# Files that the server itself named, and so may remove; a file put there by hand stays.
OURS = re.compile(r"(params|state)-[0-9a-f]{32}\.safetensors|artifact-[0-9a-f]{32}\.stablehlo")
LARGEST_CONFIG = 64 * 1024 * 1024
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Stored:
    """What a folder holds; its parameters are not checked against the model yet."""

    config: ModelConfig
    artifact: bytes | None
    params: Tensors | None
    state: Tensors | None


class Repository:
    """A folder of models, held by one server at a time. Its methods are called under the store's lock."""

    def __init__(self, folder: Path, held: int) -> None:
        self.folder = folder
        self._held = held

    @classmethod
    def open(cls, folder: Path) -> Repository:
        """Make the folder if need be, lock it, and clear what a killed server left half done.

        Raises:
            OSError: where another server holds the folder, or it cannot be used.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        repository = cls(folder, durable.lock(folder / LOCK))
        for entry in folder.iterdir():
            if entry.name.startswith((NEW, GONE)):
                durable.discard(entry)
        return repository

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._held)

    def names(self) -> list[str]:
        """Names of the folders that hold models, damaged ones included, sorted.

        A folder whose name no model can have counts where it has a configuration: somebody meant it.
        """
        return sorted(
            entry.name
            for entry in self.folder.iterdir()
            if entry.is_dir()
            and not entry.name.startswith(".")
            and (is_name(entry.name) or (entry / CONFIG).exists())
        )

    def has(self, name: str) -> bool:
        """Whether there is a folder of that name, damaged or not."""
        return (self.folder / name).is_dir()

    def read(self, name: str, *, max_artifact_bytes: int) -> Stored:
        """What the folder of a model holds.

        Raises:
            Damaged: where a file is missing, torn, too large or of another form, with its name.
        """
        folder = self.folder / name
        config = read_config(_bytes(folder / CONFIG, LARGEST_CONFIG))
        return Stored(
            config,
            None if config.artifact is None else _bytes(folder / config.artifact, max_artifact_bytes),
            None if config.params is None else _tensors(folder / config.params),
            None if config.state is None else _tensors(folder / config.state),
        )

    def collect(self, name: str, config: ModelConfig) -> None:
        """Remove files of earlier versions; call it when those that `config` names have been found whole."""
        keep = config.files()
        with suppress(OSError):  # they are in nobody's way
            for file in (self.folder / name).iterdir():
                ours = OURS.fullmatch(file.name) or file.name.startswith(durable.ASIDE)
                if ours and file.name not in keep:
                    file.unlink(missing_ok=True)

    def write(
        self, name: str, config: ModelConfig, params: Tensors, state: Tensors, artifact: bytes | None
    ) -> ModelConfig:
        """Make this the content of the model's folder; on return it survives any crash.

        `config` has its source and the version of the parameters, whose files are named here. Without
        `artifact` the one that it names stays.

        Raises:
            OSError: where the disk is full or the like; the folder holds what it held before.
        """
        assert config.version is not None
        contents: dict[str, bytes] = {}
        named: dict[str, str | None] = {"params": None, "state": None}
        for what, tensors in (("params", params), ("state", state)):
            if tensors:
                named[what] = file = f"{what}-{config.version}.safetensors"
                contents[file] = _serialised(tensors)
        folder = self.folder / name
        if artifact is not None:
            assert config.artifact is not None
            contents[config.artifact] = artifact
        elif config.artifact is not None and not (folder / config.artifact).exists():
            raise FileNotFoundError(errno.ENOENT, f"{config.artifact} is missing")
        config = config.model_copy(update=named)
        if folder.is_dir():
            self._change(folder, config, contents)
        else:
            self._create(folder, config, contents)
        return config

    def _change(self, folder: Path, config: ModelConfig, contents: Mapping[str, bytes]) -> None:
        for file, data in contents.items():
            durable.write_file(folder / file, data)
        # The configuration must not become durable before the names of the files that it speaks of.
        durable.flush_folder(folder)
        durable.write_file(folder / CONFIG, config.written())
        durable.flush_folder(folder)
        self.collect(folder.name, config)

    def _create(self, folder: Path, config: ModelConfig, contents: Mapping[str, bytes]) -> None:
        # Made aside as a whole: a folder without a configuration is then always damage, never a beginning.
        aside = self.folder / f"{NEW}{secrets.token_hex(8)}"
        aside.mkdir()
        try:
            for file, data in {**contents, CONFIG: config.written()}.items():
                durable.write_file(aside / file, data)
            durable.flush_folder(aside)
            durable.move_folder(aside, folder)
        except OSError:
            durable.discard(aside)
            raise

    def remove(self, name: str) -> None:
        """Remove a model's folder; gone at once, though its files may take a moment longer.

        Raises:
            OSError: where the folder cannot be moved.
        """
        folder = self.folder / name
        if folder.is_dir():
            aside = self.folder / f"{GONE}{secrets.token_hex(8)}"
            durable.move_folder(folder, aside)
            durable.discard(aside)


def _bytes(file: Path, most: int) -> bytes:
    try:
        size = file.stat().st_size
        if size > most:
            raise Damaged(f"{file.name} has {size} bytes, at most {most} are read")
        return file.read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{file.name} is missing") from None
    except OSError as error:
        raise Damaged(f"{file.name} cannot be read: {error.strerror or error}") from None


def _tensors(file: Path) -> dict[str, NDArray[Any]]:
    data = _bytes(file, 2**63)
    try:
        return dict(load(data))
    # The library looks dtypes up in a table, and says KeyError of one that NumPy lacks.
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Damaged(f"{file.name} is no whole safetensors file of {len(data)} bytes ({reason})") from None


def _serialised(tensors: Tensors) -> bytes:
    return save({name: np.asarray(leaf, order="C") for name, leaf in tensors.items()})
