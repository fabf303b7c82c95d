"""Exit with 0 if the server of this container wants calls, else say why not and exit with 1.

Only the standard library, and none of its slower parts: this runs every few seconds. It asks over loopback,
through no proxy, on the port of `NABLAD_PORT`. `healthcheck.py /health/live` asks something else.
"""

from __future__ import annotations

import http.client
import os
import sys

# A server that listens on every address is asked on loopback.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def main(path: str = "/health/ready") -> int:
    """Ask once, with a bound on the time."""
    host = os.environ.get("NABLAD_HOST", "127.0.0.1")
    port = int(os.environ.get("NABLAD_PORT", "8421"))
    connection = http.client.HTTPConnection(EVERYWHERE.get(host, host), port, timeout=4)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read(1000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer from {connection.host}:{port}: {error}")
        return 1
    finally:
        connection.close()
    print(answer.status, said)
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
