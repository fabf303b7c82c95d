"""Callers that leave before their answer is ready: their place in the queue goes to others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response

from nablad.problems import Refusal
from nablad_service.pipeline import Answer
from nablad_service.routes.bodies import respond

T = TypeVar("T")

QUICK = 0.05
"""Seconds after which a caller is watched: most answers are ready before, and cost nothing more."""


CLOSED = 499
"""The status of a request whose answer nobody reads, for the counters; the word is nginx's."""


class CallerLeft(Exception):
    """The connection ended; nobody reads an answer."""


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
    watcher: asyncio.Task[None] | None = None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(watch())

    timer = asyncio.get_running_loop().call_later(QUICK, begin)
    try:
        return await work
    except (asyncio.CancelledError, Refusal):
        if left:
            task.uncancel()
            raise CallerLeft from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
