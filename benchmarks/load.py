"""Many callers in one process, as cheap as they can be: started by throughput.py, told what to do by lines.

Each caller has a connection, sends the bytes it was given, waits for the answer and sends them again.
Answers are counted, not decoded. A line is JSON: `url`, `requests` (a folder of requests), `callers`,
`seconds` and `out`, a file for the times; the answer is JSON too: the seconds of a core that the
`callers` themselves took, and how many calls `failed`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop

HEALTH = b"GET /health/live HTTP/1.1\r\nHost: nablad\r\n\r\n"
PACE = 0.02
"""Seconds from one question about health to the next."""


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, or every `pace` seconds, for a time."""

    def __init__(self, request: bytes, until: float, pace: float = 0.0) -> None:
        self.asked: list[float] = []
        self.answered: list[float] = []
        self.failed = 0
        self.done = asyncio.get_running_loop().create_future()
        self._request, self._until, self._pace = request, until, pace
        self._data, self._missing = b"", -1
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._data += data
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._data[:end].lower()
            length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
            self.failed += b" 200 " not in head[:16]
            self._missing = end + 4 + length - len(self._data)
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._answered()

    def _answered(self) -> None:
        now = time.monotonic()
        self.answered.append(now)
        self._data, self._missing = b"", -1
        if now >= self._until:
            self.done.set_result(None)
            self._transport.close()
        elif self._pace:
            wait = self.asked[-1] + self._pace - now
            asyncio.get_running_loop().call_later(max(wait, 0.0), self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        self.asked.append(time.monotonic())
        self._transport.write(self._request)

    def times(self) -> np.ndarray:
        """When each call was answered, and what it took: shape (calls, 2), in seconds."""
        answered = np.array(self.answered)
        return np.stack([answered, answered - np.array(self.asked[: len(answered)])], axis=1)


async def load(url: str, requests: str, callers: int, seconds: float, out: str) -> dict[str, Any]:
    """One stretch of load; saves `calls` and `health`, both as `Caller.times`."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    bodies = [path.read_bytes() for path in sorted(Path(requests).iterdir())]
    until = time.monotonic() + seconds
    cpu = sum(os.times()[:2])

    async def connected(request: bytes, pace: float = 0.0) -> Caller:
        _, protocol = await loop.create_connection(
            lambda: Caller(request, until, pace), parts.hostname, parts.port
        )
        return protocol

    health = await connected(HEALTH, PACE)
    crowd = [await connected(bodies[number % len(bodies)]) for number in range(callers)]
    await asyncio.gather(health.done, *(caller.done for caller in crowd))
    spent = sum(os.times()[:2]) - cpu
    np.savez(out, calls=np.concatenate([caller.times() for caller in crowd]), health=health.times())
    return {"callers": spent, "failed": sum(caller.failed for caller in crowd) + health.failed}


def main() -> None:
    """Do as told, line by line."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(uvloop.run(load(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
