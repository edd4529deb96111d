"""planned → prepared: the old version's column lists are frozen and published before any DDL is visible."""

from __future__ import annotations

from dataclasses import replace

from migrator import models
from migrator.control import store
from migrator.phases.context import Context


async def run(ctx: Context) -> None:
    """Publish the frozen lists; sidecars expand ``*`` and missing lists from here on."""
    async with ctx.session.transaction() as conn:
        catalogs = await ctx.look(conn)
        tables = [models.frozen(t, catalogs[t.oid]) for t in ctx.design.tables]
        versions = [*await store.completed_versions(conn), ctx.design.migration]
        await ctx.publish(
            conn,
            lambda r: replace(
                r,
                migration=ctx.design.migration,
                phase="prepared",
                old=ctx.design.parent,
                new=ctx.design.migration,
                serves_old=True,
                serves_new=False,
                auto="old",
                percent=0,
                dual_write=False,
                versions=tuple(versions),
                hold=None,
            ),
            tables,
            epoch=True,
        )
        await store.step_done(conn, ctx.row.id, "prepare")
        await ctx.finish_phase(conn, "prepared", catalogs)
