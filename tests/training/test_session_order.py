"""The order of a session's calls, on an event loop of the test's own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nablad.problems import Refusal
from nablad_service.training.order import AHEAD, Order


def order(done: int = 0, patience: float = 60.0) -> Order:
    return Order(done, patience=patience, about=lambda: {"sequence": done})


def telling(log: list[Any], number: int) -> Callable[[], Awaitable[int]]:
    async def work() -> int:
        log.append(number)
        return number

    return work


def refused(code: str, says: str) -> Any:
    return pytest.raises(Refusal, match=rf"{code}: .*{re.escape(says)}")


def test_calls_are_done_in_the_order_of_their_numbers() -> None:
    async def scenario() -> list[int]:
        calls, log = order(), list[int]()
        given = [calls.call(number, b"", telling(log, number)) for number in (3, 1, 4, 2)]
        assert await asyncio.gather(*given) == [3, 1, 4, 2]
        return log

    assert asyncio.run(scenario()) == [1, 2, 3, 4]


def test_a_call_that_comes_again_is_answered_again_and_not_done_again() -> None:
    async def scenario() -> None:
        calls, log, go = order(), list[int](), asyncio.Event()

        async def slow() -> str:
            log.append(1)
            await go.wait()
            return "done"

        first = asyncio.create_task(calls.call(1, b"same", slow))
        again = asyncio.create_task(calls.call(1, b"same", slow))
        await asyncio.sleep(0)
        go.set()
        assert await first == await again == await calls.call(1, b"same", slow) == "done"
        assert log == [1]

    asyncio.run(scenario())


def test_a_call_is_done_though_its_caller_leaves() -> None:
    async def scenario() -> None:
        calls, log = order(), list[int]()
        second = asyncio.create_task(calls.call(2, b"", telling(log, 2)))
        await asyncio.sleep(0)
        second.cancel()
        await calls.call(1, b"", telling(log, 1))
        assert await calls.call(2, b"", telling(log, 2)) == 2
        assert log == [1, 2]

    asyncio.run(scenario())


def test_a_refused_call_has_been_done_too() -> None:
    async def scenario() -> None:
        calls, log = order(), list[int]()

        async def refusing() -> None:
            log.append(1)
            raise Refusal("no_gradient", "there is none")

        for _ in range(2):
            with refused("no_gradient", "there is none"):
                await calls.call(1, b"", refusing)
        assert await calls.call(2, b"", telling(log, 2)) == 2
        assert log == [1, 2]

    asyncio.run(scenario())


@pytest.mark.parametrize("code", ["overloaded", "stopping", "unknown_handle"])
def test_a_call_that_may_be_sent_again_takes_no_number(code: str) -> None:
    async def scenario() -> None:
        calls, log = order(), list[int]()

        async def busy() -> None:
            raise Refusal(code, "not now")

        behind = asyncio.create_task(calls.call(2, b"", telling(log, 2)))
        with refused(code, "not now"):
            await calls.call(1, b"", busy)
        assert await calls.call(1, b"", telling(log, 1)) == 1
        assert await behind == 2
        assert log == [1, 2]

    asyncio.run(scenario())


def test_a_call_waits_only_so_long_for_one_that_does_not_come() -> None:
    async def scenario() -> None:
        calls, log = order(done=4, patience=0.01), list[int]()
        with refused("sequence", "call 6 waited 0.01 s for call 5, which did not come; send that first"):
            await calls.call(6, b"", telling(log, 6))
        assert await calls.call(5, b"", telling(log, 5)) == 5
        assert await calls.call(6, b"", telling(log, 6)) == 6

    asyncio.run(scenario())


def test_a_call_waits_as_long_as_it_takes_for_one_that_runs() -> None:
    async def scenario() -> None:
        calls, log, go = order(patience=0.001), list[int](), asyncio.Event()

        async def slow() -> None:
            await go.wait()

        first = asyncio.create_task(calls.call(1, b"", slow))
        second = asyncio.create_task(calls.call(2, b"", telling(log, 2)))
        done, _ = await asyncio.wait([first, second], timeout=0.05)
        assert not done
        go.set()
        assert await second == 2

    asyncio.run(scenario())


def test_numbers_that_cannot_be_are_refused_with_where_it_stands() -> None:
    async def scenario() -> None:
        calls, log = order(), list[int]()
        for number in range(1, AHEAD + 3):
            await calls.call(number, b"", telling(log, number))
        last = AHEAD + 2
        with refused("sequence", f"call {last} was another one; the last that is done is {last}, send"):
            await calls.call(last, b"other", telling(log, last))
        with refused("sequence", "call 1 was done long ago, and its answer is no longer kept"):
            await calls.call(1, b"", telling(log, 1))
        far = last + AHEAD + 1
        with refused("sequence", f"call {far} is too far ahead: the last that is done is {last}"):
            await calls.call(far, b"", telling(log, 0))
        assert log == list(range(1, last + 1))

    asyncio.run(scenario())
