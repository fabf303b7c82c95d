"""Calls on their way: over nablad's own transports, or over httpx where those do not reach."""

from __future__ import annotations

from typing import Any

import httpx

from nablad.calls import Call, no_answer
from nablad.transports import Answer, BlockingTransport, NonblockingTransport, address
from nablad.transports.exchange import Timeouts
from nablad.transports.nonblocking import on_asyncio


class Sender:
    """Sends calls and receives answers, blocking.

    Plain HTTP and Unix sockets go over `BlockingTransport`, without httpx's requests and responses: a small
    call costs a third of the time. A `transport` of the caller's, https, a user name in the URL and a proxy
    of the environment go over `httpx.Client`.
    """

    def __init__(
        self, url: str, timeout: httpx.Timeout | float | None, transport: httpx.BaseTransport | None
    ) -> None:
        self.url = url
        self._address = None if transport is not None else address(url)
        if self._address is None:
            self._http = httpx.Client(base_url=url, timeout=timeout, transport=transport)
        else:
            self._own = BlockingTransport(uds=self._address.path)
        self._timeouts = Timeouts.of(httpx.Timeout(timeout))

    def send(self, call: Call[Any]) -> Answer:
        """The answer to a call, whatever its status.

        Raises:
            ConnectionFailed: there was none.
        """
        try:
            if self._address is None:
                return Answer.of(self._http.send(call.request(self._http)))
            return self._own.exchange(
                self._address.place,
                call.method,
                call.parts(self._address),
                self._timeouts,
                again=call.repeatable,
            )
        except httpx.TransportError as error:
            raise no_answer(self.url, error) from error

    def close(self) -> None:
        """Close the connections."""
        (self._own if self._address is not None else self._http).close()


class AsyncSender:
    """Sends calls and receives answers, awaited. Under other libraries than asyncio, over httpx."""

    def __init__(
        self, url: str, timeout: httpx.Timeout | float | None, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self.url = url
        self._timeout = timeout
        self._transport = transport
        self._address = None if transport is not None else address(url)
        self._own = NonblockingTransport(uds=self._address.path if self._address else None)
        self._timeouts = Timeouts.of(httpx.Timeout(timeout))
        self._opened: httpx.AsyncClient | None = None

    async def send(self, call: Call[Any]) -> Answer:
        """The answer to a call, whatever its status.

        Raises:
            ConnectionFailed: there was none.
        """
        try:
            if self._address is None or not on_asyncio():
                return Answer.of(await self._http.send(call.request(self._http)))
            return await self._own.exchange(
                self._address.place,
                call.method,
                call.parts(self._address),
                self._timeouts,
                again=call.repeatable,
            )
        except httpx.TransportError as error:
            raise no_answer(self.url, error) from error

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
        await self._own.aclose()
        if self._opened is not None:
            await self._opened.aclose()
