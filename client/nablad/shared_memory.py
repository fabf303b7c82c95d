"""Memory that a caller and a server on one host share: what they say to each other about it.

The caller makes the memory (`memfd_create`), seals it against shrinking, and hands its file descriptor to the
server over a Unix socket beside the one for HTTP. It has no name in any folder: nothing can be named wrongly,
and nothing is left behind when either side dies. `docs/transport.md` has the page on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nablad.problems import Refusal

BODY = b"nablad-body"
"""The header of a request or an answer whose body lies in shared memory; its own body is empty."""
ROOM = b"nablad-room"
"""The header of a request that offers room for the answer's body."""
SHARE = b"nablad 1 share"
FORGET = b"nablad 1 forget "
SUFFIX = ".memory"
"""What the path of the Unix socket for handing memory over ends in, after that of the one for HTTP."""
LONGEST = 512
"""Bytes of a message on that socket."""
PLACE = re.compile(r"([0-9a-f]{32}); ?offset=(\d{1,18}); ?length=(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Place:
    """A piece of shared memory: the block by its token, where in it, and how many bytes."""

    token: str
    offset: int
    length: int

    def header(self) -> str:
        """As it travels."""
        return f"{self.token}; offset={self.offset}; length={self.length}"

    @classmethod
    def read(cls, header: str) -> Place:
        """A place from its header.

        Raises:
            Refusal: `shared_memory`.
        """
        match = PLACE.fullmatch(header)
        if match is None:
            wanted = "a token of 32 hexadecimal digits, '; offset=' and '; length='"
            raise Refusal("shared_memory", f"a place in shared memory is {wanted}, not {header[:100]!r}")
        return cls(match[1], int(match[2]), int(match[3]))
