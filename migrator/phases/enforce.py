"""The constraints that wait for closing (``enforce: at_close``): made and validated just before the point of no return.

Where rows break one, all are taken back and closing is refused, so that a rollback or old clients that come back find
everything as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from migrator import drift
from migrator.control import store
from migrator.design import AtClose, TableDesign
from migrator.errors import Refused
from migrator.locks import with_tables_locked
from migrator.phases.context import Context
from migrator.sqltext import qualified

_BROKEN = (asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError, asyncpg.CheckViolationError)


async def run(ctx: Context) -> None:
    """Make the constraints that wait for closing; refuse, with nothing changed, where rows break one."""
    items = [(table, item) for table in ctx.design.tables for item in table.at_close]
    try:
        for table, item in items:
            await _enforce(ctx, table, item)
    except Refused:
        # Those that were made already would bind an old client that comes back.
        for table, item in items:
            await _unmake(ctx, table, item)
        raise


async def _enforce(ctx: Context, table: TableDesign, item: AtClose) -> None:
    name = _step_name(table, item)
    if await store.step_state(ctx.conn, ctx.row.id, name) == "done":
        return
    if await store.step_state(ctx.conn, ctx.row.id, name) == "intent":
        await _unmake(ctx, table, item)  # what an attempt that was killed has left
    async with ctx.session.transaction() as conn:
        await store.step_intent(conn, ctx.row.id, name, [item.build, *item.validate_])
    try:
        if item.kind == "unique":
            await ctx.conn.execute(item.build)
        else:
            await _locked(ctx, name, [item.build])
        async with ctx.session.transaction() as conn:
            for statement in item.validate_:
                await conn.execute(statement)
            await store.step_done(conn, ctx.row.id, name, [item.build, *item.validate_])
            await drift.remember(conn, ctx.row.id, ctx.design)
    except _BROKEN as error:
        raise Refused(
            f"{table.label}.{item.label}: rows break the constraint {item.name}: {error}",
            sqlstate=error.sqlstate or "",
            detail=error.detail or "",
            hint="Correct these rows, then run the same command again; a rollback is still possible.",
        ) from error
    await ctx.reload()


async def _unmake(ctx: Context, table: TableDesign, item: AtClose) -> None:
    if item.kind == "unique":
        await ctx.conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {qualified(table.schema_name, item.own)}")
        statements = []
    else:
        statements = item.unmake
    await _locked(ctx, f"drop {item.own}", statements, _step_name(table, item))


def _step_name(table: TableDesign, item: AtClose) -> str:
    return f"enforce {table.label} {item.own}"


async def _locked(ctx: Context, name: str, statements: Sequence[str], forget: str | None = None) -> None:
    async def step(conn: asyncpg.Connection) -> None:
        for statement in statements:
            await conn.execute(statement)
        await conn.execute("DELETE FROM dualwire.step WHERE migration = $1 AND name = $2", ctx.row.id, forget)
        await drift.remember(conn, ctx.row.id, ctx.design)

    await with_tables_locked(
        ctx.session,
        ctx.tables if statements else [],
        step,
        what=name,
        options=ctx.options.lock,
        progress=ctx.progress,
    )
    await ctx.reload()
