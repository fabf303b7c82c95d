"""Calls on their way: over nablad's own transports, or over httpx where those do not reach."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from nablad import wire
from nablad.calls import Call, no_answer
from nablad.compressing import check_compression, restored, squeezed
from nablad.errors import ConnectionFailed
from nablad.polling import BUSY_POLL
from nablad.sharing import Lent, Sharing, unknown
from nablad.transports import Address, Answer, BlockingTransport, NonblockingTransport, address
from nablad.transports.exchange import Timeouts
from nablad.transports.nonblocking import on_asyncio
from nablad.transports.translated import Parts

SILENCE = 60.0
"""Seconds without a sign of life after which a stream of events is lost; servers give one every 15."""
SMALL = 64 * 1024
"""Bytes that are compressed on the event loop: a thread would cost more than the work."""


def sharing(address: Address | None) -> Sharing:
    """Shared memory with the server at an address.

    Raises:
        ValueError: it is no Unix socket, or the system is not Linux.
    """
    if address is None or address.path is None:
        raise ValueError('shared_memory=True needs a Unix socket: Client("unix:/path", shared_memory=True)')
    return Sharing(address.path)


class Sender:
    """Sends calls and receives answers, blocking.

    Plain HTTP and Unix sockets go over `BlockingTransport`, without httpx's requests and responses: a small
    call costs a third of the time. A `transport` of the caller's, https, a user name in the URL and a proxy
    of the environment go over `httpx.Client`.
    """

    def __init__(
        self,
        url: str,
        timeout: httpx.Timeout | float | None,
        transport: httpx.BaseTransport | None = None,
        *,
        shared_memory: bool = False,
        compression: str | None = None,
        busy_poll: float = BUSY_POLL,
    ) -> None:
        check_compression(compression, shared_memory)
        self._compressed = compression is not None
        self.url = url
        self._timeout = timeout
        self._transport = transport
        self._address = None if transport is not None else address(url)
        self._own = BlockingTransport(uds=self._address.path if self._address else None, busy_poll=busy_poll)
        self._opened: httpx.Client | None = None
        self._timeouts = Timeouts.of(httpx.Timeout(timeout))
        self._sharing = sharing(self._address) if shared_memory else None

    def send(self, call: Call[Any]) -> Answer:
        """The answer to a call, whatever its status.

        Raises:
            ConnectionFailed: there was none.
        """
        return restored(self._send(squeezed(call))) if self._compressed else self._send(call)

    def _send(self, call: Call[Any]) -> Answer:
        try:
            if self._address is None:
                return Answer.of(self._http.send(call.request(self._http)))
            if self._sharing is not None and (lent := self._sharing.lend(call)):
                answer = self._shared(call, self._address, lent)
                if not unknown(answer):
                    return answer
                self._sharing.reset()
            return self._exchange(call, call.parts(self._address, call.body))
        except httpx.TransportError as error:
            raise self.no_answer(error) from error

    def stream(self, call: Call[Any]) -> httpx.Response:
        """The answer to a call, its body yet to be read, which raises httpx's errors; to be closed.

        Raises:
            ConnectionFailed: there was none.
        """
        try:
            return self._http.send(streamed(call.request(self._http)), stream=True)
        except httpx.TransportError as error:
            raise self.no_answer(error) from error

    def no_answer(self, error: httpx.TransportError) -> ConnectionFailed:
        """The exception for a call that got no answer, or for an answer that broke off."""
        return no_answer(self.url, error)

    @property
    def _http(self) -> httpx.Client:
        if self._opened is None:
            url, transport = self.url, self._transport
            if self._address is not None and self._address.path is not None:
                url, transport = "http://localhost", httpx.HTTPTransport(uds=self._address.path)
            self._opened = httpx.Client(base_url=url, timeout=self._timeout, transport=transport)
        return self._opened

    def _shared(self, call: Call[Any], address: Address, lent: Lent) -> Answer:
        body = [] if lent.holds_body else call.body
        try:
            answer = self._exchange(call, call.parts(address, body, lent.headers))
        except BaseException:
            lent.drop()
            raise
        return lent.answer(answer)

    def _exchange(self, call: Call[Any], parts: Parts) -> Answer:
        assert self._address is not None
        return self._own.exchange(
            self._address.place, call.method, parts, self._timeouts, again=call.repeatable
        )

    def close(self) -> None:
        """Close the connections."""
        if self._sharing is not None:
            self._sharing.close()
        self._own.close()
        if self._opened is not None:
            self._opened.close()


def streamed(request: httpx.Request) -> httpx.Request:
    """A request whose answer may take for ever, as long as there are signs of life."""
    request.extensions["timeout"] = {**request.extensions["timeout"], "read": SILENCE}
    return request


class AsyncSender:
    """Sends calls and receives answers, awaited. Under other libraries than asyncio, over httpx."""

    def __init__(
        self,
        url: str,
        timeout: httpx.Timeout | float | None,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        shared_memory: bool = False,
        compression: str | None = None,
    ) -> None:
        check_compression(compression, shared_memory)
        self._compressed = compression is not None
        self.url = url
        self._timeout = timeout
        self._transport = transport
        self._address = None if transport is not None else address(url)
        self._own = NonblockingTransport(uds=self._address.path if self._address else None)
        self._timeouts = Timeouts.of(httpx.Timeout(timeout))
        self._sharing = sharing(self._address) if shared_memory else None
        self._opened: httpx.AsyncClient | None = None

    async def send(self, call: Call[Any]) -> Answer:
        """The answer to a call, whatever its status.

        Raises:
            ConnectionFailed: there was none.
        """
        if not self._compressed:
            return await self._send(call)
        if call.body is None or wire.body_size(call.body) <= SMALL:
            answer = await self._send(squeezed(call))
        else:
            answer = await self._send(await asyncio.to_thread(squeezed, call))
        return restored(answer) if len(answer.body) <= SMALL else await asyncio.to_thread(restored, answer)

    async def _send(self, call: Call[Any]) -> Answer:
        try:
            if self._address is None or not on_asyncio():
                return Answer.of(await self._http.send(call.request(self._http)))
            if self._sharing is not None:
                # Copying a large body would hold up the loop.
                lent = await asyncio.to_thread(self._sharing.lend, call)
                if lent is not None:
                    answer = await self._shared(call, self._address, lent)
                    if not unknown(answer):
                        return answer
                    self._sharing.reset()
            return await self._exchange(call, call.parts(self._address, call.body))
        except httpx.TransportError as error:
            raise self.no_answer(error) from error

    async def stream(self, call: Call[Any]) -> httpx.Response:
        """The answer to a call, its body yet to be read, which raises httpx's errors; to be closed.

        Raises:
            ConnectionFailed: there was none.
        """
        try:
            return await self._http.send(streamed(call.request(self._http)), stream=True)
        except httpx.TransportError as error:
            raise self.no_answer(error) from error

    def no_answer(self, error: httpx.TransportError) -> ConnectionFailed:
        """The exception for a call that got no answer, or for an answer that broke off."""
        return no_answer(self.url, error)

    async def _shared(self, call: Call[Any], address: Address, lent: Lent) -> Answer:
        body = [] if lent.holds_body else call.body
        try:
            answer = await self._exchange(call, call.parts(address, body, lent.headers))
        except BaseException:
            lent.drop()
            raise
        return lent.answer(answer)

    async def _exchange(self, call: Call[Any], parts: Parts) -> Answer:
        assert self._address is not None
        return await self._own.exchange(
            self._address.place, call.method, parts, self._timeouts, again=call.repeatable
        )

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._opened is None:
            url, transport = self.url, self._transport
            if self._address is not None and self._address.path is not None:
                url, transport = "http://localhost", httpx.AsyncHTTPTransport(uds=self._address.path)
            self._opened = httpx.AsyncClient(base_url=url, timeout=self._timeout, transport=transport)
        return self._opened

    async def aclose(self) -> None:
        """Close the connections."""
        if self._sharing is not None:
            self._sharing.close()
        await self._own.aclose()
        if self._opened is not None:
            await self._opened.aclose()
