"""Bodies in shared memory: a request's is viewed where the caller wrote it, an answer's written beside it."""

from __future__ import annotations

import asyncio

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nablad.frame import Buffer
from nablad.problems import Refusal
from nablad.shared_memory import BODY, ROOM, Place
from nablad_service.receiving import LYING
from nablad_service.routes.problems import problem
from nablad_service.shared_memory import SharedMemory

SMALL = 64 * 1024
"""Bytes that are copied on the event loop: a thread would cost more than the work."""


class SharedBodies:
    """Gives routes the bodies that lie in shared memory, and puts their answers there where asked to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        places = {name: value for name, value in scope.get("headers", ()) if name in (BODY, ROOM)}
        if not places:
            await self._app(scope, receive, send)
            return
        try:
            memory: SharedMemory | None = scope["app"].state.memory
            if memory is None:
                detail = "this server shares no memory with its callers; send the body over the socket"
                raise Refusal("shared_memory", detail)
            if BODY in places:
                body = memory.view(Place.read(places[BODY].decode("latin-1")))
                if scope["method"] != "POST":
                    # What a PUT brings is kept: it must not change under the server.
                    body = await _copied(body)
                scope.setdefault("extensions", {})[LYING] = body
            if ROOM in places:
                place = Place.read(places[ROOM].decode("latin-1"))
                send = _Into(memory.view(place), place, send)
        except Refusal as refusal:
            await problem(refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            # uvicorn keeps the scope until the connection's next request; the memory must go sooner.
            scope.get("extensions", {}).pop(LYING, None)


class _Into:
    """Collects an answer and puts its body into the caller's room, if it fits."""

    def __init__(self, room: memoryview, place: Place, send: Send) -> None:
        self._room = room
        self._place = place
        self._send = send
        self._start: Message = {}
        self._pieces: list[Buffer] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._pieces.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        size = sum(map(len, self._pieces))
        if 0 < size <= self._place.length:
            if size <= SMALL:
                _write(self._pieces, self._room)
            else:
                await asyncio.to_thread(_write, self._pieces, self._room)
            place = Place(self._place.token, self._place.offset, size)
            kept = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
            added = [(b"content-length", b"0"), (BODY, place.header().encode())]
            self._start = {**self._start, "headers": [*kept, *added]}
            self._pieces = [b""]
        await self._send(self._start)
        last = len(self._pieces) - 1
        for position, piece in enumerate(self._pieces):
            await self._send({"type": "http.response.body", "body": piece, "more_body": position < last})


def _write(pieces: list[Buffer], room: memoryview) -> None:
    # NumPy copies without holding the interpreter.
    into = np.frombuffer(room, np.uint8)
    end = 0
    for piece in pieces:
        into[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
        end += len(piece)


async def _copied(body: memoryview) -> memoryview:
    if len(body) <= SMALL:
        return memoryview(bytearray(body))
    return (await asyncio.to_thread(np.frombuffer(body, np.uint8).copy)).data
