"""Calls whose bodies and answers lie in memory shared with the server."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from nablad import wire
from nablad.calls import Call
from nablad.problems import Problem
from nablad.shared_memory import BODY, ROOM, Place
from nablad.transports.blocks import Block, Blocks
from nablad.transports.incoming import Answer

WORTH = 256 * 1024
"""Bytes from which on a body is shared; less goes over the socket as fast."""
KNOWN = 256
"""Kinds of calls whose answers' sizes are remembered."""


class Sharing:
    """Places large bodies in shared memory, and offers room for large answers.

    An answer's size is known when one of its kind has come: the first goes over the socket.
    """

    def __init__(self, path: str) -> None:
        self._blocks = Blocks(path)
        self._sizes: OrderedDict[tuple[str, int], int] = OrderedDict()

    def lend(self, call: Call[Any]) -> Lent | None:
        """What `call` needs of shared memory; None where it is better off without.

        Raises:
            httpx.ConnectError: the server shares no memory.
        """
        size = wire.body_size(call.body or ())
        expected = self._sizes.get((call.path, size), 0)
        if max(size, expected) < WORTH:
            return None
        lent = Lent(self, self._blocks, call, size)
        try:
            if size >= WORTH:
                lent.take_body()
            if expected >= WORTH:
                lent.offer_room(expected)
        except BaseException:
            lent.drop()
            raise
        return lent

    def learn(self, call: Call[Any], answered: int) -> None:
        """Remember how large an answer was."""
        self._sizes[call.path, wire.body_size(call.body or ())] = answered
        while len(self._sizes) > KNOWN:
            self._sizes.popitem(last=False)

    def reset(self) -> None:
        """Begin anew, where the server knows nothing of what was shared."""
        self._blocks.reset()

    def close(self) -> None:
        """Let the server forget everything; arrays of answers stay."""
        self._blocks.close()


class Lent:
    """The shared memory of one call: give it the answer, or drop it."""

    def __init__(self, sharing: Sharing, blocks: Blocks, call: Call[Any], size: int) -> None:
        self._sharing = sharing
        self._blocks = blocks
        self._call = call
        self._size = size
        self._body: Block | None = None
        self._room: Block | None = None
        self.headers: dict[str, str] = {}
        """What to add to the request."""

    @property
    def holds_body(self) -> bool:
        """Whether the request's body lies in shared memory, and nothing goes over the socket."""
        return self._body is not None

    def take_body(self) -> None:
        """Write the request's body into shared memory."""
        self._body = self._blocks.lend(self._size)
        if self._body is not None:
            self.headers[BODY.decode()] = self._body.fill(self._call.body or ()).header()

    def offer_room(self, expected: int) -> None:
        """Offer room for the answer."""
        self._room = self._blocks.lend(expected)
        if self._room is not None:
            self.headers[ROOM.decode()] = Place(self._room.token, 0, len(self._room.memory)).header()

    def answer(self, answer: Answer) -> Answer:
        """The answer with its body, wherever that lies; blocks that are not viewed are free again."""
        if self._body is not None:
            self._blocks.give_back(self._body)
        room, self._body, self._room = self._room, None, None
        header = answer.header(BODY)
        if room is not None and header is not None:
            body = self._blocks.view(room, Place.read(header))
            answer = Answer(answer.status, answer.headers, body)
        elif room is not None:
            self._blocks.give_back(room)
        self._sharing.learn(self._call, len(answer.body))
        return answer

    def drop(self) -> None:
        """Leave the blocks: the server may be at work on them still."""
        for block in (self._body, self._room):
            if block is not None:
                self._blocks.drop(block)
        self._body = self._room = None


def unknown(answer: Answer) -> bool:
    """Whether the server refused because it does not know the memory, as after a restart."""
    if answer.status < 400 or answer.header(b"content-type") != wire.PROBLEM:
        return False
    return Problem.model_validate_json(bytes(answer.body)).code == "shared_memory"
