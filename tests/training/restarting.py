"""A server that is killed without a word and started again at the same address."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Restarting:
    """`nablad serve` on one folder of models and one of saves, always at the port of its first start."""

    def __init__(self, folder: Path, *options: str) -> None:
        folders = ["--repository", str(folder / "models"), "--checkpoints", str(folder / "saves")]
        self._options = [*folders, *options]
        self.url = "http://127.0.0.1:0"
        self.start()

    def start(self) -> None:
        port = self.url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "nablad", "serve", "--port", port, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r"http://\S+", self._process.stdout.readline())
        assert found, "the server did not start"
        self.url = found.group()

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def restarting(folder: Path, *options: str) -> Iterator[Restarting]:
    """Such a server for the length of a `with`, with `options` beside the folders."""
    server = Restarting(folder, *options)
    try:
        yield server
    finally:
        server.kill()
