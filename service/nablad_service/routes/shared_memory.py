"""Bodies in shared memory: a request's is viewed where the caller wrote it, an answer's written beside it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from nablad.frame import Buffer, fill
from nablad.problems import Refusal
from nablad.shared_memory import BODY, ROOM, Place
from nablad_service.routes.bodies import Lend, room
from nablad_service.routes.problems import problem
from nablad_service.routes.whole_answers import Header, WholeAnswer
from nablad_service.running.off_loop import off_loop
from nablad_service.sockets.receiving import LYING
from nablad_service.sockets.shared_memory import SharedMemory


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
                    body = await _copied(body, scope["app"].state.blocks.lend)
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


class _Into(WholeAnswer):
    """Puts an answer's body into the caller's room, if it fits."""

    def __init__(self, room: memoryview, place: Place, send: Send) -> None:
        super().__init__(send)
        self._room = room
        self._place = place

    async def changed(self, pieces: list[Buffer]) -> tuple[list[Buffer], list[Header]] | None:
        size = sum(map(len, pieces))
        if not 0 < size <= self._place.length:
            return None
        await off_loop(size, lambda: fill(self._room, pieces))
        place = Place(self._place.token, self._place.offset, size)
        return [b""], [(BODY, place.header().encode())]


async def _copied(body: memoryview, lend: Lend) -> memoryview:
    own = room(len(body), lend)
    await off_loop(len(body), lambda: fill(own, [body]))
    return own
