"""Transports of the client's own, under httpx's interface: large bodies travel without being copied."""

from nablad.transports.address import Address, address
from nablad.transports.blocking import BlockingTransport
from nablad.transports.incoming import Answer
from nablad.transports.nonblocking import NonblockingTransport

__all__ = ["Address", "Answer", "BlockingTransport", "NonblockingTransport", "address"]
