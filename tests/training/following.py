"""Runs of `/v1/train` read from their events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

ARCHITECTURE = {"layers": [{"dense": [2, 8], "activation": "tanh"}, {"dense": [8, 1]}]}
"""Of the model that the trainer hosts."""


@dataclass(frozen=True)
class Told:
    """One event."""

    number: int
    kind: str
    data: dict[str, Any]


@dataclass
class Followed:
    """All that a run told."""

    events: list[Told] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events if event.kind == kind]

    @property
    def last(self) -> Told:
        return self.events[-1]

    @property
    def name(self) -> str:
        return str(self.events[0].data["name"])

    def values(self) -> list[float]:
        return [report["value"] for report in self.of("report")]


def events_of(lines: Iterable[str]) -> Iterator[Told]:
    """Events as they come."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Told(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def trained(http: httpx.Client, **members: Any) -> Followed:
    """A run followed to its end."""
    with http.stream("POST", "/v1/train", json=members) as response:
        if response.status_code != 200:
            raise AssertionError(response.read().decode())
        assert response.headers["content-type"].startswith("text/event-stream")
        return Followed(list(events_of(response.iter_lines())))


def params_of(http: httpx.Client, name: str) -> dict[str, Any]:
    """`params`, `state` and `trained` of a run as arrays, exactly."""
    answer = http.get(f"/v1/train/{name}/params", headers={"Accept": "application/msgpack"})
    answer.raise_for_status()
    import msgpack

    return _arrays(msgpack.unpackb(answer.content))


def _arrays(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"dtype", "shape", "data"}:
        return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
    return {name: _arrays(one) for name, one in value.items()} if isinstance(value, dict) else value
