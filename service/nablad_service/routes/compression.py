"""Answers compressed with zstd, for callers that ask for that and nothing else."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from nablad.compression import WORTH, ZSTD, available, compressed
from nablad.frame import Buffer
from nablad_service.routes.whole_answers import Header, WholeAnswer
from nablad_service.running.off_loop import off_loop


class CompressedAnswers:
    """Compresses answers where `Accept-Encoding` is `zstd` alone.

    HTTP libraries list what they can read in every request, zstd among it: every answer would be slower.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._able = available()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = self._able and (b"accept-encoding", ZSTD.encode()) in scope.get("headers", ())
        await self._app(scope, receive, _Compressing(send) if asked else send)


class _Compressing(WholeAnswer):
    """Sends an answer compressed, where that is worth it."""

    async def changed(self, pieces: list[Buffer]) -> tuple[list[Buffer], list[Header]] | None:
        size = sum(map(len, pieces))
        if size < WORTH:
            return None
        return await off_loop(size, lambda: compressed(pieces)), [(b"content-encoding", ZSTD.encode())]
