"""closed → completed: sidecars hold their statements, old columns go, new ones get their names, all in one step.

A name gets another meaning here and reads cannot be fenced, so the transaction locks the table of sidecars and
checks that each one still holds. A sidecar lets its statements go only by updating its own row, so it waits for the
outcome. Where the locks do not come in time, the hold is released with the old routing and everything is tried again.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg

from migrator import compat, drift
from migrator.catalog import find_table, read_table
from migrator.control import acks, publish, store
from migrator.errors import DualwireError, NotObtained, from_postgres
from migrator.locks import with_tables_locked
from migrator.partitions import index_names, rename_parts
from migrator.phases.context import Context
from migrator.replace import outlive
from migrator.replace import swap as replaced
from migrator.sqltext import ident, qualified
from proxy.control.routing import Hold, Routing


class _NotHeld(Exception):
    """A sidecar had let go when its row was locked."""


async def run(ctx: Context) -> None:
    """Swap, with bounded attempts."""
    if await store.step_state(ctx.conn, ctx.row.id, "swap") == "done":
        await ctx.wait_acks()
        return
    attempts = ctx.options.swap_attempts
    for attempt in range(1, attempts + 1):
        # A hold that a killed migrator left would be taken for this one.
        await _release(ctx)
        await ctx.wait_acks()
        try:
            await _attempt(ctx)
            break
        except (_NotHeld, NotObtained) as error:
            await _release(ctx)
            if attempt == attempts:
                if isinstance(error, NotObtained):
                    raise
                raise NotObtained(
                    "a sidecar let its statements go before the swap was done",
                    hint="Run the same command again; see `dualwire status` for slow sidecars.",
                ) from None
            ctx.progress.wait(f"swap: attempt {attempt} of {attempts} failed: {error}")
            await asyncio.sleep(min(3.0, 0.2 * attempt))
        except DualwireError:
            await _release(ctx)
            raise
        except asyncpg.PostgresError as error:
            await _release(ctx)
            raise from_postgres(error, "swap") from error
    await ctx.wait_acks()
    ctx.progress.settle()


async def finish(ctx: Context) -> None:
    """``sql`` operations with onComplete, each recorded and run once; then the migration is completed."""
    for number, operation in enumerate(ctx.design.sql):
        step = f"on complete {number}"
        if not operation.on_complete or await store.step_state(ctx.conn, ctx.row.id, step) == "done":
            continue
        async with ctx.session.transaction() as conn:
            await conn.execute(f"SET LOCAL search_path = {ident(ctx.design.schema_name)}, pg_catalog")
            try:
                await conn.execute(operation.up)
            except asyncpg.PostgresError as error:
                raise from_postgres(error, step) from error
            await conn.execute("SET LOCAL search_path = pg_catalog")
            await store.step_done(conn, ctx.row.id, step, [operation.up])
    async with ctx.session.transaction() as conn:
        await ctx.finish_phase(conn, "completed")


def needs_hold(ctx: Context) -> bool:
    """Whether any name changes its meaning."""
    return bool(ctx.design.replaces) or any(t.old != t.new or t.columns for t in ctx.design.tables)


async def _attempt(ctx: Context) -> None:
    hold: int | None = None
    if needs_hold(ctx):
        async with ctx.session.transaction() as conn:
            hold = (await publish.current(conn)).revision + 1
            labels = await _labels(ctx, conn)
            wanted = Hold(hold, labels, ctx.options.hold_seconds)
            await ctx.publish(conn, lambda r: replace(r, hold=wanted), None, epoch=False)
        await acks.wait_held(ctx.conn, hold, ctx.progress, ctx.options.hold_seconds)

    async def step(conn: asyncpg.Connection) -> None:
        if hold is not None:
            await _check_held(conn, hold)
        parts = {
            i.name: await index_names(conn, t.schema_name, i.final)
            for t in ctx.design.tables
            if t.partitioned
            for i in t.indexes
        }
        statements = [s for t in ctx.design.tables for s in t.swap]
        for statement in statements:
            await conn.execute(statement)
        for table in ctx.design.tables:
            for index in table.indexes if table.partitioned else []:
                await rename_parts(conn, table, index, parts[index.name])
        for design in ctx.design.replaces:
            statements += await replaced.run(conn, design)
        await _name_not_nulls(ctx, conn)
        cleanup = [s for t in ctx.design.tables for s in t.cleanup] + ctx.design.epilogue
        for statement in cleanup:
            await conn.execute(statement)
        catalogs = await ctx.look(conn)
        before = await publish.current(conn)
        tables = ctx.models(lambda t, c: compat.completed_model(before, t, c), catalogs)
        for statement in compat.copy_functions(ctx.design, tables, catalogs):
            await conn.execute(statement)
        for design in ctx.design.replaces:
            oid = await find_table(conn, design.schema_name, design.name)
            assert oid is not None
            tables.append(outlive.swapped(before, design, await read_table(conn, oid, brief=True)))
        await ctx.publish(conn, _completed, [t for t in tables if t is not None], epoch=True)
        await store.step_done(conn, ctx.row.id, "swap", [*statements, *cleanup])
        await drift.remember(conn, ctx.row.id, ctx.design, catalogs)

    await with_tables_locked(
        ctx.session,
        [*ctx.tables, *await replaced.tables(ctx)],
        step,
        what="swap",
        options=ctx.options.lock,
        progress=ctx.progress,
        drain=False,
        attempts=3,
    )


async def _labels(ctx: Context, conn: asyncpg.Connection) -> tuple[str, ...]:
    """The tables to hold statements for, as plans name them."""
    catalogs = await ctx.look(conn)
    named = [table.label for table in ctx.design.existing]
    return tuple(dict.fromkeys([*named, *ctx.models(lambda _, catalog: catalog.qualified, catalogs)]))


def _completed(routing: Routing) -> Routing:
    assert routing.new is not None
    if routing.compat:
        return replace(routing, migration=None, phase="completed", hold=None)
    return replace(
        routing,
        migration=None,
        phase=None,
        old=routing.new,
        new=None,
        serves_old=True,
        serves_new=False,
        auto="old",
        percent=0,
        dual_write=False,
        hold=None,
    )


async def _check_held(conn: asyncpg.Connection, hold: int) -> None:
    # No sidecar can let go, and none can register, until this transaction has ended. One whose lease ran out and
    # that does not hold is ended before the next attempt.
    await conn.execute("LOCK TABLE dualwire.sidecar IN SHARE ROW EXCLUSIVE MODE")
    rows = await conn.fetch("SELECT id, held, hold_id FROM dualwire.sidecar ORDER BY id")
    for row in rows:
        if not row["held"] or row["hold_id"] != hold:
            raise _NotHeld(f"sidecar {row['id']} does not hold")


async def _release(ctx: Context) -> None:
    async with ctx.session.transaction() as conn:
        if (await publish.current(conn)).hold is not None:
            await ctx.publish(conn, lambda r: replace(r, hold=None), None, epoch=False)


async def _name_not_nulls(ctx: Context, conn: asyncpg.Connection) -> None:
    """From PostgreSQL 18 on, NOT NULL constraints have names made of the column's: let them follow its new one."""
    for table in ctx.design.tables:
        rows = await conn.fetch(
            "SELECT o.conname, a.attname FROM pg_constraint o JOIN pg_attribute a"
            " ON a.attrelid = o.conrelid AND a.attnum = o.conkey[1]"
            " WHERE o.conrelid = $1 AND o.contype = 'n' AND o.conname LIKE '%\\_dualwire\\_%'",
            table.oid,
        )
        for row in rows:
            wanted = f"{table.name}_{row['attname']}_not_null"
            taken = await conn.fetchval(
                "SELECT count(*) FROM pg_constraint WHERE conrelid = $1 AND conname = $2", table.oid, wanted
            )
            if not taken and len(wanted.encode()) <= 63:
                await conn.execute(
                    f"ALTER TABLE {qualified(table.schema_name, table.name)}"
                    f" RENAME CONSTRAINT {ident(row['conname'])} TO {ident(wanted)}"
                )
