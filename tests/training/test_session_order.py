"""The order of a session's calls, on an event loop whose time goes on where it has nothing else to do."""

from __future__ import annotations

import asyncio
import re
import selectors
from collections.abc import Coroutine
from typing import Any

import pytest

from nablad.problems import Refusal
from nablad_service.training.order import AHEAD, Order, Turn, Work


class Jumping(selectors.DefaultSelector):
    """Where its loop would sleep, it is later at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing happens any more"
        self.now += timeout
        return super().select(0)


class OwnTime(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=OwnTime) as runner:
        return runner.run(scenario)


def order(done: int = 0, patience: float = 60.0) -> Order:
    return Order(done, patience=patience, about=lambda: {"sequence": done})


def telling(log: list[Any], number: int) -> Work:
    async def work(turn: Turn) -> int:
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

    assert run(scenario()) == [1, 2, 3, 4]


def test_a_call_that_comes_again_is_answered_again_and_not_done_again() -> None:
    async def scenario() -> None:
        calls, log, go = order(), list[int](), asyncio.Event()

        async def slow(turn: Turn) -> str:
            log.append(1)
            await go.wait()
            return "done"

        first = asyncio.create_task(calls.call(1, b"same", slow))
        again = asyncio.create_task(calls.call(1, b"same", slow))
        await asyncio.sleep(0)
        go.set()
        assert await first == await again == await calls.call(1, b"same", slow) == "done"
        assert log == [1]

    run(scenario())


def test_a_call_is_done_though_its_caller_leaves() -> None:
    async def scenario() -> None:
        calls, log = order(), list[int]()
        second = asyncio.create_task(calls.call(2, b"", telling(log, 2)))
        await asyncio.sleep(0)
        second.cancel()
        await calls.call(1, b"", telling(log, 1))
        assert await calls.call(2, b"", telling(log, 2)) == 2
        assert log == [1, 2]

    run(scenario())


def test_a_refused_call_has_been_done_too() -> None:
    async def scenario() -> None:
        calls, log = order(), list[int]()

        async def refusing(turn: Turn) -> None:
            log.append(1)
            raise Refusal("no_gradient", "there is none")

        for _ in range(2):
            with refused("no_gradient", "there is none"):
                await calls.call(1, b"", refusing)
        assert await calls.call(2, b"", telling(log, 2)) == 2
        assert log == [1, 2]

    run(scenario())


@pytest.mark.parametrize("code", ["overloaded", "stopping", "unknown_handle"])
def test_a_call_that_may_be_sent_again_takes_no_number(code: str) -> None:
    async def scenario() -> None:
        calls, log = order(), list[int]()

        async def busy(turn: Turn) -> None:
            raise Refusal(code, "not now")

        behind = asyncio.create_task(calls.call(2, b"", telling(log, 2)))
        with refused(code, "not now"):
            await calls.call(1, b"", busy)
        assert await calls.call(1, b"", telling(log, 1)) == 1
        assert await behind == 2
        assert log == [1, 2]

    run(scenario())


def test_a_call_waits_only_so_long_for_one_that_does_not_come() -> None:
    async def scenario() -> None:
        calls, log = order(done=4, patience=0.01), list[int]()
        with refused("sequence", "call 6 waited 0.01 s for call 5, which did not come; send that first"):
            await calls.call(6, b"", telling(log, 6))
        assert await calls.call(5, b"", telling(log, 5)) == 5
        assert await calls.call(6, b"", telling(log, 6)) == 6

    run(scenario())


def test_a_call_waits_as_long_as_it_takes_for_one_that_runs() -> None:
    async def scenario() -> None:
        calls, log, go = order(patience=0.001), list[int](), asyncio.Event()

        async def slow(turn: Turn) -> None:
            await go.wait()

        first = asyncio.create_task(calls.call(1, b"", slow))
        second = asyncio.create_task(calls.call(2, b"", telling(log, 2)))
        done, _ = await asyncio.wait([first, second], timeout=0.05)
        assert not done
        go.set()
        assert await second == 2

    run(scenario())


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
        ahead = asyncio.create_task(calls.call(last + 2, b"", telling(log, last + 2)))
        await settled()
        with refused("sequence", f"is {last}, send the next as {last + 1}"):
            await calls.call(last, b"other", telling(log, last))
        await calls.call(last + 1, b"", telling(log, last + 1))
        await ahead
        last += 2
        far = last + AHEAD + 1
        with refused("sequence", f"call {far} is too far ahead: the last that is done is {last}"):
            await calls.call(far, b"", telling(log, 0))
        assert log == list(range(1, last + 1))

    run(scenario())


def test_patience_begins_with_a_call_that_waits_for_a_missing_one() -> None:
    async def scenario() -> None:
        calls, log, go = order(patience=0.01), list[int](), asyncio.Event()

        async def slow(turn: Turn) -> None:
            turn.let_next_begin()
            await go.wait()

        running = [asyncio.create_task(calls.call(one, b"", slow)) for one in (1, 2)]
        await settled()
        assert calls.begun == 2
        assert calls._timer is None  # call 3 is not there, and nobody waits for it
        fourth = asyncio.create_task(calls.call(4, b"", telling(log, 4)))
        await settled()
        assert calls._timer is not None
        go.set()
        await asyncio.gather(*running)
        with refused("sequence", "call 4 waited 0.01 s for call 3, which did not come"):
            await fourth

    run(scenario())


def test_a_call_that_has_begun_waits_once_for_one_before_it_that_gave_its_number_back() -> None:
    async def scenario() -> None:
        calls, device = order(patience=0.01), Device()
        device.fails[1] = Refusal("unknown_handle", "not now")
        tries = 0

        async def save(turn: Turn) -> None:
            nonlocal tries
            tries += 1
            await turn.alone()

        first = asyncio.create_task(calls.call(1, b"", device.work(1)))
        second = asyncio.create_task(calls.call(2, b"", save))
        await settled()
        waits: list[int] = []
        moved = calls.moved
        calls.moved = lambda number: waits.append(number) or moved(number)  # type: ignore[method-assign, func-returns-value]
        device.gates[1].set()
        with refused("unknown_handle", "not now"):
            await first
        with refused("sequence", "call 2 waited 0.01 s for call 1, which did not come; send that first"):
            await second
        assert (tries, waits) == (1, [2])  # one patience long, from when call 1 was given back
        again = [asyncio.create_task(calls.call(1, b"", device.work(1))), calls.call(2, b"", save)]
        await asyncio.gather(*again)
        assert (tries, calls.done) == (2, 2)

    run(scenario())


def test_where_the_server_stops_nobody_waits_for_what_will_not_come() -> None:
    async def scenario() -> None:
        calls, log, go = order(), list[int](), asyncio.Event()

        async def slow(turn: Turn) -> str:
            await go.wait()
            return "done"

        first = asyncio.create_task(calls.call(1, b"", slow))
        third = asyncio.create_task(calls.call(3, b"", telling(log, 3)))
        await settled()
        calls.stop_waiting()  # call 1 is computed to its end
        go.set()
        assert await first == "done"
        with refused("stopping", "call 2 before this one has not come; send both again"):
            await third
        with refused("stopping", "call 2 before this one has not come"):
            await calls.call(4, b"", telling(log, 4))

    run(scenario())


class Device:
    """Stands for a queue that does one thing after the other, once it may."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.done: list[int] = []
        self.gates = {number: asyncio.Event() for number in range(1, 9)}
        self.fails: dict[int, Refusal] = {}

    def work(self, number: int) -> Work:
        async def work(turn: Turn) -> int:
            self.began.append(number)
            turn.let_next_begin()
            await self.gates[number].wait()
            if number in self.fails:
                raise self.fails.pop(number)
            await turn.alone()
            self.done.append(number)
            return number

        return work


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_next_call_begins_when_it_may_and_no_other_before() -> None:
    async def scenario() -> None:
        calls, device = order(), Device()
        tasks = [asyncio.create_task(calls.call(one, b"", device.work(one))) for one in (4, 3, 2, 1)]
        await settled()
        assert device.began == [1, 2]  # one is computed, one waits for its end
        device.gates[2].set()
        await settled()
        assert (device.began, device.done, calls.done) == ([1, 2], [], 0)  # answers come in order
        device.gates[1].set()
        await settled()
        assert (device.began, device.done, calls.done) == ([1, 2, 3, 4], [1, 2], 2)
        device.gates[4].set()
        device.gates[3].set()
        assert await asyncio.gather(*tasks) == [4, 3, 2, 1]
        assert device.done == [1, 2, 3, 4]

    run(scenario())


def test_a_call_that_has_to_be_alone_waits_for_those_before_and_keeps_those_behind() -> None:
    async def scenario() -> None:
        calls, device, log = order(), Device(), list[str]()

        async def save(turn: Turn) -> None:
            await turn.alone()
            log.append(f"after {calls.done}")
            await asyncio.sleep(0.01)
            log.append(f"began {device.began}")

        first = asyncio.create_task(calls.call(1, b"", device.work(1)))
        saving = asyncio.create_task(calls.call(2, b"", save))
        third = asyncio.create_task(calls.call(3, b"", device.work(3)))
        await settled()
        assert not log
        device.gates[1].set()
        device.gates[3].set()
        await asyncio.gather(first, saving, third)
        assert log == ["after 1", "began [1]"]

    run(scenario())


def test_a_call_that_gives_its_number_back_takes_the_one_behind_it_along() -> None:
    async def scenario() -> None:
        calls, device = order(), Device()
        device.fails[1] = Refusal("stuck", "not now")
        tasks = [asyncio.create_task(calls.call(one, b"", device.work(one))) for one in (1, 2, 3)]
        await settled()
        device.gates[2].set()
        device.gates[1].set()
        with refused("stuck", "not now"):
            await tasks[0]
        with refused("stuck", "a call before this one could not be run; send both again"):
            await tasks[1]
        assert (device.done, calls.done) == ([], 0)
        again = [asyncio.create_task(calls.call(one, b"", device.work(one))) for one in (2, 1)]
        device.gates[3].set()
        assert await asyncio.gather(*again, tasks[2]) == [2, 1, 3]
        assert device.done == [1, 2, 3]

    run(scenario())


def test_a_call_that_fails_leaves_those_that_have_begun() -> None:
    async def scenario() -> None:
        calls, device = order(), Device()
        device.fails[1] = Refusal("function_failed", "it raised")
        tasks = [asyncio.create_task(calls.call(one, b"", device.work(one))) for one in (1, 2)]
        await settled()
        device.gates[2].set()
        device.gates[1].set()
        with refused("function_failed", "it raised"):
            await tasks[0]
        assert await tasks[1] == 2
        assert calls.done == 2

    run(scenario())
