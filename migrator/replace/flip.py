"""The flip: the new table becomes the authoritative one for clients of both versions, or the old one again.

One transaction under SHARE ROW EXCLUSIVE on both tables, the old one first: it waits for the writers in flight, and
those that queued behind it find the triggers of the other direction. Statements that a sidecar planned before it
knew reach the former table, whose reverse mirror carries them.
"""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from migrator.control import store
from migrator.locks import with_tables_locked
from migrator.phases.context import Context
from migrator.replace import steps
from migrator.replace.design import Side
from proxy.control.routing import Routing


async def flip(ctx: Context, to: Side) -> Routing:
    """Make one side's tables the authoritative ones and publish it, with all of ``auto`` on that version."""
    percent = 100 if to == "new" else 0
    tables = []
    for design in ctx.design.replaces:
        tables.append((design.oid, design.schema_name, design.name))
        oid = await steps.new_oid(ctx.conn, design)
        tables.append((oid, design.schema_name, design.temporary))

    async def step(conn: asyncpg.Connection) -> Routing:
        done = []
        for design in ctx.design.replaces:
            change = design.flip if to == "new" else design.flip_back
            mirror = design.forward_flipped if to == "new" else design.forward
            for statement in [*design.unmirror, *change, *mirror]:
                await conn.execute(statement)
                done.append(statement)
        routing = await ctx.publish(
            conn,
            lambda r: replace(r, phase="cutover" if percent else "verified", auto=to, percent=percent),
            await steps.both(ctx, conn, to),
            epoch=True,
        )
        if to == "new":
            await store.step_done(conn, ctx.row.id, steps.FLIP, done)
        else:
            await conn.execute(
                "DELETE FROM dualwire.step WHERE migration = $1 AND name = $2", ctx.row.id, steps.FLIP
            )
        await conn.execute(
            "UPDATE dualwire.migration SET cutover_at = CASE WHEN $2 THEN clock_timestamp() END WHERE id = $1",
            ctx.row.id,
            to == "new",
        )
        await store.event(conn, "flip", ctx.row.id, {"to": to})
        await store.event(conn, "cutover", ctx.row.id, {"percent": percent})
        await ctx.finish_phase(conn, "cutover" if percent else "verified")
        return routing

    return await with_tables_locked(
        ctx.session,
        tables,
        step,
        what="flip",
        options=ctx.options.lock,
        progress=ctx.progress,
        mode="SHARE ROW EXCLUSIVE",
    )


async def needed(ctx: Context, percent: int) -> Side | None:
    """The side to flip to, if any: at 100 percent to the new tables, at 0 back."""
    if not ctx.design.replaces:
        return None
    now = await steps.authority(ctx)
    if percent == 100 and now == "old":
        return "new"
    if percent == 0 and now == "new":
        return "old"
    return None
