"""A training loop on the server, followed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

import httpx

from nablad.calls import Call, Calls
from nablad.errors import ConnectionFailed, NabladError, NotFound
from nablad.sending import Sender
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


class Run:
    """A training loop on the server: iterate over its reports, or `wait()` for its end.

    A broken connection is opened again and misses nothing. Where the server was started again, the run goes
    on from its last save, and reports of steps since then come a second time. Leaving the loop early, or the
    `with` of a run, stops the run, unless it was begun with `keep_going`.
    """

    def __init__(
        self, calls: Calls, sender: Sender, following: Following, *, progress: bool, patience: float
    ) -> None:
        self._calls = calls
        self._sender = sender
        self._following = following
        self._progress = progress
        self._patience = patience
        self._response: httpx.Response | None = None
        self._events = self._read()
        self._following.take(next(self._events))

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
        return f"<Run '{self.name}', {state}: {self.history!r}>"

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Report]:
        """The reports, as they come.

        Raises:
            Diverged: the loss is no longer finite; what was saved last can be loaded.
            ServiceError: the run failed.
            ConnectionFailed: the server does not answer any more.
        """
        try:
            with bar(self._following.total, wanted=self._progress) as show:
                for event in self._events:
                    report = self._following.take(event)
                    if report is not None:
                        show(report)
                        yield report
        finally:
            self.close()

    def wait(self) -> History:
        """Read all reports to the end; raises what iterating does."""
        for _ in self:
            pass
        return self.history

    def stop(self) -> Ended:
        """Stop the run; it is saved where the server keeps saves, and its parameters stay readable."""
        return self._send(stop_run(self._calls, self.name))

    def params(self) -> TrainedParams:
        """What is trained, as it is now; of a run that diverged, the last that were good."""
        return self._send(run_params(self._calls, self.name))

    def close(self) -> None:
        """Read no further; the run stops, unless it was begun with `keep_going`."""
        if self._following.stops_when_left:
            # A server that is gone runs nothing.
            with suppress(ConnectionFailed, NotFound):
                self._following.end("stopped", self.stop())
        self._disconnect()

    def _read(self) -> Iterator[Event]:
        """The events to the last one, over as many connections as it takes."""
        tries = pauses(self._patience)
        while self.ended is None:
            try:
                if self._response is None:
                    self._response = self._open(self._following.call())
                lines = EventLines()
                for line in self._response.iter_lines():
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
            self._disconnect()
            if self.ended is not None:
                return
            pause = next(tries, None) if passes(failure) and self._following.repeatable else None
            if pause is None:
                raise failure
            time.sleep(pause)

    def _open(self, call: Call[None]) -> httpx.Response:
        """The answer to a call that streams; values that the server lacks are put before."""
        exchange = self._calls.exchange(call)
        request: Call[Any] = next(exchange)
        while True:
            if request.path != call.path:
                request = exchange.send(self._sender.send(request))
                continue
            response = self._sender.stream(request)
            if response.is_success:
                return response
            response.read()
            request = exchange.send(Answer.of(response))

    def _send(self, call: Call[T]) -> T:
        return call.finish(self._sender.send(call))

    def _disconnect(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()
