"""What comes in the middle of a session's calls: an end of its idleness, of itself, of the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from storms import ADAMW, BOTH, GRADIENT, HOLDING, LBFGS, SAVE, STEP, Planned, Storm, inside

from nablad.problems import Refusal


async def told(storm: Storm, name: str, *plan: Planned, first: int = 1) -> list[Any]:
    return [await storm.call(name, number, one) for number, one in enumerate(plan, first)]


async def calm(storm: Storm, optimiser: dict[str, Any], *plan: Planned) -> dict[str, bytes]:
    """The state that calls come to one at a time."""
    await storm.begin("calm", optimiser)
    await told(storm, "calm", *plan)
    return await storm.whole("calm")


def held(function: Callable[..., Any]) -> tuple[Callable[..., Any], threading.Event, threading.Event]:
    """The function with events that tell when it has begun, and let it go on."""
    began, go = threading.Event(), threading.Event()

    def holding(*given: Any) -> Any:
        began.set()
        assert go.wait(30)
        return function(*given)

    return holding, began, go


async def comes(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


def test_a_call_that_comes_while_an_idle_session_is_saved_is_not_lost(tmp_path: Path, monkeypatch) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", ADAMW)
            await told(storm, "run", GRADIENT)
            saves = storm.memory.saves
            holding, began, go = held(saves.write)
            monkeypatch.setattr(saves, "write", holding)
            session = storm.memory.sessions["", "run"]
            unloading = asyncio.create_task(storm.memory._unload(session))
            await comes(began)
            await told(storm, "run", STEP, GRADIENT, first=2)
            go.set()
            await unloading
            about = saves.about("", "run")  # of the save, which holds what was done when it began
            assert (about["sequence"], about["step"], about["accumulated"]) == (1, 0, 1)
            assert session.loaded
            await storm.memory._unload(session)
            assert not session.loaded
            await told(storm, "run", STEP, first=4)
            assert await storm.whole("run") == await calm(storm, ADAMW, GRADIENT, STEP, GRADIENT, STEP)

    asyncio.run(scenario())


@pytest.mark.parametrize("code", ["overloaded", "too_slow"])
def test_a_gradient_whose_own_step_is_refused_is_not_added(tmp_path: Path, code: str) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", LBFGS)
            refusing = [code]

            async def step(*given: Any) -> Any:
                if refusing:
                    raise Refusal(refusing.pop(), "not now")
                return await storm.pieces.step(*given)

            storm.memory.device.pieces.step = step  # type: ignore[method-assign]
            assert await told(storm, "run", BOTH) == [code]
            assert storm.sessions.standing("", "run").accumulated == 0
            # A call that was refused has been done, but for one that may be sent again.
            await told(storm, "run", BOTH, first=1 if code == "overloaded" else 2)
            assert await storm.whole("run") == await calm(storm, LBFGS, BOTH)

    asyncio.run(scenario())


def test_a_server_that_stops_between_a_gradient_and_its_own_step_saves_neither(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", LBFGS)
            began = asyncio.Event()

            async def step(*given: Any) -> Any:
                began.set()
                await asyncio.Event().wait()

            storm.memory.device.pieces.step = step  # type: ignore[method-assign]
            calling = asyncio.create_task(storm.call("run", 1, BOTH))
            await began.wait()
        assert await calling == "stopping"
        async with inside(tmp_path) as storm:
            standing = storm.sessions.standing("", "run")
            assert (standing.sequence, standing.accumulated) == (0, 0)

    asyncio.run(scenario())


def test_calls_behind_one_that_overruns_are_sent_again_and_done_without_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path, run_seconds=1) as storm:
            await storm.begin("run", ADAMW)
            await told(storm, "run", GRADIENT)
            plan = [HOLDING, GRADIENT, STEP]
            calls = [storm.call("run", number, plan[number - 2]) for number in (2, 3)]
            assert await asyncio.gather(*calls) == ["too_slow", "stuck"]
            assert storm.sessions.standing("", "run").sequence == 2
            storm.go.set()
            while storm.scheduler.stuck_for():
                await asyncio.sleep(0.001)
            again = [storm.call("run", number, plan[number - 2]) for number in (4, 3, 2)]
            assert (await asyncio.gather(*again))[2] == "too_slow"
            assert await storm.whole("run") == await calm(storm, ADAMW, GRADIENT, GRADIENT, STEP)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("before", "kind", "failing"),
    [([], "accumulation", GRADIENT), ([GRADIENT], "step", STEP), ([GRADIENT], "gradient_step", BOTH)],
)
def test_a_step_behind_a_call_that_fails_takes_the_gradients_that_there_are(
    tmp_path: Path, before: list[Planned], kind: str, failing: Planned
) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", ADAMW)
            await told(storm, "run", *before)
            pieces = storm.memory.device.pieces
            made = getattr(pieces, kind)

            def breaks(*given: Any) -> Any:
                assert storm.go.wait(30)
                raise Refusal("out_of_memory", "the test")

            async def breaking(*given: Any, **named: Any) -> Any:
                setattr(pieces, kind, made)
                _, compiled = await made(*given, **named)
                return SimpleNamespace(run=breaks), compiled

            setattr(pieces, kind, breaking)
            number = len(before) + 1
            calls = [storm.call("run", number + late, one) for late, one in enumerate([failing, BOTH])]
            calling = asyncio.gather(*calls)
            session = storm.memory.sessions["", "run"]
            while session.order.begun < number:
                await asyncio.sleep(0.001)
            storm.go.set()
            assert (await calling)[0] == "out_of_memory"
            assert await storm.whole("run") == await calm(storm, ADAMW, *before, BOTH)

    asyncio.run(scenario())


def test_calls_of_a_session_that_is_deleted_are_told_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", ADAMW)
            plan = [HOLDING, GRADIENT, STEP, SAVE]
            calls = [asyncio.create_task(storm.call("run", n, one)) for n, one in enumerate(plan, 1)]
            await comes(storm.held)
            await storm.sessions.delete("", "run")
            storm.go.set()
            assert await asyncio.gather(*calls) == ["unknown_session"] * 4
            await storm.begin("run", ADAMW)
            await told(storm, "run", GRADIENT, STEP)
            assert await storm.whole("run") == await calm(storm, ADAMW, GRADIENT, STEP)

    asyncio.run(scenario())


def test_a_call_whose_session_is_deleted_while_its_program_is_compiled_is_told_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", ADAMW)
            began, go = asyncio.Event(), asyncio.Event()

            async def accumulation(*given: Any, **named: Any) -> Any:
                began.set()
                await go.wait()
                return await storm.pieces.accumulation(*given, **named)

            storm.memory.device.pieces.accumulation = accumulation  # type: ignore[method-assign]
            calling = asyncio.create_task(storm.call("run", 1, GRADIENT))
            await began.wait()
            await storm.sessions.delete("", "run")
            go.set()
            assert await calling == "unknown_session"

    asyncio.run(scenario())


def test_a_session_whose_saves_cannot_be_removed_goes_on(tmp_path: Path, monkeypatch) -> None:
    def refuse(*given: Any) -> None:
        raise Refusal("storage", "the disk says no")

    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", ADAMW)
            await told(storm, "run", GRADIENT)
            with monkeypatch.context() as patched:
                patched.setattr(storm.memory.saves, "remove", refuse)
                with pytest.raises(Refusal, match="the disk says no"):
                    await storm.sessions.delete("", "run")
            await told(storm, "run", STEP, SAVE, first=2)
            assert await storm.whole("run") == await calm(storm, ADAMW, GRADIENT, STEP)

    asyncio.run(scenario())


def test_a_session_that_is_deleted_while_it_comes_back_stays_deleted(tmp_path: Path, monkeypatch) -> None:
    async def scenario() -> None:
        async with inside(tmp_path) as storm:
            await storm.begin("run", ADAMW)
            await told(storm, "run", SAVE)
        async with inside(tmp_path) as storm:
            saves = storm.memory.saves
            holding, began, go = held(saves.begin_generation)
            monkeypatch.setattr(saves, "begin_generation", holding)
            coming = asyncio.create_task(storm.sessions.params("", "run"))
            await comes(began)
            deleting = asyncio.create_task(storm.sessions.delete("", "run"))
            await asyncio.sleep(0)
            go.set()
            await deleting
            with suppress(Refusal):
                await coming
            with pytest.raises(Refusal, match="unknown_session"):
                storm.sessions.standing("", "run")

    asyncio.run(scenario())


def test_sessions_that_begin_at_once_keep_to_the_limit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with inside(tmp_path, max_sessions=2) as storm:
            beginning = [storm.begin(f"run-{number}", ADAMW) for number in range(5)]
            outcomes = await asyncio.gather(*beginning, return_exceptions=True)
            codes = [one.code for one in outcomes if isinstance(one, Refusal)]
            assert codes == ["resident_limit"] * 3
            assert len(storm.memory.loaded()) == 2
            await storm.begin("run-5", ADAMW)  # an idle one makes room

    asyncio.run(scenario())
