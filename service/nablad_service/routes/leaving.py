"""Callers that leave before their answer is ready: their place in the queue goes to others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from nablad.problems import Refusal
from nablad_service.pipeline import Answer
from nablad_service.routes.bodies import respond

T = TypeVar("T")

QUICK = 0.05
"""Seconds after which a caller is watched, twice that at the latest: most answers are ready before, and cost
nothing more."""


CLOSED = 499
"""The status of a request whose answer nobody reads, for the counters; the word is nginx's."""


class CallerLeft(Exception):
    """The connection ended; nobody reads an answer."""


class Call:
    """A request at work, whose caller may leave."""

    def __init__(self, request: Request, task: asyncio.Task[Any]) -> None:
        self.since = time.monotonic()
        self.left = False
        self._request = request
        self._task = task
        self._watcher: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Cancel the task when the connection ends."""
        if self._watcher is None:
            self._watcher = asyncio.ensure_future(self._watch())

    def end(self) -> None:
        """Watch no longer."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.left = True
        self._task.cancel()


class Callers:
    """Those who wait for an answer; one timer for all, since few wait for long. Lives on one event loop."""

    def __init__(self) -> None:
        self._waiting: set[Call] = set()
        self._looking = False

    def add(self, call: Call) -> None:
        """Have a call watched after a while."""
        self._waiting.add(call)
        if not self._looking:
            self._look()

    def discard(self, call: Call) -> None:
        """It has ended."""
        self._waiting.discard(call)
        call.end()

    def _look(self) -> None:
        until = time.monotonic() - QUICK
        for call in self._waiting:
            if call.since < until:
                call.watch()
        self._looking = bool(self._waiting)
        if self._looking:
            asyncio.get_running_loop().call_later(QUICK, self._look)


async def answer(request: Request, work: Awaitable[Answer]) -> Response:
    """The answer to a request whose body has been read."""
    try:
        return respond(await while_there(request, work))
    except CallerLeft:
        return Response(status_code=CLOSED)


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """`work`, given up when the caller of `request`, whose body has been read, ends the connection.

    Raises:
        CallerLeft: where that happened.
    """
    task = asyncio.current_task()
    assert task is not None
    callers: Callers = request.app.state.callers
    call = Call(request, task)
    callers.add(call)
    try:
        return await work
    except (asyncio.CancelledError, Refusal):
        if call.left:
            task.uncancel()
            raise CallerLeft from None
        raise
    finally:
        callers.discard(call)
