"""Whatever happens on the way, a session's calls come to what they come to one at a time, bit for bit.

STORMS=300 for more of them.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest
from storms import ADAMW, FAILING, LBFGS, Storm, inside, planned

from nablad.problems import Refusal

STORMS = int(os.environ.get("STORMS", "6"))


async def weathered(storm: Storm, name: str, optimiser, calls: int, *, idle: bool) -> None:
    """One session in the storm and one in calm weather."""
    plan = planned(storm.chance, calls, loads=not idle)
    await storm.begin(name, optimiser)
    seen = {await storm.read(name)}
    session = storm.memory.sessions["", name]

    async def disturb() -> None:
        while True:
            await asyncio.sleep(storm.chance.choice([0, 0.001, 0.004]))
            with suppress(Refusal):
                if idle and storm.chance.random() < 0.5:
                    await storm.memory._unload(session)
                seen.add(await storm.read(name))

    with storm.blowing():
        disturbing = asyncio.create_task(disturb())
        told = await asyncio.wait_for(storm.through(name, plan), 60)
        disturbing.cancel()
        with suppress(asyncio.CancelledError):
            await disturbing
    # A call that the device did not end in time has changed nothing.
    calm = [FAILING if told[index] == "too_slow" else one for index, one in enumerate(plan)]
    await storm.begin(f"{name}-calm", optimiser)
    states = {await storm.read(f"{name}-calm")}
    expected = []
    for number, one in enumerate(calm, 1):
        expected.append(await storm.call(f"{name}-calm", number, one))
        states.add(await storm.read(f"{name}-calm"))
    assert [one for one in told if one != "too_slow"] == [
        one for one, had in zip(expected, told, strict=True) if had != "too_slow"
    ]
    assert await storm.whole(name) == await storm.whole(f"{name}-calm")
    assert seen <= states
    for one in (name, f"{name}-calm"):
        await storm.sessions.delete("", one)


@pytest.mark.parametrize(("optimiser", "storms"), [(ADAMW, STORMS), (LBFGS, STORMS // 3)])
def test_calls_in_a_storm_come_to_what_they_come_to_in_order(tmp_path: Path, optimiser, storms) -> None:
    async def all_of_them() -> None:
        async with inside(tmp_path, session_wait_seconds=0.1) as storm:
            for number in range(storms):
                storm.chance.seed(number)
                try:
                    await weathered(storm, f"run-{number}", optimiser, 16, idle=number % 2 == 0)
                except BaseException as error:
                    error.add_note(f"storm {number}, so far {dict(storm.happened)}")
                    raise
            assert storm.happened.total()

    asyncio.run(all_of_them())
