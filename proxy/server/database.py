"""Everything that a sidecar runs for one configured database: pools, control link, replica monitor, shared plans.

Contract: :class:`DatabaseRuntime` is started once, serves sessions through :attr:`context`, takes live settings through
:meth:`apply`, and is stopped after its sessions. It is the only place where the pieces of the lower layers meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import asyncpg
import structlog

from proxy.backend.errors import ServerUnavailable
from proxy.backend.lag import Monitor, ReadState, Replica
from proxy.backend.own import dial
from proxy.backend.pool import Pool
from proxy.backend.probe import SessionProber, Verdicts
from proxy.config import Database, Limits
from proxy.control.hub import RoutingHub
from proxy.control.link import ControlLink, ControlUnavailable
from proxy.control.routing import Routing
from proxy.session.context import Books, Context
from proxy.stats import Stats

log = structlog.get_logger(__name__)

EXPIRE_EVERY = 30.0
PROBES = 4
"""Server connections at most for trying rewritten statements."""


class DatabaseRuntime:
    """One database of the configuration, running."""

    def __init__(self, name: str, settings: Database, limits: Limits) -> None:
        self.name = name
        self.settings = settings
        self.stats = Stats()
        self.hub = RoutingHub()
        self.reads = ReadState(
            [Replica(dsn, index) for index, dsn in enumerate(settings.replicas)],
            max_lag=settings.reads.max_lag,
            percent=settings.reads.replica_percent,
            consistency=settings.reads.consistency,
        )
        self.monitor = Monitor(settings.primary, self.reads)
        self.primary = self._pool(settings.primary, settings.pool_size, limits, primary=True)
        self.replicas = [
            self._pool(dsn, settings.pool_size, limits, primary=False) for dsn in settings.replicas
        ]
        self.spare = self._pool(settings.primary, PROBES, limits, primary=True)
        self.spare.wait_timeout = 3.0
        self.verdicts = Verdicts()
        self.primary_error: str | None = "not reached yet"
        self.link = ControlLink(
            settings.primary,
            self.hub,
            service=settings.service_name(name),
            speaks=settings.schema_version,
            pids=lambda: [*self.primary.pids, *self.spare.pids],
            stats=self.reported,
            hold_max=limits.hold_max,
        )
        self._dual_write = settings.dual_write.enabled
        self._latency = list(self.stats.latency.counts)
        self._term = self.hub.term
        self._tasks: list[asyncio.Task[None]] = []
        self.hub.listen(self._on_routing)
        self._contexts: dict[int, Context] = {}
        self._books = Books(self.stats)

    def _pool(self, dsn: Any, size: int, limits: Limits, *, primary: bool) -> Pool:
        return Pool(
            dsn,
            size=size,
            connect_timeout=limits.server_connect_timeout,
            wait_timeout=limits.query_wait_timeout,
            idle_timeout=limits.server_idle_timeout,
            enter=self._enter if primary else None,
        )

    async def _enter(self, pids: list[int]) -> None:
        """A new server connection makes itself known and reads the epoch before its first use."""
        try:
            await self.link.enter(pids)
        except ControlUnavailable as exc:
            raise ServerUnavailable(
                "08006", f"the routing state cannot be read: {exc}", hint="See the sidecar's log and /status."
            ) from exc

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the control link, the monitor and the housekeeping."""
        self.link.start()
        self.monitor.start()
        self._tasks = [asyncio.create_task(self._housekeeping()), asyncio.create_task(self._reach())]

    async def stop(self) -> None:
        """Stop everything; sessions must have ended."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.monitor.stop()
        for pool in (self.primary, self.spare, *self.replicas):
            await pool.close()
        await self.link.stop()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY)
            for pool in (self.primary, self.spare, *self.replicas):
                pool.expire()

    async def _reach(self) -> None:
        """Find out whether the primary answers, for /readyz; afterwards every login tells."""
        while self.primary_error is not None:
            try:
                connection = await dial(self.settings.primary, "readiness")
                await connection.close()
                self.primary_error = None
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as exc:
                self.primary_error = str(exc) or type(exc).__name__
                await asyncio.sleep(0.5)

    def reached(self, error: str | None) -> None:
        """A login at the primary succeeded (None) or failed."""
        was, self.primary_error = self.primary_error, error
        if error is not None and was is None:
            log.warning("primary unreachable", database=self.name, error=error)
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks.append(asyncio.create_task(self._reach()))

    # -- settings and routing --------------------------------------------------------------------------------------

    def apply(self, settings: Database, limits: Limits) -> None:
        """Take over what may change while running; sessions see it with their next statement."""
        self.settings = settings
        self.reads.max_lag = settings.reads.max_lag
        self.reads.percent = settings.reads.replica_percent
        self.reads.consistency = settings.reads.consistency
        self.link.hold_max = limits.hold_max
        self.link.speak(settings.schema_version)
        self._dual_write = settings.dual_write.enabled
        for context in self._contexts.values():
            context.dual_write_enabled = self._dual_write
        for pool in (self.primary, *self.replicas):
            pool.size = settings.pool_size
            pool.wait_timeout = limits.query_wait_timeout
        for pool in (self.primary, self.spare, *self.replicas):
            pool.connect_timeout = limits.server_connect_timeout
            pool.idle_timeout = limits.server_idle_timeout

    def _on_routing(self, routing: Routing) -> None:
        if self.hub.term is not self._term:
            self._term = self.hub.term
            self.verdicts.known.clear()
        # A replica may serve this state only once it has replayed it.
        self.reads.raise_floor()

    def context(self, number: int, parameters: dict[str, str], password: str | None) -> Context:
        """The shared state as one session sees it; :meth:`forget` it when the session ends."""
        prober = SessionProber(self.verdicts, self.spare, parameters, password)
        context = Context(
            hub=self.hub,
            reads=self.reads,
            prober=prober,
            stats=self.stats,
            clock=time.monotonic,
            dual_write_enabled=self._dual_write,
            books=self._books,
        )
        self._contexts[number] = context
        return context

    def forget(self, number: int) -> None:
        """A session has ended."""
        self._contexts.pop(number, None)

    def reported(self) -> Mapping[str, Any]:
        """What the control link reports of this sidecar's work."""
        stats = self.stats
        quantile = stats.latency.quantile(0.99, self._latency)
        self._latency = list(stats.latency.counts)
        return {
            "clients": {side: stats.clients.get(side, 0) for side in ("old", "new", "auto")},
            "queries": stats.queries,
            "errors": stats.errors,
            "refused": stats.refused,
            "dual_write_enabled": self._dual_write,
            "transactions_open": stats.transactions_open,
            "p99_ms": None if quantile is None else quantile * 1000,
        }
