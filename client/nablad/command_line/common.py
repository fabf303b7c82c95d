"""What several commands share: where the server is, and signs of life while it works."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from types import TracebackType

from nablad.calls import DEFAULT_URL


def add_url(parser: argparse.ArgumentParser) -> None:
    """The option `--url`."""
    parser.add_argument(
        "--url",
        default=os.environ.get("NABLAD_URL", DEFAULT_URL),
        help="where the server listens; NABLAD_URL sets it too (default: %(default)s)",
    )


class Waiting:
    """A line on the terminal with the seconds gone, while the body of the `with` runs; silent elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Waiting:
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _show(self) -> None:
        started = time.monotonic()
        shown = False
        # Quick answers leave the terminal alone.
        while not self._done.wait(0.5 if not shown else 0.1):
            shown = True
            sys.stderr.write(f"\r{self._what} {time.monotonic() - started:.1f} s ")
            sys.stderr.flush()
        if shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
