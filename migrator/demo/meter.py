"""What the clients saw: operations and latencies by phase, the longest stall around each flip, errors in
words.

Latencies go into a histogram with buckets two percent wide, so that the figures of several processes can be
added up.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

GROWTH = math.log(1.02)
SHORTEST = 1e-6
# How long a flip's effects are looked for after the command that caused it has ended.
AFTERMATH_SECONDS = 1.0
ERROR_SAMPLES = 20


class Histogram:
    """Counts of durations, mergeable; quantiles are right within two percent."""

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self.counts[math.ceil(math.log(max(seconds, SHORTEST) / SHORTEST) / GROWTH)] += 1

    def merge(self, other: Histogram) -> None:
        """Adds another one's counts."""
        self.counts.update(other.counts)

    def quantile(self, share: float) -> float:
        """The duration, in seconds, that ``share`` of all stay below; 0 when there are none."""
        left = share * sum(self.counts.values())
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return SHORTEST * math.exp(bucket * GROWTH)
        return 0.0

    def to_json(self) -> dict[str, int]:
        """The counts, keys as JSON wants them."""
        return {str(bucket): count for bucket, count in self.counts.items()}

    @classmethod
    def from_json(cls, raw: dict[str, int]) -> Histogram:
        """The inverse of `to_json`."""
        return cls({int(bucket): count for bucket, count in raw.items()})


@dataclass(slots=True)
class Phase:
    """What was served while one phase lasted. An operation belongs to the phase that it ended in."""

    name: str
    writes: int = 0
    reads: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=Histogram)
    longest: float = 0.0

    def merge(self, other: Phase) -> None:
        """Adds what another process served in the same phase."""
        self.writes += other.writes
        self.reads += other.reads
        self.errors += other.errors
        self.latency.merge(other.latency)
        self.longest = max(self.longest, other.longest)

    def to_json(self) -> dict[str, Any]:
        """For the way between processes."""
        return {
            "name": self.name,
            "writes": self.writes,
            "reads": self.reads,
            "errors": self.errors,
            "latency": self.latency.to_json(),
            "longest": self.longest,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Phase:
        """The inverse of `to_json`."""
        return cls(**{**raw, "latency": Histogram.from_json(raw["latency"])})


@dataclass(slots=True)
class _Window:
    """One flip, from its command's begin until a little after its end, and the longest operation in it."""

    begin: float
    end: float = math.inf
    longest: float = 0.0


class Meter:
    """Thread-safe; one in each workload process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: list[Phase] = [Phase("start")]
        self._windows: dict[str, _Window] = {}
        self._under_way: dict[int, float] = {}
        self.writes = 0
        self.reads = 0
        self.errors = 0
        self.samples: list[str] = []

    def enter_phase(self, name: str) -> None:
        """From now on operations count for this phase; a name seen before goes on."""
        with self._lock:
            self._phases = [p for p in self._phases if p.name != name] + [
                next((p for p in self._phases if p.name == name), Phase(name))
            ]

    def open_window(self, name: str) -> None:
        """A flip begins."""
        with self._lock:
            self._windows[name] = _Window(time.monotonic())

    def close_window(self, name: str) -> None:
        """A flip's command has ended."""
        with self._lock:
            self._windows[name].end = time.monotonic() + AFTERMATH_SECONDS

    def begin(self, session: int) -> float:
        """A session sends an operation; gives its starting time."""
        now = time.monotonic()
        with self._lock:
            self._under_way[session] = now
        return now

    def done(self, session: int, begun: float, write: bool | None) -> None:
        """The operation was acknowledged: a write, a read, or (None) neither, such as a rollback."""
        now = time.monotonic()
        with self._lock:
            self._under_way.pop(session, None)
            phase = self._phases[-1]
            if write:
                phase.writes += 1
                self.writes += 1
            elif write is not None:
                phase.reads += 1
                self.reads += 1
            phase.latency.add(now - begun)
            phase.longest = max(phase.longest, now - begun)
            self._stall(begun, now)

    def failed(self, session: int, begun: float, words: str) -> None:
        """The operation failed, or its answer was wrong."""
        now = time.monotonic()
        with self._lock:
            self._under_way.pop(session, None)
            self._phases[-1].errors += 1
            self.errors += 1
            self._stall(begun, now)
            if len(self.samples) < ERROR_SAMPLES:
                self.samples.append(words)

    def figures(self) -> dict[str, Any]:
        """The totals so far and the running phase's p99, for the display."""
        with self._lock:
            phase = self._phases[-1]
            return {
                "writes": self.writes,
                "reads": self.reads,
                "errors": self.errors,
                "p99": phase.latency.quantile(0.99),
            }

    def report(self) -> dict[str, Any]:
        """Everything, for the end. What still hangs counts as a stall of so long."""
        with self._lock:
            now = time.monotonic()
            for begun in self._under_way.values():
                self._stall(begun, now)
            return {
                "phases": [phase.to_json() for phase in self._phases],
                "stalls": {name: window.longest for name, window in self._windows.items()},
                "samples": self.samples,
            }

    def _stall(self, begun: float, ended: float) -> None:
        for window in self._windows.values():
            if begun <= window.end and ended >= window.begin:
                window.longest = max(window.longest, ended - begun)


def merge_phases(reports: Iterable[dict[str, Any]], order: Iterable[str]) -> list[Phase]:
    """The phases of several processes, in the order given."""
    total: dict[str, Phase] = {}
    for report in reports:
        for raw in report["phases"]:
            phase = Phase.from_json(raw)
            total.setdefault(phase.name, Phase(phase.name)).merge(phase)
    return [total.get(name, Phase(name)) for name in order]
