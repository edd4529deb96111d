"""prepared → expanded: additive DDL, functions, guard, ledger and publication in one transaction."""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from migrator import models
from migrator.control import store
from migrator.design import Design
from migrator.errors import from_postgres
from migrator.locks import with_tables_locked
from migrator.partitions import fire_alike
from migrator.phases import withdraw
from migrator.phases.context import Context
from migrator.replace import steps
from migrator.sqltext import ident


def forward_of(design: Design) -> list[str]:
    """The SQL that expands, in order: what ``plan`` prints and the step runs."""
    statements = list(design.prelude)
    for table in design.tables:
        statements += table.functions
    for create in design.creates:
        statements += create.statements
    for table in design.tables:
        statements += table.expand
    statements += [s.up for s in design.sql if not s.on_complete]
    for replaced in design.replaces:
        statements += [*replaced.create, *replaced.attach, *replaced.functions, *replaced.forward]
    return statements


async def run(ctx: Context) -> None:
    """Wait until sidecars expand lists, then install the new shape."""
    await ctx.wait_acks()
    await withdraw.clean(ctx.session, ctx.progress, ctx.options)

    async def functions(conn: asyncpg.Connection) -> None:
        for statement in ctx.design.prelude:
            await conn.execute(statement)
        for table in ctx.design.tables:
            for statement in table.functions:
                await conn.execute(statement)

    async def step(conn: asyncpg.Connection) -> None:
        quoted = ident(ctx.design.schema_name)
        # What the file's author wrote is read as it was written: with the schema in the path.
        await conn.execute(f"SET LOCAL search_path = pg_catalog, {quoted}")
        for create in ctx.design.creates:
            for statement in create.statements:
                await conn.execute(statement)
        for table in ctx.design.tables:
            await conn.execute("SET LOCAL search_path = pg_catalog")
            for statement in table.expand:
                await conn.execute(statement)
        await fire_alike(conn, ctx.design.tables)
        await conn.execute(f"SET LOCAL search_path = {quoted}, pg_catalog")
        for operation in ctx.design.sql:
            if not operation.on_complete:
                await conn.execute(operation.up)
        await conn.execute("SET LOCAL search_path = pg_catalog")
        await steps.expand(ctx, conn)
        catalogs = await ctx.look(conn)
        tables = ctx.models(models.mirrored, catalogs)
        tables += await steps.both(ctx, conn, "old")
        await ctx.publish(conn, lambda r: replace(r, phase="expanded", dual_write=True), tables, epoch=True)
        await store.step_done(conn, ctx.row.id, "expand", forward_of(ctx.design))
        await ctx.finish_phase(conn, "expanded", catalogs)

    try:
        await with_tables_locked(
            ctx.session,
            ctx.tables,
            step,
            what="expand",
            before=functions,
            options=ctx.options.lock,
            progress=ctx.progress,
        )
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        raise
    except asyncpg.PostgresError as error:
        raise from_postgres(error, "expand") from error
