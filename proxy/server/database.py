"""Everything that a sidecar runs for one configured database: pools, control link, replica monitor, shared plans.

Contract: :class:`DatabaseRuntime` is started once, serves sessions through :attr:`context`, takes live settings through
:meth:`apply`, and is stopped after its sessions. It is the only place where the pieces of the lower layers meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg
import structlog

from proxy.backend.connection import ServerConnection
from proxy.backend.errors import ServerUnavailable
from proxy.backend.lag import Monitor, ReadState, Replica
from proxy.backend.own import dial
from proxy.backend.pool import Key, Pool
from proxy.backend.probe import SessionProber, Verdicts
from proxy.config import ConfigError, Database, Limits
from proxy.control.hub import RoutingHub
from proxy.control.link import ControlLink, ControlUnavailable
from proxy.control.routing import Routing
from proxy.dsn import Dsn
from proxy.server.planning import Planning
from proxy.session.book import PlanBook
from proxy.session.context import Books, Context
from proxy.session.names import StatementNames
from proxy.stats import Stats
from proxy.wire import messages as m

log = structlog.get_logger(__name__)

MAINTAIN_EVERY = 1.0
MAX_GREETINGS = 1_000
RETIRE_TRIES, RETIRE_EVERY = 40, 0.1
PROBES = 4
"""Server connections at most for trying rewritten statements."""
PROBE_WAIT = 3.0
REACH_EVERY = 0.5
"""Seconds between two attempts to find a lost primary again."""


class Greeting(NamedTuple):
    """What a server says of itself at login, to be told to clients that share its connections."""

    parameters: dict[str, str]
    search_path: str
    messages: bytes
    """The ParameterStatus messages of ``parameters``."""

    @classmethod
    def of(cls, server: ServerConnection) -> Greeting:
        """What that server said at login."""
        reported = server.greeting
        messages = b"".join([m.parameter_status(name, value) for name, value in reported.items()])
        return cls(reported, server.search_path, messages)


class DatabaseRuntime:
    """One database of the configuration, running."""

    def __init__(self, name: str, settings: Database, limits: Limits) -> None:
        self.name = name
        self.settings = settings
        self.limits = limits
        self.password = _password(settings.primary)
        """What the primary's own user logs in with; the password file is read again with the configuration."""
        self.stats = Stats()
        self.hub = RoutingHub()
        self.reads = ReadState(
            [Replica(dsn, index) for index, dsn in enumerate(settings.replicas)],
            max_lag=settings.reads.max_lag,
            percent=settings.reads.replica_percent,
            consistency=settings.reads.consistency,
        )
        self.monitor = Monitor(settings.primary, self.reads)
        self.primary = self._pool(settings.primary, primary=True)
        self.primary.on_reach = self.reached
        self.replicas = [self._pool(dsn, primary=False) for dsn in settings.replicas]
        self.spare = self._pool(settings.primary, primary=True)
        self.spare.on_reach = self.reached
        self._limit_pools()
        self.verdicts = Verdicts(self.stats.caches["verdicts"])
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
        self._reaching: asyncio.Task[None] | None = None
        self.hub.listen(self._on_routing)
        self._contexts: dict[int, Context] = {}
        self._books = Books(self.stats)
        self.planning = Planning()
        self.names = StatementNames(settings.max_prepared_statements)
        self._greetings: dict[Key, Greeting] = {}
        self._retired = False

    def _pool(self, dsn: Dsn, *, primary: bool) -> Pool:
        limits = self.limits
        return Pool(
            dsn,
            size=self.settings.pool_size,
            connect_timeout=limits.server_connect_timeout,
            wait_timeout=limits.query_wait_timeout,
            idle_timeout=limits.server_idle_timeout,
            patient=self.settings.pool_mode == "transaction",
            enter=self._enter if primary else None,
        )

    def _limit_pools(self) -> None:
        """Give the pools the settings in force."""
        settings, limits = self.settings, self.limits
        for pool in self.pools:
            pool.size = settings.pool_size
            pool.min_size = settings.min_pool_size
            pool.reserve_size = settings.reserve_pool_size if settings.reserve_pool_timeout else 0
            pool.reserve_timeout = settings.reserve_pool_timeout
            pool.wait_timeout = limits.query_wait_timeout
        self.spare.size = PROBES
        self.spare.wait_timeout = PROBE_WAIT
        for pool in (*self.pools, self.spare):
            pool.connect_timeout = limits.server_connect_timeout
            pool.idle_timeout = limits.server_idle_timeout
            pool.lifetime = limits.server_lifetime
            pool.backoff.bound = limits.server_login_retry

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools that clients use: the primary's, and each replica's."""
        return (self.primary, *self.replicas)

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
        self._tasks = [asyncio.create_task(self._housekeeping())]
        self._reaching = asyncio.create_task(self._reach())

    async def stop(self) -> None:
        """Stop everything; sessions must have ended."""
        for task in (*self._tasks, *([self._reaching] if self._reaching else [])):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.planning.stop()
        await self.monitor.stop()
        for pool in (*self.pools, self.spare):
            await pool.close()
        await self.link.stop()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(MAINTAIN_EVERY)
            for pool in (*self.pools, self.spare):
                if not self._retired:
                    pool.maintain()

    async def _reach(self) -> None:
        """Find out whether the primary answers, for /readyz and for whoever waits for it; afterwards logins tell."""
        while self.primary_error is not None:
            try:
                connection = await dial(self.settings.primary, "readiness")
                await connection.close()
                self.primary_error = None
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as exc:
                self.primary_error = str(exc) or type(exc).__name__
                await asyncio.sleep(REACH_EVERY)
        self.primary.reached()
        self.spare.reached()

    async def _reach_again(self) -> None:
        # Not at once: what failed a moment ago for a client would only fail again.
        await asyncio.sleep(REACH_EVERY)
        await self._reach()

    def reached(self, error: str | None) -> None:
        """A login at the primary succeeded (None) or failed."""
        was, self.primary_error = self.primary_error, error
        if error is None and was is not None:
            # Another server may be there now, or this one with other settings.
            self._greetings.clear()
        if error is not None and was is None:
            log.warning("primary unreachable", database=self.name, error=error)
            if self._reaching is None or self._reaching.done():
                self._reaching = asyncio.create_task(self._reach_again())

    async def retire(self) -> None:
        """Leave the database until the next client comes: somebody wants it for himself. Not while clients are here."""
        # The last client may have gone a moment ago, on another socket; the server itself waits for five seconds.
        for _ in range(RETIRE_TRIES):
            if not any(self.stats.clients.values()):
                break
            await asyncio.sleep(RETIRE_EVERY)
        else:
            return
        if not self.link.rest():
            return
        log.info("leaving the database until a client comes", database=self.name)
        self._retired = True
        for pool in (*self.pools, self.spare):
            pool.reconnect()
        await self.monitor.stop()

    def rouse(self) -> None:
        """A client comes."""
        if self._retired:
            self._retired = False
            self._greetings.clear()
            self.link.rouse()
            self.monitor.start()

    # -- settings and routing --------------------------------------------------------------------------------------

    def apply(self, settings: Database, limits: Limits) -> None:
        """Take over what may change while running; sessions see it with their next statement."""
        self.settings = settings
        self.limits = limits
        self.password = _password(settings.primary)
        self.reads.max_lag = settings.reads.max_lag
        self.reads.percent = settings.reads.replica_percent
        self.reads.consistency = settings.reads.consistency
        self.link.hold_max = limits.hold_max
        self.link.speak(settings.schema_version)
        self._dual_write = settings.dual_write.enabled
        for context in self._contexts.values():
            context.dual_write_enabled = self._dual_write
        self.names.limit = settings.max_prepared_statements
        self._limit_pools()

    # -- operations ------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether new clients and transactions wait for :meth:`resume`."""
        return self.primary.paused

    async def pause(self) -> bool:
        """Let nobody begin, and wait until no server connection is in use; False if :meth:`resume` came before.

        With sessions that keep their connection this means: until the clients have gone.
        """
        first: tuple[Pool, ...] = self.pools
        after: tuple[Pool, ...] = (self.spare,)
        if self.settings.pool_mode == "session":
            # Who has a primary connection may need the others to come to an end.
            first, after = (self.primary,), (*self.replicas, self.spare)
        for group in (first, after):
            if not all(await asyncio.gather(*(pool.pause() for pool in group))):
                return False
        return True

    def resume(self) -> None:
        """End a pause, or the wait for one."""
        for pool in (*self.pools, self.spare):
            pool.resume()

    def reconnect(self) -> None:
        """Replace every server connection as soon as it is not in use."""
        self._greetings.clear()
        for pool in (*self.pools, self.spare):
            pool.reconnect()

    def kill(self) -> None:
        """Close every server connection, and let nobody begin until :meth:`resume`; clients have been told before."""
        for pool in (*self.pools, self.spare):
            pool.kill()

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
            planning=self.planning,
            names=self.names if self.shared else None,
        )
        self._contexts[number] = context
        return context

    @property
    def shared(self) -> bool:
        """Whether server connections are shared by transactions."""
        return self.settings.pool_mode == "transaction"

    async def greet(self, parameters: dict[str, str], password: str | None) -> Greeting:
        """What a server says to clients with these startup parameters; asked once. Raises ServerUnavailable."""
        key = self.primary.key(parameters)
        greeting = self._greetings.get(key)
        if greeting is None:
            server = await self.primary.acquire(parameters, password)
            if len(self._greetings) >= MAX_GREETINGS:
                self._greetings.clear()
            # As at login: what somebody has set since is not for others.
            greeting = self._greetings[key] = Greeting.of(server)
            self.primary.give(server)
        return greeting

    @property
    def book(self) -> PlanBook:
        """The cached plans under the current routing."""
        return self._books.get(self.hub.term, self._dual_write)

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
            "mirrored": stats.mirrored,
            "guarded": stats.guarded,
            "mirror_failures": stats.mirror_failures,
            "handed_to_guard": sorted(stats.handed_to_guard),
            "dual_write_enabled": self._dual_write,
            "transactions_open": stats.transactions_open,
            "p99_ms": None if quantile is None else quantile * 1000,
        }


def _password(dsn: Dsn) -> str | None:
    try:
        return dsn.password_or_default()
    except ConfigError:
        return dsn.password
