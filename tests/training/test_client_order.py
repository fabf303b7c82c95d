"""A session's calls from the client's side: numbers, repeats, failures that nobody looks at, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nablad
from nablad.training.async_session import AsyncSession
from nablad.training.messages import Standing
from nablad.training.order import Order
from nablad.training.session import UNDER_WAY, Session

from pretended import OPTIMISER, PretendedServer  # isort: skip


@pytest.fixture
def server() -> PretendedServer:
    return PretendedServer()


@pytest.fixture
def client(server: PretendedServer) -> Iterator[nablad.Client]:
    with nablad.Client(format="json", transport=server.transport()) as connected:
        yield connected


def begun(client: nablad.Client, **settings: Any) -> Session:
    return client.session(model="net", optimiser=OPTIMISER, **settings)


def test_results_that_come_late_take_no_step_back() -> None:
    order = Order(standing(step=4, sequence=10, generation=1))
    first, second, third = (order.number() or {} for _ in range(3))
    order.took(second, SimpleNamespace(stepped=SimpleNamespace(step=6)))
    order.took(first, SimpleNamespace(stepped=SimpleNamespace(step=5)))
    assert order.step == 6
    order.took(third, SimpleNamespace(step=2, stepped=None))  # a `load`
    assert order.step == 2
    with pytest.raises(nablad.SessionRestored):
        order.follow(standing(step=1, sequence=3, generation=2))
    order.took(third, SimpleNamespace(step=9, stepped=None))
    assert order.step == 1


def standing(**where: int) -> Standing:
    return Standing.model_construct(name="run", **where)


def test_calls_are_numbered_and_done_in_the_order_they_were_made(
    client: nablad.Client, server: PretendedServer
) -> None:
    with begun(client) as session:
        for _ in range(10):
            gradient = session.gradient("sum(model(x))", inputs={"x": 1.0})
            step = session.step()
        assert step.result().step == 10
        assert gradient.result().accumulated == 1
        assert server.done == [
            f"{word} {2 * i + j}" for i in range(10) for j, word in ((1, "gradient"), (2, "step"))
        ]
        assert session.params().params["layer_1.weight"] == [[10.0]]
    assert not server.exists


def test_a_few_calls_are_under_way_and_the_next_one_waits_for_room(
    client: nablad.Client, server: PretendedServer
) -> None:
    with begun(client) as session, ThreadPoolExecutor(1) as thread:
        server.gate.clear()
        sent = [session.gradient("1.0") for _ in range(UNDER_WAY)]
        fifth = thread.submit(session.gradient, "1.0")
        with server.turn:
            server.turn.wait_for(lambda: len(server.bodies) == UNDER_WAY, 10)
        assert not fifth.done()
        assert repr(sent[0]) == "<Pending gradient 1, under way>"
        assert not sent[0].cancel()
        server.gate.set()
        assert fifth.result().result().sequence == UNDER_WAY + 1


def test_an_array_may_be_written_into_as_soon_as_the_call_is_made(
    client: nablad.Client, server: PretendedServer
) -> None:
    with begun(client) as session:
        server.gate.clear()
        x = np.zeros(3)
        first = session.gradient("sum(x)", inputs={"x": x})
        x += 1
        second = session.gradient("sum(x)", inputs={"x": x})
        server.gate.set()
        assert first.result().value == second.result().value
        sent = {body["sequence"]: body["inputs"]["x"]["data"] for body in server.bodies}
        assert sent[1] != sent[2]


def test_a_python_function_travels_as_text_and_may_use_what_is_trained(
    client: nablad.Client, server: PretendedServer
) -> None:
    def loss(model: Any, x: Any, c: Any) -> Any:
        return c * np.sum(model(x) ** 2)

    with begun(client, trained={"c": 2.0}) as session:
        session.gradient(loss, inputs={"x": np.ones((2, 2))}).result()
    assert "c *" in server.bodies[0]["loss"]
    assert list(server.bodies[0]["inputs"]) == ["x"]


def test_a_call_whose_answer_is_lost_is_sent_again_and_done_once(
    client: nablad.Client, server: PretendedServer
) -> None:
    server.losing = {1, 2}
    with begun(client) as session:
        session.gradient("1.0")
        assert session.step().result().step == 1
    assert server.done == ["gradient 1", "step 2"]
    assert sorted(body["sequence"] for body in server.bodies) == [1, 1, 2, 2]


def test_a_server_that_stays_away_is_an_exception_in_the_end(
    client: nablad.Client, server: PretendedServer
) -> None:
    with begun(client, patience=0.0) as session:
        server.losing = {1}
        with pytest.raises(nablad.ConnectionFailed):
            session.gradient("1.0").result()
        # The call was done all the same: the session is asked before the next number is given.
        assert session.step().result().sequence == 2


def test_a_refused_call_is_raised_where_it_is_looked_at(
    client: nablad.Client, server: PretendedServer
) -> None:
    server.refused = {1}
    with begun(client) as session:
        with pytest.raises(nablad.RequestError, match="call 1 is refused"):
            session.gradient("1.0").result()
        assert session.gradient("1.0").result().sequence == 2


def test_a_failure_that_nobody_looks_at_is_raised_by_a_later_call(
    client: nablad.Client, server: PretendedServer
) -> None:
    server.refused = {1}
    with begun(client) as session:
        server.gate.clear()
        refused, done = session.gradient("1.0"), session.gradient("1.0")
        server.gate.set()
        assert done.result().sequence == 2
        with pytest.raises(nablad.RequestError, match="call 1 is refused") as caught:
            session.params()
        assert caught.value.__notes__ == ["This is the answer to gradient 1, which nobody had looked at."]
        assert session.params().step == 0
    assert "is refused" in repr(refused)


def test_the_end_of_the_with_raises_it_too_and_deletes_the_session(
    client: nablad.Client, server: PretendedServer
) -> None:
    server.refused = {1}
    with pytest.raises(nablad.RequestError, match="call 1 is refused"), begun(client) as session:
        session.gradient("1.0")
    assert not server.exists
    with pytest.raises(ValueError, match="is closed"):
        session.step()


def test_after_a_restart_the_exception_says_the_step_and_the_session_follows(
    client: nablad.Client, server: PretendedServer
) -> None:
    with begun(client) as session:
        for _ in range(3):
            session.gradient("1.0")
            session.step()
        session.save()
        session.gradient("1.0")
        session.step().result()
        server.restart()
        lost = [session.gradient("1.0"), session.gradient("1.0")]
        with pytest.raises(nablad.SessionRestored) as caught:
            lost[0].result()
        assert (caught.value.step, caught.value.sequence, caught.value.generation) == (3, 7, 2)
        # The other call tells of the same restoration, which the caller knows of.
        assert isinstance(lost[1].exception(), nablad.SessionRestored)
        session.gradient("1.0")
        assert session.step().result().step == 4
        assert session.standing().generation == 2


def test_a_restart_is_raised_once_where_nobody_looks_at_answers(
    client: nablad.Client, server: PretendedServer
) -> None:
    with begun(client) as session:
        session.gradient("1.0").result()
        server.restart()
        session.gradient("1.0")
        session.step()
        with pytest.raises(nablad.SessionRestored):
            session.params()
        session.gradient("1.0")
        assert session.step().result().sequence == 2


def test_a_restart_that_only_the_standing_tells_is_raised_too(
    client: nablad.Client, server: PretendedServer
) -> None:
    with begun(client, patience=0.0) as session:
        server.losing = {1}
        assert isinstance(session.gradient("1.0").exception(), nablad.ConnectionFailed)
        server.restart()
        with pytest.raises(nablad.SessionRestored, match="after step 0"):
            session.gradient("1.0")
        assert session.gradient("1.0").result().sequence == 1


def test_a_named_session_is_kept_and_resumed(client: nablad.Client, server: PretendedServer) -> None:
    with begun(client, name="run") as session:
        session.gradient("1.0")
    assert server.exists
    with client.session(name="run", resume=True) as session:
        assert session.step().result().sequence == 2
    server.exists = False
    with pytest.raises(nablad.NotFound):
        client.session(name="run", resume=True)
    with begun(client, name="run", resume=True) as session:
        assert server.exists


def test_a_session_needs_an_optimiser_and_a_name_to_resume(client: nablad.Client) -> None:
    with pytest.raises(ValueError, match="needs an optimiser"):
        client.session(model="net")
    with pytest.raises(ValueError, match="give name= too"):
        client.session(model="net", resume=True)


def test_results_and_sessions_show_what_matters(client: nablad.Client, server: PretendedServer) -> None:
    with begun(client) as session:
        gradient = session.gradient("1.0").result()
        assert repr(gradient) == (
            "<SessionGradientResult 1: value=0.5 fit=0.5 |model.params|=2, 1 accumulated>"
        )
        assert repr(session.step().result()) == (
            "<StepResult step 1: learning rate 0.1, gradient norm 2, update norm 0.2>"
        )
        assert repr(session) == "<Session 'run' at step 1>"
        assert repr(session.params()) == "<TrainedParams step 1: 1 numbers in 1 arrays>"


# -- the asynchronous session


def awaited(
    server: PretendedServer, script: Callable[[AsyncSession], Awaitable[None]], **settings: Any
) -> None:
    async def ask() -> None:
        async with (
            nablad.AsyncClient(format="json", transport=server.transport()) as client,
            client.session(model="net", optimiser=OPTIMISER, **settings) as session,
        ):
            await script(session)

    asyncio.run(ask())


def test_asynchronous_calls_are_done_in_their_order_however_many(server: PretendedServer) -> None:
    async def script(session: AsyncSession) -> None:
        sent: list[Any] = []
        for _ in range(10):
            sent += [session.gradient("1.0"), session.step()]
        assert (await sent[-1]).step == 10
        assert repr(session) == "<AsyncSession 'run' at step 10>"
        assert (await session.params()).params["layer_1.weight"] == [[10.0]]

    awaited(server, script)
    assert [int(entry.split()[1]) for entry in server.done] == list(range(1, 21))
    assert not server.exists


def test_asynchronous_calls_are_sent_again_and_done_once(server: PretendedServer) -> None:
    server.losing = {1, 2}

    async def script(session: AsyncSession) -> None:
        first, second = session.gradient("1.0"), session.step()
        assert (await second).step == 1
        assert (await asyncio.gather(first))[0].sequence == 1

    awaited(server, script)
    assert server.done == ["gradient 1", "step 2"]


def test_asynchronous_failures_do_not_pass_unseen(server: PretendedServer) -> None:
    server.refused = {1}

    async def script(session: AsyncSession) -> None:
        session.gradient("1.0")
        await session.gradient("1.0")
        with pytest.raises(nablad.RequestError, match="call 1 is refused"):
            session.step()
        assert (await session.step()).step == 1

    awaited(server, script)


def test_what_waits_for_room_is_not_sent_to_a_session_that_was_restored(server: PretendedServer) -> None:
    async def script(session: AsyncSession) -> None:
        await session.gradient("1.0")
        server.restart()
        sent = [session.gradient("1.0") for _ in range(3 * UNDER_WAY)]
        failed = await asyncio.gather(*sent, return_exceptions=True)
        assert {type(error) for error in failed} == {nablad.SessionRestored}
        assert (await session.gradient("1.0")).sequence == 1

    awaited(server, script)
    assert server.done == ["gradient 1", "gradient 1"]


def test_an_asynchronous_session_must_be_opened(server: PretendedServer) -> None:
    async def ask() -> None:
        async with nablad.AsyncClient(format="json", transport=server.transport()) as client:
            unopened = client.session(model="net", optimiser=OPTIMISER)
            with pytest.raises(ValueError, match="open the session first"):
                unopened.step()
            session = await client.session(model="net", optimiser=OPTIMISER)
            assert (await session.gradient("1.0")).sequence == 1
            await session.aclose()
        assert not server.exists

    asyncio.run(ask())
