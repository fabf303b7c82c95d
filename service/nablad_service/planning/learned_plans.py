"""What timing taught: the variants of a program, their costs and times, and which one runs.

Kept in memory, and in a folder where one is given, so that a restarted server begins with what it knew. A
record belongs to one program at given shapes on one device under one version of JAX and of nablad; anything
else is another record.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nablad_service.query import Signature

log = logging.getLogger("nablad")


@dataclass(frozen=True)
class Timed:
    """One variant of a program."""

    choices: tuple[tuple[int, str], ...]
    """(derivative, strategy) where they differ from the default's."""
    flops: float
    peak_bytes: int
    milliseconds: float | None
    """Median of its runs on the device; None where it was not worth timing."""


@dataclass(frozen=True)
class LearnedPlan:
    """All variants of a program that were looked at; `chosen` is the position of the one that runs."""

    key: str
    text: str
    device: str
    variants: tuple[Timed, ...]
    chosen: int

    @property
    def choices(self) -> dict[int, str]:
        """The strategies of the chosen variant."""
        return dict(self.variants[self.chosen].choices)

    def document(self) -> dict[str, Any]:
        """The record as it is stored."""
        return asdict(self)

    def listed(self) -> dict[str, Any]:
        """The record as it is listed: stored, with the chosen variant marked and a sentence why."""
        variants = [
            {**asdict(one), "chosen": index == self.chosen} for index, one in enumerate(self.variants)
        ]
        return {**self.document(), "variants": variants, "why": self.why()}

    def why(self) -> str:
        """Why the chosen variant runs."""
        timed = sum(one.milliseconds is not None for one in self.variants)
        if timed < 2:
            return "no other variant was worth timing"
        default, best = self.variants[0].milliseconds, self.variants[self.chosen].milliseconds
        if self.chosen and default and best:
            return f"{best:.3g} ms, the least of {timed} timed; the static rule's takes {default:.3g} ms"
        return f"of {timed} timed, none is clearly faster than the static rule's"

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> LearnedPlan:
        """A stored record.

        Raises:
            ValueError: where it is not one.
        """
        try:
            variants = tuple(
                Timed(
                    tuple((int(node), str(strategy)) for node, strategy in one["choices"]),
                    float(one["flops"]),
                    int(one["peak_bytes"]),
                    None if one["milliseconds"] is None else float(one["milliseconds"]),
                )
                for one in document["variants"]
            )
            chosen = int(document["chosen"])
            if not 0 <= chosen < len(variants):
                raise ValueError(f"chosen is {chosen} of {len(variants)} variants")
            return cls(str(document["key"]), str(document["text"]), str(document["device"]), variants, chosen)
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is not the record of a plan: {error!r}") from error


class LearnedPlans:
    """All records, by key; written to `folder` one file each, whole or not at all."""

    def __init__(self, folder: Path | None, platform: str) -> None:
        self._folder = folder
        self._platform = platform
        self._plans: dict[str, LearnedPlan] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.glob("*.json")):
                try:
                    plan = LearnedPlan.read(json.loads(file.read_bytes()))
                except (OSError, ValueError) as error:
                    log.warning("%s is left alone: %s", file, error)
                    continue
                self._plans[plan.key] = plan

    def key(self, signature: Signature) -> str:
        """The identity of a program on this device, under these versions."""
        return hashlib.blake2b(f"{self._platform}\n{signature!r}".encode(), digest_size=16).hexdigest()

    def get(self, signature: Signature) -> LearnedPlan | None:
        """What is known of a program."""
        return self._plans.get(self.key(signature))

    def all(self) -> list[LearnedPlan]:
        """Every record."""
        return list(self._plans.values())

    def put(self, plan: LearnedPlan) -> None:
        """Remember a record; a full or read-only disk costs the memory of it, not the service."""
        self._plans[plan.key] = plan
        if self._folder is None:
            return
        file = self._folder / f"{plan.key}.json"
        partly = file.with_suffix(".partly")
        try:
            partly.write_text(json.dumps(plan.document(), indent=1))
            os.replace(partly, file)
        except OSError as error:
            log.warning("%s could not be written: %s", file, error)
