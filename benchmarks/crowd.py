"""Programs that many callers ask for, and the process that stands for the callers."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Times, worked
from processes import Process, Sent, Server

import nablad


@dataclass(frozen=True)
class Load:
    """A program that all callers ask for, and its model."""

    model: str
    words: str
    widths: tuple[int, ...]
    program: str
    wrt: str
    examples: int

    def ask(self, client: nablad.Client, seed: int = 0) -> Any:
        """One call, with inputs of its own."""
        rng = np.random.default_rng(seed)
        shapes = {"x": (self.examples, self.widths[0]), "y": (self.examples, self.widths[-1])}
        inputs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
        return client.gradient(self.program, inputs=inputs, model=self.model, wrt=[self.wrt])


@dataclass
class Measured:
    """The stretches of one number of callers of one server."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    callers: float = 0.0
    """Seconds of a core that the callers took, all together."""
    server: float = 0.0
    """And the server."""
    failed: int = 0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return float(np.median(self.rates))

    @property
    def times(self) -> Times:
        """Of all calls."""
        return Times.of(self.seconds)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        times = {"p50_ms": self.times.p50, "p99_ms": self.times.p99, "calls": self.times.count}
        return {"per_second": self.rate, **times, **self.microseconds, "failed": self.failed}

    @property
    def microseconds(self) -> dict[str, float]:
        """Of a core, for each call."""
        each = 1e6 / max(len(self.seconds), 1)
        return {"server_us": self.server * each, "caller_us": self.callers * each}


class Crowd:
    """The process that loads a server, one stretch at a time, and what it was told of health."""

    def __init__(self, process: Process, folder: Path, loads: Sequence[Load], most: int) -> None:
        self._process, self._folder = process, folder
        self.health: list[float] = []
        for load in loads:
            own = folder / load.model
            own.mkdir()
            for number in range(most):
                sent = Sent.by(lambda client, load=load, number=number: load.ask(client, number))
                (own / f"{number:03}").write_bytes(sent.head + sent.body)

    def stretch(self, server: Server, load: Load, callers: int, seconds: float) -> tuple[Any, dict[str, Any]]:
        """When each call was answered and what it took, (calls, 2); work of callers and server, failures."""
        out, requests = self._folder / "times.npz", self._folder / load.model
        asked = {"url": server.url, "requests": str(requests), "callers": callers, "seconds": seconds}
        before = worked(server.pid)
        said = json.loads(self._process.ask(json.dumps({**asked, "out": str(out)})))
        said["server"] = worked(server.pid) - before
        with np.load(out) as found:
            calls, health = found["calls"], found["health"]
        self.health.extend(health[:, 1])
        return calls, said


@contextmanager
def crowd(loads: Sequence[Load], most: int) -> Iterator[Crowd]:
    """A process for up to so many callers of each program."""
    program = str(Path(__file__).with_name("load.py"))
    with (
        tempfile.TemporaryDirectory(prefix="nablad-") as folder,
        Process([sys.executable, program]) as process,
    ):
        yield Crowd(process, Path(folder), loads, most)
