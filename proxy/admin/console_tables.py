"""What SHOW shows: the columns and rows of every table of the console.

Columns have PgBouncer's names where it has the column, in its order, and ours come after them. What this sidecar has no
figure for is NULL, never a made-up zero. Nothing is kept: each row is read from the running process at that moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from proxy.admin.console import INT8, Column, Row, Value
from proxy.admin.metrics import dualwire_version
from proxy.backend.pool import Pool
from proxy.config import CONSOLE_DATABASE, Settings
from proxy.config_changes import flat, is_live
from proxy.server.client import ClientConnection
from proxy.server.database import DatabaseRuntime
from proxy.server.sidecar import Sidecar

MAX_STATEMENT: Final = 200
"""Characters of a statement that SHOW PLANS shows."""

Rows = Iterator[Row]


@dataclass(frozen=True, slots=True)
class Table:
    """One SHOW."""

    columns: tuple[Column, ...]
    rows: Callable[[Sidecar], Iterable[Row]]


def _columns(*names: str) -> tuple[Column, ...]:
    """Columns of type text; int8 where the name ends in ``#``."""
    return tuple(
        Column(name.removesuffix("#"), INT8) if name.endswith("#") else Column(name) for name in names
    )


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _moment(seconds: float | None) -> str | None:
    """A point in time as PgBouncer writes it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _peer(address: Any) -> tuple[str | None, int | None]:
    """Host and port of a socket's name; a unix socket has no port."""
    if isinstance(address, tuple) and len(address) >= 2:
        return str(address[0]), int(address[1])
    return "unix", None


def _microseconds(seconds: float) -> tuple[int, int]:
    """Whole seconds, and the rest in microseconds."""
    return int(seconds), int(seconds % 1 * 1_000_000)


# -- pools -------------------------------------------------------------------------------------------------------------


def _pools(sidecar: Sidecar) -> Rows:
    for database in sidecar.databases.values():
        clients = [client for client in _described(sidecar) if client.get("database") == database.name]
        waiting = sum(client.get("state") == "waiting" for client in clients)
        for pool in database.pools:
            primary = pool is database.primary
            yield (
                database.name,
                pool.dsn.user,
                # Every client of the database is a client of the primary's pool; of a replica's, who reads there now.
                max(0, len(clients) - waiting) if primary else pool.active,
                pool.waiting,
                pool.cancelling,
                0,
                pool.active,
                pool.cancelling,
                0,
                pool.idle,
                0,
                pool.cleaning,
                pool.connecting,
                *_microseconds(pool.longest_wait),
                database.settings.pool_mode,
                pool.dsn.label,
                "primary" if primary else "replica",
                pool.size,
                _yes(pool.paused),
                pool.backoff.error.message if pool.backoff.error else None,
            )


# -- clients and servers -----------------------------------------------------------------------------------------------


def _described(sidecar: Sidecar) -> list[Mapping[str, Any]]:
    return [description(client) for client in sidecar.clients()]


def description(client: ClientConnection) -> dict[str, Any]:
    """What there is to say of a client."""
    described = {
        "transport": client.transport,
        "id": client.session.number if client.session else None,
        "database": client.database.name if client.database else None,
        **client.describe(),
    }
    if client.session is None and client.login is None:
        # Its protocol is the console's now.
        described |= {"database": CONSOLE_DATABASE, "state": "active", "speaks": None}
    return described


def _wait(described: Mapping[str, Any]) -> tuple[int, int]:
    since = described.get("request_at") if described.get("state") == "waiting" else None
    return _microseconds(max(0.0, time.time() - since)) if since else (0, 0)


def _clients(sidecar: Sidecar) -> Rows:
    for client in _described(sidecar):
        transport = client["transport"]
        local, local_port = _peer(transport.get_extra_info("sockname")) if transport else (None, None)
        address, port = _peer(transport.get_extra_info("peername")) if transport else (None, None)
        database = sidecar.databases.get(client.get("database") or "")
        number = client.get("id")
        yield (
            "C",
            client.get("user"),
            client.get("database"),
            client.get("state"),
            client.get("address") or address,
            client.get("port") or port,
            local,
            local_port,
            _moment(client.get("connected_at")),
            _moment(client.get("request_at")),
            *_wait(client),
            0,
            None if number is None else f"c{number}",
            None if client.get("server_pid") is None else f"s{client['server_pid']}",
            client.get("server_pid"),
            client.get("tls") or "",
            client.get("application_name") or "",
            client.get("prepared_statements"),
            number,
            client.get("speaks"),
            _version(database, client.get("speaks"), number),
            None if database is None else database.hub.routing.epoch,
            _yes(client.get("in_transaction")),
            ", ".join(sorted(client.get("pinned") or ())),
            client.get("blocked") or "",
        )


def _version(database: DatabaseRuntime | None, speaks: str | None, number: int | None) -> str | None:
    """The version of the schema that a client gets now."""
    if database is None or speaks is None or number is None:
        return None
    routing = database.hub.routing
    side = routing.resolve(speaks, number)
    return routing.version(side) if isinstance(side, str) else None


def _servers(sidecar: Sidecar) -> Rows:
    users = {c["server_pid"]: c for c in _described(sidecar) if c.get("server_pid") is not None}
    now = time.time()
    for database in sidecar.databases.values():
        for pool in (*database.pools, database.spare):
            for server in pool.servers():
                connection = server.connection
                client = users.get(connection.pid) if server.state == "active" else None
                host, port = _peer(connection.local_address)
                parameters = connection.startup_parameters
                yield (
                    "S",
                    parameters.get("user"),
                    database.name,
                    server.state,
                    pool.dsn.host,
                    pool.dsn.port,
                    host,
                    port,
                    _moment(now - server.age),
                    _moment(client.get("request_at")) if client else None,
                    0,
                    0,
                    int(server.stale),
                    f"s{connection.pid}",
                    f"c{client.get('id')}" if client else None,
                    connection.pid,
                    "TLS" if connection.encrypted else "",
                    parameters.get("application_name", ""),
                    len(connection.prepared.texts),
                    None,
                    _role(database, pool),
                )


def _role(database: DatabaseRuntime, pool: Pool) -> str:
    if pool is database.spare:
        return "probe"
    return "primary" if pool is database.primary else "replica"


# -- figures -----------------------------------------------------------------------------------------------------------


def _stats(sidecar: Sidecar) -> Rows:
    for database in sidecar.databases.values():
        stats = database.stats
        targets = {"primary": 0, "replica": 0}
        for (target, _), count in list(stats.decisions.items()):
            targets[target] = targets.get(target, 0) + count
        waited = sum(pool.wait_times.total for pool in database.pools)
        yield (
            database.name,
            stats.transactions,
            stats.queries,
            stats.bytes_from_clients,
            stats.bytes_to_clients,
            int(stats.latency.total * 1_000_000),
            int(waited * 1_000_000),
            stats.clients_total,
            stats.errors,
            targets["primary"],
            targets["replica"],
            sum(stats.rewrites.values()),
            stats.refused,
            stats.mirrored,
            stats.guarded,
            stats.fallbacks,
            stats.plan_hits,
            stats.plan_templates,
            stats.plan_misses,
            sum(stats.pins_total.values()),
        )


def _migrations(sidecar: Sidecar) -> Rows:
    for database in sidecar.databases.values():
        routing, link = database.hub.routing, database.link.status()
        yield (
            database.name,
            routing.migration,
            routing.phase,
            routing.epoch,
            link.acknowledged[1],
            routing.old,
            routing.new,
            ", ".join(routing.visible_versions),
            routing.auto,
            routing.percent,
            _yes(routing.dual_write),
            _yes(database.settings.dual_write.enabled),
            ", ".join(routing.hold.tables) if routing.hold else None,
            database.stats.parked,
            _yes(link.connected),
            link.problem or None,
            _yes(routing.compat),
        )


def _plans(sidecar: Sidecar) -> Rows:
    for database in sidecar.databases.values():
        version = database.hub.routing.version
        for cache, entries in (("text", database.book.plans()), ("template", database.book.templates())):
            for (side, search_path, text), plan, hits in entries:
                yield (
                    database.name,
                    version(side),
                    ", ".join(search_path),
                    _statement(text),
                    plan.kind.name.lower(),
                    plan.reason,
                    _yes(plan.rewritten),
                    _yes(plan.mirrored),
                    _yes(plan.guarded),
                    plan.refusal.sqlstate if plan.refusal else None,
                    ", ".join(plan.tables),
                    cache,
                    hits,
                )


def _caches(sidecar: Sidecar) -> Rows:
    for database in sidecar.databases.values():
        for name, counts in database.stats.caches.items():
            yield (
                database.name,
                name,
                counts.entries,
                counts.bytes,
                counts.hits,
                counts.misses,
                counts.evictions,
            )


def _statement(text: bytes) -> str:
    shown = " ".join(text.decode("utf-8", "replace").split())
    return shown if len(shown) <= MAX_STATEMENT else shown[: MAX_STATEMENT - 1] + "…"


# -- configuration -----------------------------------------------------------------------------------------------------


def _config(sidecar: Sidecar) -> Rows:
    defaults = dict(flat(_defaults(sidecar.settings)))
    for path, value in sorted(flat(sidecar.settings)):
        yield path, _shown(value), _shown(defaults.get(path)), _yes(is_live(path))


def _defaults(settings: Settings) -> Settings:
    """The same databases, with nothing set that has a default."""
    return Settings.model_construct(
        databases={
            name: type(database)(primary=database.primary) for name, database in settings.databases.items()
        }
    )


def _shown(value: Any) -> str | None:
    """A value as it would stand in the file; a connection string without its password."""
    if isinstance(value, tuple):
        return " ".join(_shown(part) or "" for part in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _databases(sidecar: Sidecar) -> Rows:
    for database in sidecar.databases.values():
        settings, dsn = database.settings, database.settings.primary
        yield (
            database.name,
            dsn.host,
            dsn.port,
            dsn.database,
            dsn.user,
            settings.pool_size,
            settings.min_pool_size,
            settings.reserve_pool_size,
            int(sidecar.settings.limits.server_lifetime),
            settings.pool_mode,
            settings.pool_size + settings.reserve_pool_size,
            sum(1 for _ in database.primary.servers()),
            int(database.paused),
            0,
            len(database.replicas),
            settings.schema_version,
            _yes(database.primary_error is None),
        )


def _help(_sidecar: Sidecar) -> Rows:
    yield from _HELP


_HELP: Final[tuple[tuple[Value, Value], ...]] = (
    ("SHOW POOLS", "Server connections and waiting clients, by server."),
    ("SHOW CLIENTS", "Every client."),
    ("SHOW SERVERS", "Every server connection."),
    ("SHOW STATS", "Totals since the start, by database; times in microseconds."),
    ("SHOW MIGRATIONS", "The state that this sidecar routes and rewrites by, by database."),
    ("SHOW PLANS", "Cached decisions about statements."),
    ("SHOW CACHES", "How much is cached, and how often that was of use."),
    ("SHOW CONFIG", "Every key of the configuration in force."),
    ("SHOW DATABASES", "The databases that clients can connect to."),
    ("SHOW VERSION", "The version of this sidecar."),
    ("RELOAD", "Read the configuration again, as SIGHUP does."),
    (
        "PAUSE [db]",
        "Let no transaction begin, and answer when none is open (with pool_mode session: when the clients have gone).",
    ),
    ("RESUME [db]", "End PAUSE or KILL."),
    ("RECONNECT [db]", "Replace server connections as soon as they are not in use."),
    ("KILL [db]", "Disconnect all clients and servers at once; new clients wait for RESUME."),
    ("KILL_CLIENT id", "Disconnect one client; SHOW CLIENTS has the ids."),
    ("SHUTDOWN", "Let open transactions end, then stop, as SIGTERM does."),
)

_CONNECTION: Final = (
    *("type", "user", "database", "state", "addr", "port#", "local_addr", "local_port#", "connect_time"),
    *("request_time", "wait#", "wait_us#", "close_needed#", "ptr", "link", "remote_pid#", "tls"),
    *("application_name", "prepared_statements#", "id#"),
)

SHOWN: Final[Mapping[str, Table]] = {
    "pools": Table(
        _columns(
            *(
                "database",
                "user",
                "cl_active#",
                "cl_waiting#",
                "cl_active_cancel_req#",
                "cl_waiting_cancel_req#",
            ),
            *("sv_active#", "sv_active_cancel#", "sv_being_canceled#", "sv_idle#", "sv_used#", "sv_tested#"),
            *(
                "sv_login#",
                "maxwait#",
                "maxwait_us#",
                "pool_mode",
                "server",
                "role",
                "pool_size#",
                "paused",
                "error",
            ),
        ),
        _pools,
    ),
    "clients": Table(
        _columns(*_CONNECTION, "speaks", "version", "epoch#", "in_transaction", "pinned", "blocked"),
        _clients,
    ),
    "servers": Table(_columns(*_CONNECTION, "role"), _servers),
    "stats": Table(
        _columns(
            *("database", "total_xact_count#", "total_query_count#", "total_received#", "total_sent#"),
            *("total_query_time#", "total_wait_time#", "total_logins#", "total_errors#", "to_primary#"),
            *("to_replica#", "rewritten#", "refused#", "mirrored#", "guarded#", "fallbacks#", "plan_hits#"),
            *("plan_templates#", "plan_misses#", "total_pins#"),
        ),
        _stats,
    ),
    "migrations": Table(
        _columns(
            *(
                "database",
                "migration",
                "phase",
                "epoch#",
                "acknowledged_epoch#",
                "old",
                "new",
                "serves",
                "auto",
            ),
            *(
                "percent#",
                "dual_write",
                "dual_write_enabled",
                "hold",
                "parked#",
                "control_connected",
                "problem",
                "compat",
            ),
        ),
        _migrations,
    ),
    "plans": Table(
        _columns(
            *("database", "version", "search_path", "statement", "kind", "reason", "rewritten", "mirrored"),
            *("guarded", "refused", "tables", "found_by", "hits#"),
        ),
        _plans,
    ),
    "caches": Table(
        _columns(*("database", "cache", "entries#", "bytes#", "hits#", "misses#", "evictions#")), _caches
    ),
    "config": Table(_columns("key", "value", "default", "changeable"), _config),
    "databases": Table(
        _columns(
            *("name", "host", "port#", "database", "force_user", "pool_size#", "min_pool_size#"),
            *(
                "reserve_pool_size#",
                "server_lifetime#",
                "pool_mode",
                "max_connections#",
                "current_connections#",
            ),
            *("paused#", "disabled#", "replicas#", "schema_version", "reached"),
        ),
        _databases,
    ),
    "version": Table(_columns("version"), lambda _: [(f"dualwire {dualwire_version()}",)]),
    "help": Table(_columns("command", "description"), _help),
}
