"""The composition root of a sidecar: configuration in, a running process out.

Contract: :func:`run` returns the process's exit code (0 after an orderly shutdown, 2 for a configuration that cannot be
used, 1 where an address is taken) and never raises for a mistake of the operator's: it prints what to do.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
import uvloop

from proxy.admin.console_operations import Operations
from proxy.admin.console_server import ConsoleOffice
from proxy.admin.http import AdminServer
from proxy.admin.reload import Reloader, read
from proxy.admin.view import DatabaseView, PoolView, ReplicaView, ServerRole
from proxy.backend.pool import Pool
from proxy.build.state import describe
from proxy.config import ConfigError, Log, Settings
from proxy.config_users import User
from proxy.server.database import DatabaseRuntime
from proxy.server.sidecar import Sidecar

log = structlog.get_logger(__name__)


class View:
    """The running sidecar as the admin endpoints see it."""

    def __init__(self, sidecar: Sidecar, path: Path) -> None:
        self._sidecar = sidecar
        self._path = path

    def listening(self) -> bool:
        """Whether clients can connect now."""
        return self._sidecar.accepting

    def config_path(self) -> str:
        """The file that the configuration came from."""
        return str(self._path)

    def databases(self) -> Sequence[DatabaseView]:
        """The state of every configured database."""
        return [_database(runtime) for runtime in self._sidecar.databases.values()]


def _database(runtime: DatabaseRuntime) -> DatabaseView:
    pools = [_pool(runtime.primary, "primary"), *(_pool(pool, "replica") for pool in runtime.replicas)]
    return DatabaseView(
        name=runtime.name,
        schema_version=runtime.settings.schema_version,
        routing=runtime.hub.routing,
        link=runtime.link.status(),
        stats=runtime.stats,
        primary_reached=runtime.primary_error is None,
        dual_write_enabled=runtime.settings.dual_write.enabled,
        pools=pools,
        replicas=[
            ReplicaView(
                server=replica.dsn.label,
                usable=replica.up and replica.lag <= runtime.reads.max_lag,
                lag_seconds=replica.lag if replica.up else None,
                reason=replica.error,
            )
            for replica in runtime.reads.replicas
        ],
        holds_total=runtime.hub.parked_total,
    )


def _pool(pool: Pool, role: ServerRole) -> PoolView:
    return PoolView(
        server=pool.dsn.label,
        role=role,
        active=pool.active,
        idle=pool.idle,
        connecting=pool.connecting,
        waiting=pool.waiting,
        limit=pool.size,
        cleaning=pool.cleaning,
        cancelling=pool.cancelling,
        longest_wait=pool.longest_wait,
        waits=pool.wait_times,
        connects=pool.connects_total,
        connect_failures=pool.connect_failures_total,
        paused=pool.paused,
        failing=pool.backoff.error.message if pool.backoff.error else "",
    )


def configure_logging(settings: Log) -> None:
    """Structured logs on standard error, as text or as JSON lines; coloured on a terminal only."""
    renderer: structlog.types.Processor
    if settings.format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


async def serve(path: Path, settings: Settings, users: Mapping[str, User]) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    sidecar = Sidecar(settings, users)

    def apply(changed: Settings, changed_users: Mapping[str, User]) -> None:
        configure_logging(changed.log)
        sidecar.apply(changed, changed_users)

    reloader = Reloader(path, settings, users, apply)
    admin = AdminServer(settings.admin.address, View(sidecar, path), reloader)
    stop = asyncio.Event()
    sidecar.console = ConsoleOffice(sidecar, Operations(sidecar, reloader.reload, stop.set)).open
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await admin.start()
        await sidecar.start()
    except OSError as exc:
        log.error(
            "cannot listen",
            listen=str(settings.listen.address),
            admin=str(settings.admin.address),
            error=exc.strerror or str(exc),
            hint="Another process may use the address: change [listen] or [admin] address.",
        )
        await sidecar.stop()
        await admin.stop()
        return 1
    # What is there now stays: it need not be looked at again and again, nor while thousands of clients log in.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    reloader.start()
    try:
        await stop.wait()
    finally:
        log.info("stopping", clients=len(sidecar.clients()))
        await reloader.stop()
        await sidecar.stop()
        await admin.stop()
    return 0


def run(path: Path) -> int:
    """Run a sidecar with that configuration file until it is told to stop; the exit code."""
    try:
        settings, users = read(path)
    except ConfigError as exc:
        print(f"error: {exc.message}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        return 2
    configure_logging(settings.log)
    log.info("starting", hot_path=describe())
    return uvloop.run(serve(path, settings, users))
