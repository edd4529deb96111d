"""expanded → backfilled: every row that has no mark yet gets the new shape, in keyset batches over the primary key.

A batch is one UPDATE of unmarked rows between two keys; it recomputes from the row as it is, so a concurrent write
wins. Its checkpoint commits with it. The batch size follows the time a batch takes; between batches the backfill
rests for replicas that lag, for the configured share of time, and while it is paused. A batch that meets a locked
row gives up soon, so that it never makes others wait for the rows it has already locked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import asyncpg

from migrator import drift
from migrator.armed import pass_fence
from migrator.control import store
from migrator.design import TableDesign
from migrator.locks import with_tables_locked
from migrator.partitions import build_index, fire_alike
from migrator.phases.context import Context
from migrator.progress import duration
from migrator.sqltext import MARK, ident, names, row
from proxy.rewrite.model import Guard

MIN_ROWS, MAX_ROWS, FIRST_ROWS = 50, 100_000, 1_000
ROW_LOCK_TIMEOUT_MS = 400
LAG_INTERVAL = 0.5


async def run(ctx: Context) -> None:
    """Backfill all tables, then build the new shape's indexes."""
    await ctx.wait_acks()
    await ddl_step(ctx, "arm", [s for t in ctx.design.tables for s in t.arm])
    for table in ctx.design.mirrored:
        await Backfill(ctx, table, partial(update_statement, table)).run()
    await ddl_step(ctx, "strengthen", [s for t in ctx.design.tables for s in t.strengthen])
    for table in ctx.design.mirrored:
        if table.strengthen:
            await _sweep(ctx, table)
    for table in ctx.design.tables:
        await _indexes(ctx, table)
        await _native(ctx, table)
    if ctx.design.replaces:
        from migrator.replace import steps  # It backfills by the class below.

        await steps.backfill(ctx)
    async with ctx.session.transaction() as conn:
        await ctx.publish(conn, lambda r: replace(r, phase="backfilled"), None, epoch=False)
        await ctx.finish_phase(conn, "backfilled")


class KeyColumn(Protocol):
    """A column of a primary key."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...


class Keyed(Protocol):
    """A table whose rows are gone through by key."""

    @property
    def label(self) -> str: ...
    @property
    def sql(self) -> str: ...
    @property
    def oid(self) -> int: ...
    @property
    def key(self) -> Sequence[KeyColumn]: ...
    @property
    def key_names(self) -> list[str]: ...
    @property
    def suppress_triggers(self) -> bool: ...
    @property
    def guard(self) -> Guard: ...


async def ddl_step(ctx: Context, name: str, statements: Sequence[str]) -> None:
    """Run a step's DDL under locks on the migrated tables, once, in one transaction with its ledger row."""
    if not statements or await store.step_state(ctx.conn, ctx.row.id, name) == "done":
        return

    async def step(conn: asyncpg.Connection) -> None:
        for statement in statements:
            await conn.execute(statement)
        await fire_alike(conn, ctx.design.tables)
        await conn.execute("SET LOCAL search_path = pg_catalog")
        await store.step_done(conn, ctx.row.id, name, statements)
        await drift.remember(conn, ctx.row.id, ctx.design)

    await with_tables_locked(
        ctx.session, ctx.tables, step, what=name, options=ctx.options.lock, progress=ctx.progress
    )
    await ctx.reload()


async def own_writes(conn: asyncpg.Connection, table: Keyed, migration: int) -> None:
    """Settings of a transaction in which the migrator itself writes rows."""
    if table.suppress_triggers:
        await conn.execute("SET LOCAL session_replication_role = 'replica'")
    if table.guard == "off":
        await conn.execute(pass_fence(migration))


async def _sweep(ctx: Context, table: TableDesign) -> None:
    """Rows that were inserted with the missing mark of another, behind the backfill: none can come any more."""
    step = f"sweep {table.label}"
    if await store.step_state(ctx.conn, ctx.row.id, step) == "done":
        return
    after: list[str] | None = None
    while True:
        async with ctx.session.transaction() as conn:
            await own_writes(conn, table, ctx.row.id)
            upper = await upper_key(conn, table, after, MAX_ROWS)
            condition = key_range(table, after is not None, upper is not None)
            await conn.execute(update_statement(table, condition), *(after or []), *(upper or []))
            if upper is None:
                await store.step_done(conn, ctx.row.id, step)
                return
        after = upper


def not_carried_over(table: TableDesign) -> str:
    """SQL: which rows the backfill must compute."""
    unmarked = f"t.{ident(MARK)} IS NULL"
    if table.guard == "sync":
        return unmarked
    # Nobody repairs what was written past the sidecars before the table was armed; see ``armed``.
    return f"({unmarked} OR (t.{ident(MARK)} < 3 AND NOT {table.right('old', 't.')}))"


def update_statement(table: TableDesign, condition: str, which: str | None = None) -> str:
    """One batch: the rows that meet a key condition, and of those the ones not carried over (or ``which``)."""
    sets = [f"{ident(m.target)} = {m.computed('t.')}" for m in table.up.mirrors]
    mark = "1::smallint"
    if table.up.ok is not None:
        mark = f"CASE WHEN {table.up.ok}({names(table.up.ok_sources, 't.')}) THEN 1::smallint END"
    sets.append(f"{ident(MARK)} = {mark}")
    chosen = which or not_carried_over(table)
    return f"UPDATE {table.sql} AS t SET {', '.join(sets)} WHERE {condition} AND {chosen}"


def key_range(table: Keyed, after: bool, upto: bool, prefix: str = "t.") -> str:
    """A key condition; parameters are texts, first those of ``after``, then those of ``upto``."""
    key = row(table.key_names, prefix)
    parts, number = [], 1
    for wanted, operator in ((after, ">"), (upto, "<=")):
        if wanted:
            values = [f"CAST(${number + i}::text AS {k.type})" for i, k in enumerate(table.key)]
            number += len(values)
            parts.append(f"{key} {operator} " + (values[0] if len(values) == 1 else f"({', '.join(values)})"))
    return " AND ".join(parts) if parts else "true"


async def upper_key(
    conn: asyncpg.Connection, table: Keyed, after: list[str] | None, rows: int
) -> list[str] | None:
    """The key that ends a chunk of so many rows; None if fewer are left."""
    texts = ", ".join(f"t.{ident(k)}::text" for k in table.key_names)
    record = await conn.fetchrow(
        f"SELECT {texts} FROM {table.sql} AS t WHERE {key_range(table, after is not None, False)}"
        f" ORDER BY {names(table.key_names, 't.')} OFFSET {rows - 1} LIMIT 1",
        *(after or []),
    )
    return None if record is None else [str(v) for v in record]


@dataclass(slots=True)
class _Pace:
    """Batch size by time, and the rate for the status line."""

    rows: int
    fixed: bool
    target: float
    rate: float = 0.0
    seconds: float = 0.0
    """How long the last batch took."""

    def note(self, seconds: float, scanned: int) -> None:
        """After a batch: follow the target, by at most a factor of two."""
        self.seconds = seconds
        if seconds > 0 and scanned:
            now = scanned / seconds
            self.rate = now if self.rate == 0 else 0.8 * self.rate + 0.2 * now
        if not self.fixed:
            factor = max(0.5, min(2.0, self.target / max(seconds, 1e-4)))
            self.rows = int(max(MIN_ROWS, min(MAX_ROWS, self.rows * factor)))

    def shrink(self) -> None:
        """A batch met a locked row."""
        if not self.fixed:
            self.rows = max(MIN_ROWS, self.rows // 2)


class Backfill:
    """The backfill of one table; ``update`` gives the statement of one batch for its key condition."""

    def __init__(self, ctx: Context, table: Keyed, update: Callable[[str], str]) -> None:
        self.ctx = ctx
        self.table = table
        options = ctx.options.backfill
        self.pace = _Pace(
            options.batch_rows or FIRST_ROWS, options.batch_rows is not None, options.target_ms / 1000
        )
        self.update = update
        self.position: list[str] | None = None
        self.done = 0
        self.total = 0
        self.scanned = 0
        self.throttle = self._configured()
        self._lag_checked = 0.0

    async def run(self) -> None:
        """From the checkpoint to the end of the table."""
        if not await self._resume():
            return
        while not await self._batch():
            await self._rest()
        self.ctx.progress.settle()
        self.ctx.progress.line(f"backfilled {self.table.label}: {self.done} rows")

    async def _resume(self) -> bool:
        """Read or make the checkpoint; False if the table is done."""
        async with self.ctx.session.transaction() as conn:
            record = await conn.fetchrow(
                "INSERT INTO dualwire.backfill AS b (migration, table_name, rows_total)"
                " VALUES ($1, $2, (SELECT CASE WHEN c.reltuples > 0 THEN c.reltuples::bigint"
                f"  ELSE (SELECT count(*) FROM {self.table.sql}) END FROM pg_class c WHERE oid = $3))"
                " ON CONFLICT (migration, table_name) DO UPDATE SET throttle = ''"
                " RETURNING position, rows_done, rows_total, finished_at, batch_rows",
                self.ctx.row.id,
                self.table.label,
                self.table.oid,
            )
        if record["finished_at"] is not None:
            return False
        self.position = record["position"]
        self.done, self.total = record["rows_done"], record["rows_total"]
        if self.position is not None:
            if record["batch_rows"] and not self.pace.fixed:
                self.pace.rows = record["batch_rows"]
            self.ctx.progress.line(
                f"backfill of {self.table.label} goes on after key {', '.join(self.position)}"
                f" ({self.done} rows done)"
            )
        return True

    async def _batch(self) -> bool:
        """One batch in one transaction; whether it was the last."""
        began = time.monotonic()
        try:
            async with self.ctx.session.transaction() as conn:
                await conn.execute(f"SET LOCAL lock_timeout = '{ROW_LOCK_TIMEOUT_MS}ms'")
                await own_writes(conn, self.table, self.ctx.row.id)
                upper = await upper_key(conn, self.table, self.position, self.pace.rows)
                condition = key_range(self.table, self.position is not None, upper is not None)
                arguments = [*(self.position or []), *(upper or [])]
                tag = await conn.execute(self.update(condition), *arguments)
                updated = int(tag.rsplit(" ", 1)[1])
                self.scanned = self.pace.rows if upper is not None else updated
                self.pace.note(time.monotonic() - began, self.scanned)
                self.position = upper if upper is not None else self.position
                self.done += self.scanned
                await conn.execute(
                    "UPDATE dualwire.backfill SET position = $3, rows_done = $4, rate = $5, batch_rows = $6,"
                    " throttle = $7, updated_at = clock_timestamp(),"
                    " finished_at = CASE WHEN $8 THEN clock_timestamp() END"
                    " WHERE migration = $1 AND table_name = $2",
                    self.ctx.row.id,
                    self.table.label,
                    self.position,
                    self.done,
                    self.pace.rate,
                    self.pace.rows,
                    self.throttle,
                    upper is None,
                )
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            self.pace.shrink()
            await self._reread()
            await self._waiting("a row is locked by a long transaction")
            await asyncio.sleep(0.1)
            return False
        self._show()
        return upper is None

    async def _reread(self) -> None:
        """After a batch that was rolled back: what is true stands in the database."""
        record = await self.ctx.conn.fetchrow(
            "SELECT position, rows_done FROM dualwire.backfill WHERE migration = $1 AND table_name = $2",
            self.ctx.row.id,
            self.table.label,
        )
        self.position, self.done = record["position"], record["rows_done"]

    async def _rest(self) -> None:
        """Between batches: pause, lag, configured rest."""
        options = self.ctx.options.backfill
        while await self.ctx.conn.fetchval(
            "SELECT paused FROM dualwire.migration WHERE id = $1", self.ctx.row.id
        ):
            await self._waiting("paused; `dualwire resume` goes on")
            await asyncio.sleep(0.2)
        while time.monotonic() - self._lag_checked >= LAG_INTERVAL:
            lag = await replica_lag(self.ctx.conn)
            if lag <= options.max_lag:
                self._lag_checked = time.monotonic()
                break
            await self._waiting(f"a replica is {lag:.1f} s behind (limit {options.max_lag:g} s)")
            await asyncio.sleep(0.2)
        self.throttle = self._configured()
        share = min(options.throttle, 0.95)
        rest = self.pace.seconds * share / (1 - share)
        if options.max_rate:
            rest = max(rest, self.scanned / options.max_rate - self.pace.seconds)
        if rest > 0:
            await asyncio.sleep(rest)

    def _configured(self) -> str:
        """Why it rests even when nothing is in the way."""
        options = self.ctx.options.backfill
        parts = []
        if options.throttle:
            parts.append(f"resting {options.throttle:.0%} of the time")
        if options.max_rate:
            parts.append(f"at most {options.max_rate:g} rows/s")
        return ", ".join(parts)

    async def _waiting(self, reason: str) -> None:
        if reason != self.throttle:
            self.throttle = reason
            await self.ctx.conn.execute(
                "UPDATE dualwire.backfill SET throttle = $3, updated_at = clock_timestamp()"
                " WHERE migration = $1 AND table_name = $2",
                self.ctx.row.id,
                self.table.label,
                reason,
            )
        self._show()

    def _show(self) -> None:
        total = max(self.total, self.done)
        share = 100 * self.done / total if total else 100.0
        eta = (total - self.done) / self.pace.rate if self.pace.rate > 0 else 0.0
        text = (
            f"backfill {self.table.label}: {self.done}/{total} rows ({share:.0f} %), {self.pace.rate:.0f} rows/s,"
            f" batch {self.pace.rows}, ETA {duration(eta)}"
        )
        self.ctx.progress.wait(text + (f"; throttled: {self.throttle}" if self.throttle else ""))


async def replica_lag(conn: asyncpg.Connection) -> float:
    """Seconds that the slowest streaming replica is behind in replay."""
    value = await conn.fetchval(
        "SELECT max(extract(epoch FROM replay_lag))::float8 FROM pg_stat_replication"
        " WHERE state = 'streaming' AND pg_wal_lsn_diff(sent_lsn, replay_lsn) > 0"
    )
    return float(value or 0.0)


async def _indexes(ctx: Context, table: TableDesign) -> None:
    """CONCURRENTLY cannot stand in a transaction: intent, look at the catalog, build, done."""
    for index in table.indexes:
        step = f"index {index.name}"
        if await store.step_state(ctx.conn, ctx.row.id, step) == "done":
            continue
        async with ctx.session.transaction() as conn:
            await store.step_intent(conn, ctx.row.id, step, [index.create])
        valid = await ctx.conn.fetchval(
            "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
            table.schema_name,
            index.name,
        )
        if valid is False and not table.partitioned:
            await ctx.conn.execute(
                f"DROP INDEX CONCURRENTLY IF EXISTS {ident(table.schema_name)}.{ident(index.name)}"
            )
        if not valid:
            ctx.progress.wait(f"building index {index.final} for the new shape of {table.label}")
            if table.partitioned:
                await build_index(ctx.conn, table, index)
            else:
                await ctx.conn.execute(index.create)
        async with ctx.session.transaction() as conn:
            await store.step_done(conn, ctx.row.id, step, [index.create])
        ctx.progress.settle()


async def _native(ctx: Context, table: TableDesign) -> None:
    """Constraints of added columns that bind from the start are validated here."""
    if not table.native_validate:
        return
    step = f"validate {table.label}"
    if await store.step_state(ctx.conn, ctx.row.id, step) == "done":
        return
    async with ctx.session.transaction() as conn:
        for statement in table.native_validate:
            await conn.execute(statement)
        await store.step_done(conn, ctx.row.id, step, table.native_validate)
