"""Training state on disk: one file a save, whole or not there, whatever ends the server.

Below the folder each tenant has one of its own, and in it each session or run. A save is a safetensors file:
the leaves of the state by path, and `about` it a JSON document in the file's header. It is written aside,
flushed and renamed, so that what was acknowledged is durable, and what was not is whole or missing. Its name
holds its place in the order of saves and its step: the last one is known without opening any.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nablad.problems import Refusal
from nablad_service.hosting import durable
from nablad_service.hosting.names import check_folder_name

FORMAT = "1"
LOCK = ".lock"
GENERATION = "generation"
CHOICES = "choices.json"
GONE = ".gone-"
COMMON = "common"
"""The folder of those who name no tenant."""
SAVE = re.compile(r"(?P<place>\d{10})-(?P<step>\d+)\.safetensors")
LARGEST_HEADER = 256 * 1024 * 1024


@dataclass(frozen=True)
class Save:
    """A file of the right name."""

    path: Path
    place: int
    """In the order of saves."""
    step: int


class Saves:
    """The saves of a server, in a folder that it holds alone. Any thread may use them.

    Args:
        folder: is made if need be.
        keep: saves of one session or run that stay; older ones go when a new one is durable.

    Raises:
        OSError: where another server holds the folder, or it cannot be used.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._held = durable.lock(self._folder / LOCK)
        self._changing: dict[Path, threading.Lock] = {}
        for entry in self._folder.glob(f"*/{GONE}*"):
            durable.discard(entry)

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._held)

    def names(self, tenant: str) -> list[str]:
        """What a tenant has saves of, sorted."""
        folder = self._of_tenant(tenant)
        if not folder.is_dir():
            return []
        return sorted(one.name for one in folder.iterdir() if one.name[0] != "." and self._in(one))

    def steps(self, tenant: str, name: str) -> list[int]:
        """The steps that can be read, in the order in which they were saved."""
        return [one.step for one in self._of(tenant, name)]

    def about(self, tenant: str, name: str) -> dict[str, Any]:
        """The document of the last save.

        Raises:
            Refusal: as `read` does.
        """
        last = self._find(tenant, name, None)
        with _reading(last, name), open(last.path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER:
                raise ValueError("its header is too long")
            return _about(json.loads(file.read(length)).get("__metadata__"))

    def written(self, tenant: str, name: str) -> datetime:
        """When the last save was written.

        Raises:
            Refusal: `no_save`.
        """
        return datetime.fromtimestamp(self._find(tenant, name, None).path.stat().st_mtime, UTC)

    def read(
        self, tenant: str, name: str, step: int | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The leaves by path and the document of a save, of the last one by default.

        Raises:
            Refusal: `no_save` where there is none of that step, with those that there are; `unfit_save`
                where the file is damaged.
        """
        found = self._find(tenant, name, step)
        with _reading(found, name):
            data = found.path.read_bytes()
            (length,) = struct.unpack("<Q", data[:8])
            about = _about(json.loads(data[8 : 8 + length]).get("__metadata__"))
            return dict(load(data)), about

    def write(
        self, tenant: str, name: str, step: int, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]
    ) -> None:
        """Save; on return it survives any crash, and an earlier save of the same step is gone.

        Raises:
            Refusal: `storage` where the disk is full or the like; what was saved before stays.
        """
        with self._change(tenant, name):
            folder = self._made(tenant, name)
            before = self._in(folder)
            place = before[-1].place + 1 if before else 1
            metadata = {"format": FORMAT, "about": json.dumps(about, allow_nan=False)}
            contiguous = {path: np.asarray(leaf, order="C") for path, leaf in arrays.items()}
            file = folder / f"{place:010d}-{step}.safetensors"
            durable.write_file(file, save(contiguous, metadata))
            durable.flush_folder(folder)
            self._collect(folder)

    def begin_generation(self, tenant: str, name: str, least: int) -> int:
        """A number that this session was never told before, at least `least`; remembered on return.

        Raises:
            Refusal: `storage` where it cannot be.
        """
        with self._change(tenant, name):
            folder = self._made(tenant, name)
            number = max(least, self.generation(tenant, name) + 1)
            durable.write_file(folder / GENERATION, str(number).encode())
            durable.flush_folder(folder)
        return number

    def generation(self, tenant: str, name: str) -> int:
        """The last number that `begin_generation` gave; 0 where it gave none."""
        try:
            return int((self._of_tenant(tenant) / name / GENERATION).read_text())
        except (OSError, ValueError):
            return 0

    def write_choices(self, tenant: str, name: str, choices: Mapping[str, Mapping[int, str]]) -> None:
        """Remember the planner's choices by program, those since the last save too; durable on return.

        Raises:
            Refusal: `storage` where it cannot be.
        """
        with self._change(tenant, name):
            folder = self._made(tenant, name)
            durable.write_file(folder / CHOICES, json.dumps(choices).encode())
            durable.flush_folder(folder)

    def choices(self, tenant: str, name: str) -> dict[str, dict[int, str]]:
        """The last that `write_choices` was given; none where it was given none."""
        try:
            kept = json.loads((self._of_tenant(tenant) / name / CHOICES).read_bytes())
        except (OSError, ValueError):
            return {}
        return {
            program: {int(node): strategy for node, strategy in own.items()} for program, own in kept.items()
        }

    def remove(self, tenant: str, name: str) -> None:
        """Remove all saves of a name; gone at once, though the files may take a moment longer.

        Raises:
            Refusal: `storage` where the folder cannot be moved.
        """
        folder = self._of_tenant(tenant) / name
        if folder.is_dir():
            aside = folder.with_name(f"{GONE}{os.urandom(8).hex()}")
            with self._change(tenant, name):
                durable.move_folder(folder, aside)
            durable.discard(aside)

    @contextmanager
    def _change(self, tenant: str, name: str) -> Iterator[None]:
        """A caller that is given up leaves its thread behind: the next change waits for that."""
        with self._changing.setdefault(self._of_tenant(tenant) / name, threading.Lock()), _writing(name):
            yield

    def _of_tenant(self, tenant: str) -> Path:
        # A tenant may be called whatever it likes.
        digest = hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()
        return self._folder / (f"tenant-{digest}" if tenant else COMMON)

    def _made(self, tenant: str, name: str) -> Path:
        folder = self._of_tenant(tenant) / name
        if not folder.is_dir():
            folder.parent.mkdir(exist_ok=True)
            check_folder_name(name, [one.name for one in folder.parent.iterdir()])
            folder.mkdir(exist_ok=True)
            durable.flush_folder(folder.parent)
            durable.flush_folder(self._folder)
        return folder

    def _of(self, tenant: str, name: str) -> list[Save]:
        return self._in(self._of_tenant(tenant) / name)

    def _in(self, folder: Path) -> list[Save]:
        """The saves in a folder in their order; of those of one step the last."""
        if not folder.is_dir():
            return []
        found = [
            Save(path, int(match["place"]), int(match["step"]))
            for path in folder.iterdir()
            if (match := SAVE.fullmatch(path.name))
        ]
        last = {one.step: one for one in sorted(found, key=lambda one: one.place)}
        return sorted(last.values(), key=lambda one: one.place)

    def _find(self, tenant: str, name: str, step: int | None) -> Save:
        saves = self._of(tenant, name)
        chosen = [one for one in saves if step in (None, one.step)]
        if not chosen:
            known = ", ".join(str(one.step) for one in saves)
            detail = f"'{name}' has no save" + ("" if step is None else f" of step {step}")
            raise Refusal("no_save", f"{detail}; there are those of steps {known}" if known else detail)
        return chosen[-1]

    def _collect(self, folder: Path) -> None:
        """Remove what is replaced or too old, and what a killed server left half written."""
        stay = {one.path for one in self._in(folder)[-self._keep :]}
        with suppress(OSError):  # they are in nobody's way
            for file in folder.iterdir():
                ours = SAVE.fullmatch(file.name) or file.name.startswith(durable.ASIDE)
                if ours and file not in stay:
                    file.unlink(missing_ok=True)


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        detail = f"'{name}' could not be saved: {reason}; it goes on in memory, and earlier saves are kept"
        raise Refusal("storage", detail) from error


@contextmanager
def _reading(found: Save, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        detail = f"the save of '{name}' at step {found.step} cannot be read ({type(error).__name__}: {error})"
        raise Refusal("unfit_save", f"{detail}; load an earlier one by its step") from error


def _about(metadata: Any) -> dict[str, Any]:
    if metadata["format"] != FORMAT:
        raise ValueError(f"its format is {metadata['format']}, this server reads {FORMAT}")
    about: dict[str, Any] = json.loads(metadata["about"])
    return about
