"""The end of compat: the version before the last migration is served no more, and what served it is dropped.

Refused while clients speak that version. The state is published first; functions and twins go when every sidecar has
acknowledged, because until then a statement that uses them may be under way.
"""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from migrator import compat, models
from migrator.control import acks, publish, store
from migrator.control.session import Session
from migrator.errors import Refused
from migrator.phases.context import Context, Options
from migrator.progress import Progress
from migrator.replace import steps
from proxy.control.routing import Routing

ENDED = "compat ended"


async def refuse_while_spoken(conn: asyncpg.Connection, routing: Routing) -> None:
    """Refuse to go on while clients speak a version that compat serves."""
    if not routing.compat:
        return
    speaking = await acks.clients_on_old(conn)
    if speaking:
        said = ", ".join(f"{s['service']} ({s['clients']})" for s in speaking)
        raise Refused(
            f"clients still speak version {routing.old}, which compat serves: {said}",
            hint=f"Deploy code for version {routing.new} there (schema_version), then run the command again.",
            data={"services": speaking},
        )


async def clean(session: Session, progress: Progress, options: Options) -> None:
    """Drop what compat has left, once nobody can be using it."""
    if not await compat.left(session.conn):
        return
    routing = await publish.current(session.conn)
    await acks.wait_epoch(session.conn, routing, progress, options.ack_timeout)
    async with session.transaction() as conn:
        await compat.drop(conn)


async def completed(session: Session, progress: Progress, options: Options) -> str:
    """By hand, after the migration was completed; gives its name."""
    async with session.transaction() as conn:
        routing = await publish.current(conn)
        if routing.migration is not None or not routing.compat:
            raise Refused(
                "no version is served by compat",
                hint="See `dualwire status` for the versions that are served.",
            )
        await refuse_while_spoken(conn, routing)
        tables = await models.untouched(conn, routing.tables, set())
        row = await store.latest(conn, routing.new)
        await publish.publish(conn, replace(compat.ended(routing), tables=tables), epoch=True)
        await store.event(conn, ENDED, row.id if row else None, {"version": routing.old})
    await clean(session, progress, options)
    return routing.current


async def closed(ctx: Context) -> None:
    """By hand, between closed and the swap."""
    async with ctx.session.transaction() as conn:
        routing = await publish.current(conn)
        await refuse_while_spoken(conn, routing)
        catalogs = await ctx.look(conn)
        tables = ctx.models(models.closed, catalogs)
        tables += await steps.closed(ctx, conn, outlives=False)
        await ctx.publish(conn, lambda r: replace(r, serves_old=False, dual_write=False), tables, epoch=True)
        await store.event(conn, ENDED, ctx.row.id, {"version": routing.old})
    await clean(ctx.session, ctx.progress, ctx.options)
