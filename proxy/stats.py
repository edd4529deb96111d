"""What a sidecar counts, per database: plain numbers that the hot path adds to and that a scrape reads.

Nothing here knows Prometheus, a clock or a lock: one event loop writes, the same loop reads. Imports no layer
of dualwire, so every one may count. The names that an operator sees are in ``proxy.admin.metrics``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final

from proxy.caches import CACHES, CacheCounts

BUCKETS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds in seconds: from what a cached read on the same host takes to what a person notices."""


class Histogram:
    """Counts of observed durations by bucket; the last one has no upper bound."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0
        """Sum of all observed seconds."""

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def quantile(self, fraction: float, since: list[int] | None = None) -> float | None:
        """The upper bound in seconds of the bucket where that fraction lies; None while nothing was observed.

        ``since`` is an earlier copy of ``counts``: only what came after it counts.
        """
        counts = self.counts
        if since is not None:
            counts = [now - then for now, then in zip(counts, since, strict=True)]
        wanted = sum(counts) * fraction
        if wanted == 0:
            return None
        seen = 0
        for bound, count in zip(BUCKETS, counts, strict=False):
            seen += count
            if seen >= wanted:
                return bound
        return BUCKETS[-1]


class Stats:
    """The counters of one database. All only grow, but for ``clients``, ``parked``, ``pins`` and
    ``transactions_open``."""

    __slots__ = (
        "bytes_from_clients",
        "bytes_to_clients",
        "caches",
        "cancels",
        "clients",
        "clients_total",
        "decisions",
        "errors",
        "fallbacks",
        "guarded",
        "handed_to_guard",
        "latency",
        "login_failures",
        "mirror_failures",
        "mirrored",
        "parked",
        "pins",
        "pins_total",
        "plan_hits",
        "plan_misses",
        "plan_templates",
        "plans_apart",
        "queries",
        "refusals",
        "replication",
        "rewrites",
        "transactions",
        "transactions_open",
    )

    def __init__(self) -> None:
        self.queries = 0
        """Statements that clients sent: simple queries and Executes."""
        self.errors = 0
        """ErrorResponses of servers that went to clients."""
        self.fallbacks = 0
        """Statements that were sent unrewritten because the server rejected the rewritten text."""
        self.mirrored = 0
        """Statements that wrote both shapes themselves."""
        self.guarded = 0
        """Statements on migrated tables that left the other shape to the guard."""
        self.mirror_failures = 0
        """Statements that failed by what was added to them for the other shape."""
        self.handed_to_guard: frozenset[str] = frozenset()
        """Tables whose writes are left to the guard after too many of these, until the next epoch."""
        self.plan_hits = 0
        """Plans found by the exact text."""
        self.plan_templates = 0
        """Plans that followed from a template."""
        self.plan_misses = 0
        self.plans_apart = 0
        """Large texts that were planned by another process."""
        self.caches = {name: CacheCounts() for name in CACHES}
        self.bytes_from_clients = 0
        self.bytes_to_clients = 0
        self.cancels = 0
        self.clients_total = 0
        """Clients that ever logged in."""
        self.login_failures: defaultdict[str, int] = defaultdict(int)
        """By reason."""
        self.decisions: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Routing decisions by (target, reason); target is ``primary`` or ``replica``."""
        self.rewrites: defaultdict[str, int] = defaultdict(int)
        """Rewritten statements by the plan's reason."""
        self.refusals: defaultdict[str, int] = defaultdict(int)
        """Refused statements by the plan's reason."""
        self.clients: defaultdict[str, int] = defaultdict(int)
        """Connected clients by what they speak: ``old``, ``new``, ``auto``."""
        self.replication = 0
        """Replication connections that are open."""
        self.transactions = 0
        """Transactions that came to an end, implicit ones too."""
        self.transactions_open = 0
        self.parked = 0
        """Sessions that wait for the end of a hold."""
        self.pins: defaultdict[str, int] = defaultdict(int)
        """Sessions that keep their server connection between transactions, by reason."""
        self.pins_total: defaultdict[str, int] = defaultdict(int)
        """Times that a session began to, by reason."""
        self.latency = Histogram()
        """From a batch's last message to its ReadyForQuery, in seconds."""

    @property
    def refused(self) -> int:
        """All refusals."""
        return sum(self.refusals.values())
