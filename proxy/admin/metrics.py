"""The metrics of a sidecar in Prometheus' format, made from plain numbers at the moment of a scrape.

Contract: the hot path never touches prometheus-client; it adds to ``proxy.stats.Stats``, and ``collect``
reads that. Names have the prefix ``dualwire_``, units are seconds and bytes, and the values of every label
come from a bounded set: databases, servers and versions of the configuration, reasons of plans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.admin.view import DatabaseView, PoolView, ReloadSource, SidecarView
from proxy.caches import CacheCounts
from proxy.control.routing import PHASES
from proxy.stats import BUCKETS, Histogram

NO_MIGRATION: Final = "none"

Sample = tuple[tuple[str, ...], float]
Reader = Callable[[DatabaseView], Iterable[Sample]]


def dualwire_version() -> str:
    """The installed version of the distribution."""
    try:
        return version("dualwire")
    except PackageNotFoundError:
        return "unknown"


def _one(read: Callable[[DatabaseView], float]) -> Reader:
    return lambda database: [((), read(database))]


def _by_key(read: Callable[[DatabaseView], dict[str, int]]) -> Reader:
    return lambda database: [((key,), count) for key, count in list(read(database).items())]


def _decisions(database: DatabaseView) -> Iterator[Sample]:
    yield from [(key, count) for key, count in list(database.stats.decisions.items())]


def _phases(database: DatabaseView) -> Iterator[Sample]:
    current = database.routing.phase or NO_MIGRATION
    for phase in (NO_MIGRATION, *PHASES):
        yield (phase,), float(phase == current)


def _clients(database: DatabaseView) -> Iterator[Sample]:
    # All three, zeros included: a gate asks whether the last old client has gone, and absence is no answer.
    for speaks in ("old", "new", "auto"):
        yield (speaks,), database.stats.clients.get(speaks, 0)


def _pools(database: DatabaseView) -> Iterator[Sample]:
    for pool in database.pools:
        yield (pool.server, pool.role, "active"), pool.active
        yield (pool.server, pool.role, "idle"), pool.idle
        yield (pool.server, pool.role, "connecting"), pool.connecting
        yield (pool.server, pool.role, "cleaning"), pool.cleaning


def _by_pool(read: Callable[[PoolView], float]) -> Reader:
    return lambda database: [((pool.server, pool.role), read(pool)) for pool in database.pools]


def _by_cache(read: Callable[[CacheCounts], float]) -> Reader:
    return lambda database: [((name,), read(counts)) for name, counts in database.stats.caches.items()]


def _replica_lag(database: DatabaseView) -> Iterator[Sample]:
    for replica in database.replicas:
        if replica.lag_seconds is not None:
            yield (replica.server,), replica.lag_seconds


COUNTERS: Final[tuple[tuple[str, str, tuple[str, ...], Reader], ...]] = (
    ("queries", "Statements that clients sent.", (), _one(lambda d: d.stats.queries)),
    ("errors", "Errors of servers that went to clients.", (), _one(lambda d: d.stats.errors)),
    ("cancels", "Cancel requests passed on.", (), _one(lambda d: d.stats.cancels)),
    (
        "routing_decisions",
        "Where statements were sent, and why.",
        ("target", "reason"),
        _decisions,
    ),
    (
        "rewrites",
        "Rewritten statements, by the plan's reason.",
        ("reason",),
        _by_key(lambda d: d.stats.rewrites),
    ),
    (
        "refusals",
        "Refused statements, by the plan's reason.",
        ("reason",),
        _by_key(lambda d: d.stats.refusals),
    ),
    ("mirrored_statements", "Statements that wrote both shapes.", (), _one(lambda d: d.stats.mirrored)),
    ("guarded_statements", "Writes left to the guard.", (), _one(lambda d: d.stats.guarded)),
    (
        "guard_fallbacks",
        "Rewritten statements that the server rejected and that were sent unrewritten.",
        (),
        _one(lambda d: d.stats.fallbacks),
    ),
    (
        "mirror_failures",
        "Writes that failed by what was added to them for the other shape.",
        (),
        _one(lambda d: d.stats.mirror_failures),
    ),
    (
        "plan_cache_lookups",
        "Where plans came from: the same text (hit), one that differs in literals only (template), or none (miss).",
        ("result",),
        lambda d: [
            (("hit",), d.stats.plan_hits),
            (("template",), d.stats.plan_templates),
            (("miss",), d.stats.plan_misses),
        ],
    ),
    (
        "large_plans",
        "Large texts that were planned by another process.",
        (),
        _one(lambda d: d.stats.plans_apart),
    ),
    ("plan_cache_hits", "Lookups that found something.", ("cache",), _by_cache(lambda c: c.hits)),
    ("plan_cache_misses", "Lookups that found nothing.", ("cache",), _by_cache(lambda c: c.misses)),
    (
        "plan_cache_evictions",
        "Entries dropped because others needed their room.",
        ("cache",),
        _by_cache(lambda c: c.evictions),
    ),
    (
        "client_bytes",
        "Bytes exchanged with clients.",
        ("direction",),
        lambda d: [(("in",), d.stats.bytes_from_clients), (("out",), d.stats.bytes_to_clients)],
    ),
    ("client_logins", "Clients that logged in.", (), _one(lambda d: d.stats.clients_total)),
    (
        "login_failures",
        "Clients that could not log in.",
        ("reason",),
        _by_key(lambda d: d.stats.login_failures),
    ),
    ("transactions", "Transactions that came to an end.", (), _one(lambda d: d.stats.transactions)),
    (
        "pins",
        "Times that a session began to keep its server connection, by reason.",
        ("reason",),
        _by_key(lambda d: d.stats.pins_total),
    ),
    ("pool_connects", "Server connections made.", ("server", "role"), _by_pool(lambda p: p.connects)),
    (
        "pool_connect_failures",
        "Attempts to make a server connection that failed.",
        ("server", "role"),
        _by_pool(lambda p: p.connect_failures),
    ),
    ("parked_statements", "Statements that a hold ever parked.", (), _one(lambda d: d.holds_total)),
    ("control_reconnects", "Times the control link was lost.", (), _one(lambda d: d.link.reconnects)),
)
"""(name without prefix and ``_total``, help, labels beside ``database``, reader)."""

GAUGES: Final[tuple[tuple[str, str, tuple[str, ...], Reader], ...]] = (
    ("epoch", "The epoch that this sidecar acts under.", (), _one(lambda d: d.routing.epoch)),
    (
        "acknowledged_epoch",
        "The epoch that this sidecar acknowledged last.",
        (),
        _one(lambda d: d.link.acknowledged[1]),
    ),
    ("revision", "The publication that this sidecar acts under.", (), _one(lambda d: d.routing.revision)),
    ("phase", "1 for the phase of the active migration.", ("phase",), _phases),
    ("cutover_percent", "Share of auto sessions on the new version.", (), _one(lambda d: d.routing.percent)),
    ("compat", "Whether old clients are served without their columns.", (), _one(lambda d: d.routing.compat)),
    ("dual_write_enabled", "Whether this sidecar mirrors inline.", (), _one(lambda d: d.dual_write_enabled)),
    ("lease_seconds", "What is left of the lease.", (), _one(lambda d: d.link.lease_seconds)),
    ("control_connected", "Whether the control link is up.", (), _one(lambda d: d.link.connected)),
    ("primary_up", "Whether the primary was reached.", (), _one(lambda d: d.primary_reached)),
    ("plan_cache_entries", "Entries kept.", ("cache",), _by_cache(lambda c: c.entries)),
    ("plan_cache_bytes", "About how much memory they take.", ("cache",), _by_cache(lambda c: c.bytes)),
    ("hold", "Whether this sidecar holds for a swap.", (), _one(lambda d: d.link.holding)),
    ("parked_sessions", "Sessions that a hold parks now.", (), _one(lambda d: d.stats.parked)),
    ("clients", "Connected clients by what they speak.", ("version",), _clients),
    (
        "tables_handed_to_guard",
        "Tables whose writes are not rewritten any more, after too many failures.",
        (),
        _one(lambda d: len(d.stats.handed_to_guard)),
    ),
    ("replication_clients", "Replication connections.", (), _one(lambda d: d.stats.replication)),
    ("transactions_open", "Clients in a transaction.", (), _one(lambda d: d.stats.transactions_open)),
    ("pool_connections", "Server connections.", ("server", "role", "state"), _pools),
    (
        "pool_waiting",
        "Sessions that wait for a server connection.",
        ("server", "role"),
        _by_pool(lambda p: p.waiting),
    ),
    (
        "pool_limit",
        "Server connections allowed.",
        ("server", "role"),
        _by_pool(lambda p: p.limit),
    ),
    (
        "pool_longest_wait_seconds",
        "For how long the first of the waiting sessions has waited.",
        ("server", "role"),
        _by_pool(lambda p: p.longest_wait),
    ),
    (
        "pool_cancelling",
        "Server connections with a cancel request under way.",
        ("server", "role"),
        _by_pool(lambda p: p.cancelling),
    ),
    ("pool_paused", "Whether PAUSE or KILL is in force.", ("server", "role"), _by_pool(lambda p: p.paused)),
    (
        "pool_failing",
        "Whether the last attempt to connect failed.",
        ("server", "role"),
        _by_pool(lambda p: bool(p.failing)),
    ),
    (
        "pinned_sessions",
        "Sessions that keep their server connection between transactions, by reason.",
        ("reason",),
        _by_key(lambda d: d.stats.pins),
    ),
    ("replica_lag_seconds", "How far a replica is behind.", ("replica",), _replica_lag),
    (
        "replica_usable",
        "Whether reads may go to a replica.",
        ("replica",),
        lambda d: [((replica.server,), replica.usable) for replica in d.replicas],
    ),
)


class SidecarCollector(Collector):
    """Turns the view into metric families, one pass a scrape."""

    def __init__(self, view: SidecarView, reloads: ReloadSource) -> None:
        self._view = view
        self._reloads = reloads

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask a sidecar that is not up yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families of dualwire."""
        databases = self._view.databases()
        info = GaugeMetricFamily("dualwire_build_info", "The version that runs.", labels=["version"])
        info.add_metric([dualwire_version()], 1)
        yield info
        yield GaugeMetricFamily("dualwire_listening", "Whether clients can connect.", self._view.listening())
        for name, text, labels, read in COUNTERS:
            counter = CounterMetricFamily(f"dualwire_{name}", text, labels=["database", *labels])
            for database in databases:
                for values, number in read(database):
                    counter.add_metric([database.name, *values], number)
            yield counter
        for name, text, labels, read in GAUGES:
            gauge = GaugeMetricFamily(f"dualwire_{name}", text, labels=["database", *labels])
            for database in databases:
                for values, number in read(database):
                    gauge.add_metric([database.name, *values], number)
            yield gauge
        latency = HistogramMetricFamily(
            "dualwire_statement_seconds", "From a batch's end to its reply's end.", labels=["database"]
        )
        for database in databases:
            histogram = database.stats.latency
            latency.add_metric([database.name], _buckets(histogram), histogram.total)
        yield latency
        waits = HistogramMetricFamily(
            "dualwire_pool_wait_seconds",
            "How long sessions have waited for a server connection that had to.",
            labels=["database", "server", "role"],
        )
        for database in databases:
            for pool in database.pools:
                if pool.waits is not None:
                    place = [database.name, pool.server, pool.role]
                    waits.add_metric(place, _buckets(pool.waits), pool.waits.total)
        yield waits
        yield from self._reload_families()

    def _reload_families(self) -> Iterator[Metric]:
        last = self._reloads.view()
        totals = CounterMetricFamily("dualwire_reloads", "Configuration reloads.", labels=["result"])
        for result in ("applied", "unchanged", "rejected"):
            totals.add_metric([result], last.totals.get(result, 0))
        yield totals
        yield GaugeMetricFamily(
            "dualwire_restart_pending", "Changed keys that wait for a restart.", len(last.pending_restart)
        )
        if last.at is not None:
            yield GaugeMetricFamily(
                "dualwire_reload_age_seconds", "Since the last reload.", max(0.0, time.time() - last.at)
            )


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(repr(bound) for bound in BUCKETS), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, accumulate(histogram.counts), strict=True)]


def registry(view: SidecarView, reloads: ReloadSource) -> CollectorRegistry:
    """A registry of its own: the sidecar's families, the process's and the garbage collector's."""
    made = CollectorRegistry(auto_describe=False)
    made.register(SidecarCollector(view, reloads))
    ProcessCollector(registry=made)
    GCCollector(registry=made)
    return made
