"""What the server counts, in the form that Prometheus reads: one registry an application.

Names and units follow Prometheus: seconds and bytes, counters that end in `_total`. `docs/operating.md` lists
them all. What can be asked for at any time (what is hosted, what waits) is asked for when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from nablad_service.running.collecting import settle
from nablad_service.tallies import Spread, Tally

T = TypeVar("T")

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COMPILE_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)
CALLS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one application. Tallies and spreads are the event loop's, the others anybody's."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Tally(
            "nablad_requests", "Requests answered.", ["endpoint", "status"], registry=registry
        )
        self.refusals = Counter("nablad_refusals", "Problem documents sent.", ["code"], registry=registry)
        self.received = Tally("nablad_received_bytes", "Bytes of request bodies.", registry=registry)
        self._sent = Tally("nablad_sent_bytes", "Bytes of answers.", registry=registry)
        self.queue = Spread(
            "nablad_queue_seconds", "Time that a call waited for the device.", SECONDS, registry=registry
        )
        self.device = Histogram(
            "nablad_device_seconds", "Time of one run on the device.", buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            "nablad_batch_calls",
            "Calls that one run on the device computed together.",
            buckets=CALLS,
            registry=registry,
        )
        self.compile = Histogram(
            "nablad_compile_seconds",
            "Time to compile; kind is program, batch, bucket, variant, diagnosis, check, session or loop.",
            ["kind"],
            buckets=COMPILE_SECONDS,
            registry=registry,
        )
        self.programs = Tally(
            "nablad_programs",
            "Calls whose program was compiled already (hit), and that had to wait for it (miss).",
            ["cache"],
            registry=registry,
        )
        self._disk = Counter(
            "nablad_disk_cache",
            "Compilations read from the compile cache (hit), and written to it (miss).",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("hit", "miss"):
            self._disk.labels(outcome)
            self.programs.add(0, outcome)

    def answered(self, endpoint: str, status: int, received: int, sent: int) -> None:
        """Note a request that has its answer: its path as declared, and the bytes of the two bodies."""
        self._requests.add(1, endpoint, status)
        self.received.add(received)
        self._sent.add(sent)

    def compiling(self, kind: str, work: Callable[[], T]) -> Callable[[], T]:
        """`work`, a compilation of some kind, timed; what it made is settled for the garbage collector."""

        def timed() -> T:
            with self.compile.labels(kind).time():
                made = work()
            # Tracing leaves much behind, and what is compiled stays.
            settle()
            return made

        return timed

    def disk(self, outcome: str) -> None:
        """Note a compilation that was read from disk, or written there."""
        self._disk.labels(outcome).inc()

    def ran(self, seconds: float, together: int) -> None:
        """Note one run on the device."""
        self.device.observe(seconds)
        self.batch.observe(together)

    def ask(self, name: str, sentence: str, value: Callable[[], float]) -> None:
        """A figure that `value` gives whenever it is read."""
        Gauge(name, sentence, registry=self.registry).set_function(value)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the form that `accept` asks for, and its content type."""
        encode, media = choose_encoder(accept)
        written: bytes = encode(self.registry)
        return written, media
