"""DDL on busy tables: drain first, take the lock with a short timeout, back off and try again, name who blocks.

Nobody waits behind us for longer than the timeout. An autovacuum worker would only give way after deadlock_timeout,
which is longer than ours, so it is cancelled, unless it works against wraparound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg

from migrator.control.session import Session
from migrator.errors import NotObtained
from migrator.progress import Progress
from migrator.sqltext import qualified

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LockOptions:
    """How hard to try."""

    timeout_ms: int = 250
    attempts: int = 60
    drain_seconds: float = 5.0


async def with_tables_locked(
    session: Session,
    tables: Sequence[tuple[int, str, str]],
    run: Callable[[asyncpg.Connection], Awaitable[T]],
    *,
    what: str,
    options: LockOptions,
    progress: Progress,
    before: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
    drain: bool = True,
    attempts: int | None = None,
    mode: str = "ACCESS EXCLUSIVE",
) -> T:
    """Run a step in one transaction with locks on tables, taken in OID order, on partitions after their parents.

    Args:
        tables: (oid, schema, name).
        before: what the transaction does before it takes the locks.
        attempts: how often; by default the options' number.

    Raises:
        NotObtained: not within the attempts; the message names the blockers.
    """
    ordered = sorted(tables)
    limit = attempts or options.attempts
    for attempt in range(1, limit + 1):
        oids = await _with_partitions(session.conn, [t[0] for t in ordered])
        if drain and ordered:
            await _drain(session.conn, oids, options.drain_seconds, progress)
        try:
            async with session.transaction() as conn:
                await conn.execute(f"SET LOCAL lock_timeout = '{options.timeout_ms}ms'")
                if before is not None:
                    await before(conn)
                for _, schema, name in ordered:
                    await conn.execute(f"LOCK TABLE {qualified(schema, name)} IN {mode} MODE")
                return await run(conn)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            blockers = await blocking(session.conn, oids)
            await _cancel_autovacuum(session.conn, blockers, progress)
            said = "; ".join(describe(b) for b in blockers[:5]) or "short transactions"
            if attempt == limit:
                raise NotObtained(
                    f"{what}: no lock after {limit} attempts of {options.timeout_ms} ms; in the way: {said}",
                    hint="End the long transactions, then run the same command again.",
                    data={"blockers": blockers},
                ) from None
            progress.wait(f"{what}: lock not obtained (attempt {attempt} of {limit}); in the way: {said}")
            await asyncio.sleep(min(2.0, 0.05 * attempt))
    raise AssertionError("unreachable")


async def _with_partitions(conn: asyncpg.Connection, oids: Sequence[int]) -> list[int]:
    rows = await conn.fetch(
        "SELECT DISTINCT t.relid::oid::bigint FROM unnest($1::oid[]) AS o, pg_partition_tree(o::regclass) AS t",
        list(oids),
    )
    return list({*oids, *(int(r[0]) for r in rows)})


async def blocking(conn: asyncpg.Connection, oids: Sequence[int]) -> list[dict[str, Any]]:
    """Who holds locks on the tables, the oldest transaction first. Prepared transactions have no pid."""
    rows = await conn.fetch(
        "SELECT l.relation::regclass::text AS table, l.pid, l.mode, a.application_name AS application,"
        "  a.backend_type, a.state, left(a.query, 120) AS query, l.virtualtransaction,"
        "  extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds"
        " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY ($1::oid[])"
        "   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        "   AND l.pid IS DISTINCT FROM pg_backend_pid()"
        " ORDER BY a.xact_start NULLS FIRST",
        list(oids),
    )
    return [dict(r) for r in rows]


def describe(blocker: dict[str, Any]) -> str:
    """One blocker in words."""
    if blocker["pid"] is None:
        return f"a prepared transaction holds {blocker['mode']} on {blocker['table']}"
    return (
        f"pid {blocker['pid']} ({blocker['application'] or blocker['backend_type']}, {blocker['state']},"
        f" {blocker['seconds'] or 0:.1f} s): {blocker['query']}"
    )


async def _drain(conn: asyncpg.Connection, oids: Sequence[int], limit: float, progress: Progress) -> None:
    """Wait, without queueing, until no transaction that is older than a moment holds a lock."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        old = [b for b in await blocking(conn, oids) if b["pid"] is None or (b["seconds"] or 0) > 0.25]
        if not old:
            return
        progress.wait("waiting for older transactions: " + "; ".join(describe(b) for b in old[:3]))
        await asyncio.sleep(0.05)


async def _cancel_autovacuum(
    conn: asyncpg.Connection, blockers: Sequence[dict[str, Any]], progress: Progress
) -> None:
    for blocker in blockers:
        if blocker["backend_type"] == "autovacuum worker" and "wraparound" not in (blocker["query"] or ""):
            try:
                await conn.execute("SELECT pg_cancel_backend($1)", blocker["pid"])
                progress.line(f"cancelled {blocker['query']}")
            except asyncpg.InsufficientPrivilegeError:
                pass
