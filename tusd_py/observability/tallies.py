"""The collectors of the catalogue, and numbers that wait to be added to them.

An observation in the path of a request costs one call of `deque.append`. Adding it to a collector of prometheus_client
takes a microsecond or two, most of it for a lock and a file in memory, and is done for many observations at once.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections import Counter as Counts, deque
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tusd_py.observability.catalogue import Kind, MetricEntry
from tusd_py.observability.label_values import MAX_NAMES, OTHER, Label

MARKUP = re.compile(r"\[([^]]+)\]\([^)]+\)|`")  # links and code, in the documentation only


class Tally:
    """The observations of one child of a collector that wait to be added to it.

    Attributes:
        child: the child.
        add: takes an observation: an amount for a counter or a gauge, seconds for a histogram. Thread-safe.
    """

    __slots__ = ("_waiting", "add", "child")

    def __init__(self, child: Any) -> None:
        """Add to a child of a collector of prometheus_client."""
        self.child = child
        self._waiting: deque[float] = deque()
        self.add: Callable[[float], None] = self._waiting.append

    def fold(self) -> None:
        """Add what waits to the child. One thread at a time."""
        waiting = self._waiting
        if not waiting:
            return
        amounts = [waiting.popleft() for _ in range(len(waiting))]
        if isinstance(self.child, Histogram):
            _observe_all(self.child, amounts)
        else:
            self.child.inc(sum(amounts))


def _observe_all(histogram: Any, amounts: list[float]) -> None:
    """Do what `histogram.observe` would do for each of the amounts; prometheus_client has no function for several."""
    bounds = histogram._upper_bounds
    histogram._sum.inc(sum(amounts))
    for bucket, count in Counts([bisect_left(bounds, amount) for amount in amounts]).items():
        histogram._buckets[bucket].inc(count)


class Family:
    """One metric: the tallies of its children by the values of its labels, in bounded number."""

    def __init__(self, entry: MetricEntry, registry: CollectorRegistry) -> None:
        """Make the collector, and its child if the metric has no labels."""
        self._entry = entry
        self._known = [frozenset(label.values) for label in entry.labels]
        self._names: list[set[str]] = [set() for _ in entry.labels]  # values of labels without a set of their own
        self._tallies: dict[tuple[str, ...], Tally] = {}
        self._lock = threading.Lock()
        self.collector = _collector_of(entry, registry)
        if not entry.labels:
            self.tally()

    def tally(self, *values: str) -> Tally:
        """Return the tally of the child with these values; those outside the sets of their labels become `OTHER`."""
        found = self._tallies.get(values)
        if found is not None:
            return found
        with self._lock:
            places = zip(self._entry.labels, self._known, self._names, values, strict=True)
            values = tuple(_allowed(*place) for place in places)
            if values not in self._tallies:
                self._tallies[values] = Tally(self.collector.labels(*values) if values else self.collector)
            return self._tallies[values]

    def child(self, *values: str) -> Any:
        """Return the child itself, for what is set or must be counted at once."""
        return self.tally(*values).child

    def fold(self) -> None:
        """Add what waits to the children."""
        for tally in list(self._tallies.values()):
            tally.fold()


def _allowed(label: Label, known: frozenset[str], names: set[str], value: str) -> str:
    """Return the value, or `OTHER`; note it among the names of a label without a set of its own."""
    if label.values:
        return value if value in known else OTHER
    if value not in names and len(names) >= MAX_NAMES:
        return OTHER
    names.add(value)
    return value


def _collector_of(entry: MetricEntry, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    labels = [label.name for label in entry.labels]
    text = MARKUP.sub(r"\1", entry.meaning)
    if entry.kind is Kind.COUNTER:
        return Counter(entry.name, text, labels, registry=registry)
    if entry.kind is Kind.HISTOGRAM:
        return Histogram(entry.name, text, labels, buckets=entry.buckets, registry=registry)
    mode = "livemostrecent" if entry.is_of_host else "livesum"
    return Gauge(entry.name, text, labels, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]
