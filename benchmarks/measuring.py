"""Times in turn, percentiles, memory and the machine: what the benchmarks of the wire measure with."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

Block = Callable[[int], Sequence[float]]
"""Makes so many calls and gives the seconds of each."""

BUSY = 0.25
"""Cores at work for something else beyond which times are not to be trusted."""


class Disagreement(Exception):
    """Two ways to compute one thing gave different things."""


@dataclass(frozen=True)
class Times:
    """What a number of calls took, in milliseconds."""

    p50: float
    p99: float
    mean: float
    highest: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Summed up."""
        p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
        mean, highest = float(np.mean(seconds)) * 1e3, float(np.max(seconds)) * 1e3
        return cls(float(p50), float(p99), mean, highest, len(seconds))


def each(call: Callable[[], object]) -> Block:
    """A block of calls, one after the other."""

    def block(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return seconds

    return block


def each_awaited(runner: asyncio.Runner, call: Callable[[], Awaitable[object]]) -> Block:
    """The same for coroutines, on the loop of `runner`; entering and leaving the loop is not counted."""

    async def calls(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await call()
            seconds.append(time.perf_counter() - started)
        return seconds

    return lambda count: runner.run(calls(count))


def in_turn(
    blocks: Mapping[str, Block], rounds: int, count: int | Mapping[str, int], *, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call: each round runs one block of each, and begins with another of them.

    What the machine does meanwhile falls on all of them alike. The first `warm` rounds are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for number in range(warm + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            took = blocks[name](count if isinstance(count, int) else count[name])
            if number >= warm:
                seconds[name].extend(took)
    return seconds


def agree(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Compare gradients, by the largest entry.

    Raises:
        Disagreement: where they differ by more.
    """
    found, expected = np.asarray(found).ravel(), np.asarray(expected).ravel()
    off = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
    if not off <= tolerance:
        raise Disagreement(f"{what}: the gradient is off by {off:.3g} of its largest entry")


# -- memory of another process, on Linux


def resident(pid: int) -> int:
    """Bytes of memory that a process has now, those it shares included."""
    return _status(pid, "VmRSS")


def highest(pid: int) -> int:
    """The most that it has had, since its start or since `forget_highest`."""
    return _status(pid, "VmHWM")


def forget_highest(pid: int) -> None:
    """Begin to look for the highest anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, member: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{member}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{member} of process {pid}")


# -- the machine


def platform() -> str:
    """The kind of device that programs run on: cpu, gpu."""
    return str(jax.devices()[0].platform)


def machine() -> str:
    """What the times depend on."""
    device = jax.devices()[0].device_kind
    return f"{os.cpu_count()} cores, {device}, {os.uname().machine}, JAX {jax.__version__}"


@dataclass(frozen=True)
class Clock:
    """A moment, and how many seconds the cores have worked by then: for all, and for the benchmark.

    The benchmark is this process with all that it started: its group of processes.
    """

    seconds: float
    all: float | None
    own: float

    @classmethod
    def now(cls) -> Clock:
        """The present; `all` only where the system tells (Linux)."""
        own, worked, told = sum(os.times()[:4]), None, Path("/proc/stat")
        if told.exists():
            user, nice, system, _, _, *rest = map(int, told.read_text().split("\n")[0].split()[1:9])
            worked = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
            own += sum(_worked_of_ours(one) for one in Path("/proc").iterdir() if one.name.isdigit())
        return cls(time.monotonic(), worked, own)

    def others_since(self, before: Clock) -> str:
        """How many cores something else kept busy since then, in words."""
        if self.all is None or before.all is None:
            return "what else the machine did is not known"
        others = (self.all - before.all - self.own + before.own) / (self.seconds - before.seconds)
        busy = "; a BUSY machine, the times are rough" if others > BUSY else ""
        return f"other processes kept {max(others, 0.0):.2f} cores busy meanwhile{busy}"


def worked(pid: int) -> float:
    """Seconds that a process has worked by now, with its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _worked_of_ours(process: Path) -> float:
    """The same for another process of this group, nothing for others."""
    pid = int(process.name)
    try:
        return worked(pid) if pid != os.getpid() and os.getpgid(pid) == os.getpgrp() else 0.0
    except OSError:  # it has ended
        return 0.0
