"""Bytes in, the same bytes out, over a plain socket: `python echo.py BYTES` prints its port.

The floor under every server on the same road: one buffer, filled in place and sent as it lies.
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """Serve one connection until it closes."""
    room = memoryview(bytearray(int(sys.argv[1])))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        with connection:
            while fill(connection, room):
                connection.sendall(room)


def fill(connection: socket.socket, room: memoryview) -> bool:
    """Receive until the buffer is full; false where the connection ends."""
    filled = 0
    while filled < len(room):
        count = connection.recv_into(room[filled:])
        if count == 0:
            return False
        filled += count
    return True


if __name__ == "__main__":
    main()
