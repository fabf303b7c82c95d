"""Callers over sockets that leave, come again and crowd each other; a server that stops under them."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from local_server import local_server
from served import Served, served
from storms import ADAMW, GRADIENT, START, STEP, Planned, planned

MAY_COME_AGAIN = ("overloaded", "stuck", "stopping", "sequence")


class Caller:
    """Sends the calls of a session again until they are answered; `told` are the answers by number."""

    def __init__(self, http: httpx.AsyncClient, name: str, plan: list[Planned], seed: int = 0) -> None:
        self.http, self.name, self.plan, self.chance = http, name, plan, random.Random(seed)
        self.told: dict[int, Any] = {}
        self.generation = 1

    async def begin(self) -> None:
        body = {"name": self.name, "optimiser": ADAMW, **START}
        (await self.http.post("/v1/sessions", json=body)).raise_for_status()

    async def call(self, number: int, *, leaves: bool = False) -> None:
        """One call until it is answered."""
        one = self.plan[number - 1]
        body = {"sequence": number, "generation": self.generation, **one.members}
        while True:
            # Long enough to send it, too short to hear of it.
            patience = self.chance.choice([0.001, 0.003]) if leaves and self.chance.random() < 0.3 else 60.0
            try:
                path = f"/v1/sessions/{self.name}/{one.kind}"
                answer = (
                    await self.http.post(path, json=body, timeout=httpx.Timeout(60, read=patience))
                ).json()
            except httpx.ReadTimeout:
                continue
            if answer.get("code") not in MAY_COME_AGAIN:
                answer.pop("timing", None)
                self.told[number] = answer
                return
            await asyncio.sleep(0.001)

    async def all_calls(self) -> None:
        """Several at once, out of their order."""
        room = asyncio.Semaphore(5)

        async def one(number: int) -> None:
            async with room:
                await self.call(number, leaves=True)

        numbers = sorted(range(1, len(self.plan) + 1), key=lambda number: number + self.chance.random() * 3)
        await asyncio.gather(*[one(number) for number in numbers])

    async def in_order(self) -> None:
        for number in range(1, len(self.plan) + 1):
            await self.call(number)

    async def params(self) -> Any:
        while True:
            answer = (await self.http.get(f"/v1/sessions/{self.name}/params")).json()
            if answer.get("code") not in MAY_COME_AGAIN:
                return answer


def bare(told: dict[int, Any]) -> dict[int, Any]:
    """Answers but for what names the session, or says when."""
    rest = ("name", "last_used", "detail")
    return {
        number: {member: value for member, value in answer.items() if member not in rest}
        for number, answer in told.items()
    }


def test_a_crowd_of_impatient_callers_is_answered_as_callers_in_order(tmp_path: Path) -> None:
    options = ("--checkpoints", str(tmp_path), "--max-queue", "2", "--session-wait-seconds", "1")

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            plans = [planned(random.Random(seed), 30, loads=True) for seed in range(3)]
            crowd = [Caller(http, f"crowd-{n}", plan, n) for n, plan in enumerate(plans)]
            for one in crowd:
                await one.begin()
            await asyncio.gather(*[one.all_calls() for one in crowd])
            for number, one in enumerate(crowd):
                calm = Caller(http, f"calm-{number}", one.plan)
                await calm.begin()
                await calm.in_order()
                assert bare(one.told) == bare(calm.told)
                assert await one.params() == await calm.params()

    with local_server(*options) as url:
        asyncio.run(scenario())


def test_a_server_that_stops_under_calls_goes_on_behind_the_last_that_was_answered(tmp_path: Path) -> None:
    plan = [GRADIENT, STEP] * 300
    options = ("--port", "0", "--checkpoints", str(tmp_path))

    async def until_it_stops(server: Served) -> dict[int, Any]:
        async with httpx.AsyncClient(base_url=server.urls[0], timeout=60) as http:
            caller = Caller(http, "run", plan)
            await caller.begin()

            async def some(first: int) -> None:
                with suppress(httpx.TransportError):
                    for number in range(first, len(plan) + 1, 4):
                        await caller.call(number)
                        if number == 21:
                            server.process.terminate()

            await asyncio.gather(*[some(first) for first in range(1, 5)])
            return caller.told

    async def go_on(server: Served, told: dict[int, Any]) -> None:
        async with httpx.AsyncClient(base_url=server.urls[0], timeout=60) as http:
            standing = (await http.get("/v1/sessions/run")).json()
            done = standing["sequence"]
            assert max(told) <= done < len(plan)
            caller = Caller(http, "run", plan)
            caller.generation = standing["generation"]
            for number in range(done + 1, len(plan) + 1):
                await caller.call(number)
            calm = Caller(http, "calm", plan)
            await calm.begin()
            await calm.in_order()
            answered = told | caller.told
            assert answered == {number: calm.told[number] for number in answered}
            assert await caller.params() == await calm.params()

    with served(*options) as server:
        told = asyncio.run(until_it_stops(server))
        assert server.process.wait(30) == 0
    with served(*options) as server:
        asyncio.run(go_on(server, told))
