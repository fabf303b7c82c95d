"""`POST /v1/warm`: programs compiled before somebody waits for them. It reads shapes, and runs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from nablad.arrays import stand_in
from nablad.messages import WarmProgram
from nablad_service.engine.buckets import InBucket
from nablad_service.planning.programs import Programs
from nablad_service.query import Query
from nablad_service.running.batches import Batches


def with_stand_ins(structure: Mapping[str, Any]) -> dict[str, Any]:
    """A decoded body whose arrays without data are there, without taking room."""
    found = dict(structure)
    if isinstance(found.get("inputs"), Mapping):
        found["inputs"] = {name: _filled(value, name) for name, value in found["inputs"].items()}
    if isinstance(found.get("models"), Mapping):
        found["models"] = {name: _bound(value) for name, value in found["models"].items()}
    return found


def _bound(binding: Any) -> Any:
    if not isinstance(binding, Mapping):
        return binding
    return {
        member: _filled(value, f"{binding.get('name')}.{member}") if member in ("params", "state") else value
        for member, value in binding.items()
    }


def _filled(value: Any, name: str) -> Any:
    found = stand_in(value, name)
    if isinstance(found, Mapping) and "data" not in found:
        return {leaf: stand_in(one, f"{name}.{leaf}") for leaf, one in found.items()}
    return found


async def warmed(query: Query, sizes: list[int], programs: Programs, batches: Batches) -> list[WarmProgram]:
    """Compile the program of a query, and batches of these sizes."""
    started = time.perf_counter()
    executable, compiled = await programs.executable(query)
    found = [WarmProgram(calls=1, compiled=compiled, milliseconds=_since(started))]
    if isinstance(executable, InBucket) or batches.key(query, executable) is None:
        reason = "calls in buckets, or with large arrays of their own, are computed one by one"
        return [
            *found,
            *(WarmProgram(calls=size, compiled=False, milliseconds=0.0, reason=reason) for size in sizes),
        ]
    company = batches.company(query, executable)
    for size in sizes:
        started = time.perf_counter()
        size, compiled, settled = company.prepare(query, size)
        why: str | None = await asyncio.wrap_future(settled)
        found.append(
            WarmProgram(
                calls=size, compiled=compiled and why is None, milliseconds=_since(started), reason=why
            )
        )
    return found


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
