"""planned → prepared: the old version's column lists are frozen and published before any DDL is visible.

The version before it, which compat may have served until now, is served no more.
"""

from __future__ import annotations

from dataclasses import replace

from migrator import models
from migrator.control import publish, store
from migrator.phases import withdraw
from migrator.phases.context import Context
from migrator.replace import steps


async def run(ctx: Context) -> None:
    """Publish the frozen lists; sidecars expand ``*`` and missing lists from here on."""
    async with ctx.session.transaction() as conn:
        await withdraw.refuse_while_spoken(conn, await publish.current(conn))
        catalogs = await ctx.look(conn)
        tables = ctx.models(models.frozen, catalogs)
        tables += await steps.frozen(ctx, conn)
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
    await withdraw.clean(ctx.session, ctx.progress, ctx.options)
