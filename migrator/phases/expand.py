"""prepared → expanded: additive DDL, functions, guard, ledger and publication in one transaction."""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from migrator import models
from migrator.control import store
from migrator.errors import from_postgres
from migrator.locks import with_tables_locked
from migrator.phases.context import Context


def forward(ctx: Context) -> list[str]:
    """The SQL of the step, in order."""
    statements = list(ctx.design.prelude)
    for create in ctx.design.creates:
        statements += create.statements
    for table in ctx.design.tables:
        statements += table.expand
    statements += [s.up for s in ctx.design.sql if not s.on_complete]
    return statements


async def run(ctx: Context) -> None:
    """Wait until sidecars expand lists, then install the new shape."""
    await ctx.wait_acks()

    async def step(conn: asyncpg.Connection) -> None:
        schema = ctx.design.schema_name
        quoted = '"' + schema.replace('"', '""') + '"'
        for statement in ctx.design.prelude:
            await conn.execute(statement)
        # What the file's author wrote is read as it was written: with the schema in the path.
        await conn.execute(f"SET LOCAL search_path = pg_catalog, {quoted}")
        for create in ctx.design.creates:
            for statement in create.statements:
                await conn.execute(statement)
        for table in ctx.design.tables:
            await conn.execute("SET LOCAL search_path = pg_catalog")
            for statement in table.expand:
                await conn.execute(statement)
        await conn.execute(f"SET LOCAL search_path = {quoted}, pg_catalog")
        for operation in ctx.design.sql:
            if not operation.on_complete:
                await conn.execute(operation.up)
        await conn.execute("SET LOCAL search_path = pg_catalog")
        tables = [await models.mirrored(conn, t) for t in ctx.design.tables]
        await ctx.publish(conn, lambda r: replace(r, phase="expanded", dual_write=True), tables, epoch=True)
        await store.step_done(conn, ctx.row.id, "expand", forward(ctx))
        await ctx.finish_phase(conn, "expanded")

    try:
        await with_tables_locked(
            ctx.session,
            ctx.tables,
            step,
            what="expand",
            options=ctx.options.lock,
            progress=ctx.progress,
        )
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        raise
    except asyncpg.PostgresError as error:
        raise from_postgres(error, "expand") from error
