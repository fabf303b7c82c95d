"""A nablad server for the length of a `with`: examples and tests talk to a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def local_server(*options: str) -> Iterator[str]:
    """Start `nablad serve` on a free port and give its URL; stop it afterwards.

    Set NABLAD_URL to use a server that runs already.
    """
    if url := os.environ.get("NABLAD_URL"):
        yield url
        return
    command = [sys.executable, "-m", "nablad", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            if not found:
                raise RuntimeError(f"the server did not start: {line!r}")
            yield found.group()
        finally:
            process.terminate()
            process.wait(timeout=30)
