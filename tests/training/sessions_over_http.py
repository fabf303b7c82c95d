"""Sessions spoken to over HTTP as a client would, one number after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgpack
import numpy as np

from nablad.arrays import encode_array

MSGPACK = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}


def packed(value: Any) -> Any:
    """A structure with its arrays in their travelling form."""
    if isinstance(value, dict):
        return {name: packed(one) for name, one in value.items()}
    return encode_array(value, "bytes") if isinstance(value, np.ndarray) else value


def unpacked(value: Any) -> Any:
    """The inverse, of an answer."""
    if isinstance(value, dict) and set(value) == {"dtype", "shape", "data"}:
        return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
    return {name: unpacked(one) for name, one in value.items()} if isinstance(value, dict) else value


def asked(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return unpacked(msgpack.unpackb(answer.content)) if answer.content else None


def problem(answer: httpx.Response) -> Any:
    assert answer.is_error, answer.text
    return answer.json()


@dataclass
class Spoken:
    """A session; its numbers count up by themselves unless a call brings its own."""

    http: httpx.Client
    name: str
    generation: int = 1
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    headers: dict[str, str] = field(default_factory=dict)

    def post(self, what: str, **members: Any) -> httpx.Response:
        if "sequence" not in members:
            members["sequence"] = next(self.numbers)
        body = msgpack.packb(packed({"generation": self.generation, **members}))
        path = f"/v1/sessions/{self.name}/{what}"
        return self.http.post(path, content=body, headers={**MSGPACK, **self.headers})

    def call(self, what: str, **members: Any) -> Any:
        return asked(self.post(what, **members))

    def get(self, what: str = "") -> Any:
        path = f"/v1/sessions/{self.name}" + (f"/{what}" if what else "")
        return asked(self.http.get(path, headers={**MSGPACK, **self.headers}))


def begun(http: httpx.Client, *, headers: dict[str, str] | None = None, **members: Any) -> Spoken:
    """A new session."""
    own = headers or {}
    body = msgpack.packb(packed(members))
    standing = asked(http.post("/v1/sessions", content=body, headers={**MSGPACK, **own}))
    return Spoken(http, standing["name"], headers=own)
