"""What the phases do for replaced tables; each function is called from the phase of its name."""

from __future__ import annotations

from functools import partial

import asyncpg

from migrator.catalog import CatalogTable, find_table, read_table
from migrator.control import store
from migrator.errors import Refused
from migrator.locks import with_tables_locked
from migrator.phases.backfill import Backfill
from migrator.phases.context import Context
from migrator.replace import models, outlive
from migrator.replace.design import ReplaceDesign, Side
from migrator.sqltext import ident, qualified
from proxy.rewrite.model import TableModel

FLIP = "flip"
"""The step that is done while the new table is the authoritative one."""


async def authority(ctx: Context) -> Side:
    """Which of the two tables is the authoritative one."""
    done = await store.step_state(ctx.conn, ctx.row.id, FLIP) == "done"
    return "new" if done else "old"


async def catalogs(conn: asyncpg.Connection, design: ReplaceDesign) -> tuple[CatalogTable, CatalogTable]:
    """Both tables as they are."""
    old = await read_table(conn, design.oid, brief=True)
    return old, await read_table(conn, await new_oid(conn, design), brief=True)


async def new_oid(conn: asyncpg.Connection, design: ReplaceDesign) -> int:
    """The new table's OID; refuses where somebody has dropped it."""
    oid = await find_table(conn, design.schema_name, design.temporary)
    if oid is None:
        raise Refused(
            f"the new table {design.schema_name}.{design.temporary} is gone", hint="Run `dualwire rollback`."
        )
    return oid


async def frozen(ctx: Context, conn: asyncpg.Connection) -> list[TableModel]:
    """Models with the old version's columns only."""
    return [models.frozen(d, await read_table(conn, d.oid, brief=True)) for d in ctx.design.replaces]


async def both(ctx: Context, conn: asyncpg.Connection, side: Side) -> list[TableModel]:
    """Models of both versions on one side's table."""
    return [models.both(d, *await catalogs(conn, d), side) for d in ctx.design.replaces]


async def closed(ctx: Context, conn: asyncpg.Connection, *, outlives: bool) -> list[TableModel]:
    """Models of the new version on the new table; with ``outlives`` the old version is served there too."""
    return [
        await outlive.make(conn, d, *await catalogs(conn, d))
        if outlives
        else models.closed(d, *await catalogs(conn, d))
        for d in ctx.design.replaces
    ]


async def restored(ctx: Context, conn: asyncpg.Connection) -> list[TableModel]:
    """Models after a rollback."""
    found = [models.restored(d, await read_table(conn, d.oid, brief=True)) for d in ctx.design.replaces]
    return [m for m in found if m is not None]


# -- expand --------------------------------------------------------------------------------------------------


async def expand(ctx: Context, conn: asyncpg.Connection) -> None:
    """The new tables, empty, and the mirror; in the transaction that publishes it."""
    for design in ctx.design.replaces:
        await conn.execute(f"SET LOCAL search_path = pg_catalog, {ident(design.schema_name)}")
        for statement in [*design.create, *design.attach]:
            await conn.execute(statement)
        await conn.execute("SET LOCAL search_path = pg_catalog")
        for statement in [*design.functions, *design.forward]:
            await conn.execute(statement)


# -- backfill ------------------------------------------------------------------------------------------------


def touch_statement(design: ReplaceDesign, condition: str) -> str:
    """One batch: a new version of every row in a key range; the mirror does the rest."""
    column = ident(design.touch)
    return f"UPDATE {design.sql} AS t SET {column} = t.{column} WHERE {condition}"


async def backfill(ctx: Context) -> None:
    """Touch every row, then build indexes and foreign keys of the new tables."""
    for design in ctx.design.replaces:
        await Backfill(ctx, design, partial(touch_statement, design)).run()
    for design in ctx.design.replaces:
        await _build_indexes(ctx, design)
        await _step(ctx, f"analyze {design.label}", [f"ANALYZE {design.new_sql}"])
        await _step(ctx, f"keys of {design.label}", design.keys)
        for statement in design.validate_keys:
            await _step(ctx, statement, [statement])
        await _step(ctx, f"replica identity of {design.label}", design.replica_identity)


async def _build_indexes(ctx: Context, design: ReplaceDesign) -> None:
    for index in design.indexes:
        step = f"index {index.name}"
        if await store.step_state(ctx.conn, ctx.row.id, step) == "done":
            continue
        async with ctx.session.transaction() as conn:
            await store.step_intent(conn, ctx.row.id, step, [index.sql])
        name = qualified(design.schema_name, index.name)
        valid = await ctx.conn.fetchval(
            "SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass($1)", name
        )
        if valid is False:
            await ctx.conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        if not valid:
            ctx.progress.wait(f"building index {index.final} of the new {design.label}")
            await ctx.conn.execute(index.sql)
        async with ctx.session.transaction() as conn:
            await store.step_done(conn, ctx.row.id, step, [index.sql])
        ctx.progress.settle()


async def _step(ctx: Context, name: str, statements: list[str]) -> None:
    """A few statements in one transaction, once, with short lock timeouts."""
    if not statements or await store.step_state(ctx.conn, ctx.row.id, name) == "done":
        return

    async def step(conn: asyncpg.Connection) -> None:
        for statement in statements:
            await conn.execute(statement)
        await store.step_done(conn, ctx.row.id, name, statements)
        await ctx.remember(conn)

    await with_tables_locked(
        ctx.session, [], step, what=name, options=ctx.options.lock, progress=ctx.progress
    )
    await ctx.reload()


# -- close ---------------------------------------------------------------------------------------------------


async def settle(ctx: Context) -> None:
    """After closed: other tables' foreign keys get a twin that points at the new table."""
    for design in ctx.design.replaces:
        for key in design.incoming:
            await _step(ctx, f"foreign key {key.temporary}", [key.create])
            if key.validate_sql:
                await _step(ctx, f"validate {key.temporary}", [key.validate_sql])
