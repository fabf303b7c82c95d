"""Servers of a test's own, as processes, with the options that it wants."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """A running `nablad serve`."""

    process: subprocess.Popen[str]
    urls: list[str]
    """Where it listens, as its first line says."""

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(30)


@contextmanager
def served(*options: str, before: Sequence[str] = ()) -> Iterator[Served]:
    """A server for the length of a `with`; `before` is a command that begins the one that it is given."""
    command = [*before, sys.executable, "-m", "nablad", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(process, re.findall(r"(?:http://|unix:)\S+", process.stdout.readline()))
        finally:
            process.terminate()
            process.wait(30)
