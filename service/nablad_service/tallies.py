"""Counters for what every call is counted in: plain numbers, made Prometheus's when they are read.

Those of prometheus-client may be used from many threads, and five of them take a small call a twentieth of
its time. These belong to one thread, the event loop's.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally(Collector):
    """A counter, by labels where it has some."""

    def __init__(
        self, name: str, sentence: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name, self._sentence, self._labels = name, sentence, labels
        self._counts: dict[tuple[object, ...], float] = {} if labels else {(): 0.0}
        self._created = time.time()
        registry.register(self)

    def add(self, amount: float, *labels: object) -> None:
        """Count `amount` more under `labels`."""
        self._counts[labels] = self._counts.get(labels, 0.0) + amount

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        family = CounterMetricFamily(self._name, self._sentence, labels=self._labels)
        for labels, count in tuple(self._counts.items()):
            family.add_metric([str(label) for label in labels], count, created=self._created)
        yield family


class Spread(Collector):
    """A histogram; `buckets` are the upper bounds of all but the last, ascending."""

    def __init__(
        self, name: str, sentence: str, buckets: Sequence[float], *, registry: CollectorRegistry
    ) -> None:
        self._name, self._sentence, self._bounds = name, sentence, buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        self._created = time.time()
        registry.register(self)

    def add(self, value: float) -> None:
        """Count `value` where it belongs."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        family = HistogramMetricFamily(self._name, self._sentence)
        bounds = [*map(repr, map(float, self._bounds)), "+Inf"]
        family.add_metric([], list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
        family.add_sample(f"{self._name}_created", {}, self._created)
        yield family
