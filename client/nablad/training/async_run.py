"""A training loop on the server, followed asynchronously."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

import httpx

from nablad.calls import Call, Calls
from nablad.errors import ConnectionFailed, NabladError, NotFound
from nablad.sending import AsyncSender
from nablad.training.calls import run_params, stop_run
from nablad.training.events import Event, EventLines
from nablad.training.following import Following
from nablad.training.history import History
from nablad.training.messages import Ended, Report
from nablad.training.patience import passes, pauses
from nablad.training.progress import bar
from nablad.training.results import TrainedParams
from nablad.transports import Answer

T = TypeVar("T")


class AsyncRun:
    """A training loop on the server: `async for report in client.train(...)`, or `await run.wait()`.

    As `Run`. It is begun by the first thing that is awaited. Python closes an `async for` that is left early
    only by and by: `async with client.train(...) as run:` stops the run at once.
    """

    def __init__(
        self, calls: Calls, sender: AsyncSender, following: Following, *, progress: bool, patience: float
    ) -> None:
        self._calls = calls
        self._sender = sender
        self._following = following
        self._progress = progress
        self._patience = patience
        self._response: httpx.Response | None = None
        self._events = self._read()

    @property
    def name(self) -> str:
        """What the server calls the run."""
        return str(self._following.name)

    @property
    def total(self) -> int | None:
        """Steps of all phases together, where that is known."""
        return self._following.total

    @property
    def history(self) -> History:
        """All reports that were read so far."""
        return self._following.history

    @property
    def ended(self) -> Ended | None:
        """How the run ended; None as long as that was not read."""
        return self._following.ended

    def __repr__(self) -> str:
        state = self._following.kind or "under way"
        return f"<AsyncRun '{self.name}', {state}: {self.history!r}>"

    async def __aenter__(self) -> AsyncRun:
        return await self._begun()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __await__(self) -> Generator[Any, None, AsyncRun]:
        return self._begun().__await__()

    async def _begun(self) -> AsyncRun:
        if not self._following.started:
            self._following.take(await anext(self._events))
        return self

    async def __aiter__(self) -> AsyncIterator[Report]:
        """The reports, as they come.

        Raises:
            Diverged: the loss is no longer finite; what was saved last can be loaded.
            ServiceError: the run failed.
            ConnectionFailed: the server does not answer any more.
        """
        try:
            with bar(self._following.total, wanted=self._progress) as show:
                await self._begun()
                async for event in self._events:
                    report = self._following.take(event)
                    if report is not None:
                        show(report)
                        yield report
        finally:
            await self.aclose()

    async def wait(self) -> History:
        """Read all reports to the end; raises what iterating does."""
        async for _ in self:
            pass
        return self.history

    async def stop(self) -> Ended:
        """Stop the run; it is saved where the server keeps saves, and its parameters stay readable."""
        return await self._send(stop_run(self._calls, self.name))

    async def params(self) -> TrainedParams:
        """What is trained, as it is now; of a run that diverged, the last that were good."""
        return await self._send(run_params(self._calls, self.name))

    async def aclose(self) -> None:
        """Read no further; the run stops, unless it was begun with `keep_going`."""
        if self._following.stops_when_left:
            # A server that is gone runs nothing.
            with suppress(ConnectionFailed, NotFound):
                self._following.end("stopped", await self.stop())
        await self._disconnect()

    async def _read(self) -> AsyncIterator[Event]:
        """The events to the last one, over as many connections as it takes."""
        tries = pauses(self._patience)
        while self.ended is None:
            try:
                if self._response is None:
                    self._response = await self._open(self._following.call())
                lines = EventLines()
                async for line in self._response.aiter_lines():
                    if self.ended is not None:
                        return
                    event = lines.take(line)
                    if event is not None:
                        tries = pauses(self._patience)
                        yield event
                failure: NabladError = ConnectionFailed(f"the events of run '{self.name}' broke off")
            except httpx.TransportError as error:
                failure = self._sender.no_answer(error)
            except NotFound as error:
                self._following.lost(error)
                continue
            except NabladError as error:
                failure = error
            await self._disconnect()
            if self.ended is not None:
                return
            pause = next(tries, None) if passes(failure) and self._following.repeatable else None
            if pause is None:
                raise failure
            await asyncio.sleep(pause)

    async def _open(self, call: Call[None]) -> httpx.Response:
        """The answer to a call that streams; values that the server lacks are put before."""
        exchange = self._calls.exchange(call)
        request: Call[Any] = next(exchange)
        while True:
            if request.path != call.path:
                request = exchange.send(await self._sender.send(request))
                continue
            response = await self._sender.stream(request)
            if response.is_success:
                return response
            await response.aread()
            request = exchange.send(Answer.of(response))

    async def _send(self, call: Call[T]) -> T:
        return call.finish(await self._sender.send(call))

    async def _disconnect(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            await response.aclose()
