"""cutover → closed: the point of no return. Dual writes end, and the old version is no longer served, or without its
columns (``migrator.compat``).

Order: checks, verification under the present epoch; then, in one transaction, old constraints that new speakers
cannot meet are relaxed and the closed state is published. The guard goes only when all sidecars have acknowledged;
in its place a fence refuses writes to old columns, which nothing would carry over any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg

from migrator import compat, drift, models
from migrator.control import acks, publish, store
from migrator.errors import Refused
from migrator.locks import with_tables_locked
from migrator.partitions import fire_alike
from migrator.phases import enforce, verify
from migrator.phases.context import Context
from migrator.progress import duration
from migrator.replace import steps


async def check(ctx: Context, retention: timedelta, *, outlives: bool = False) -> None:
    """Everything that must be true before the point of no return.

    Args:
        outlives: old clients are served after it as well (compat).
    """
    phase = ctx.row.phase
    if phase in {"planned", "prepared", "expanded", "backfilled"}:
        raise Refused(
            f"the migration is in phase {phase}: it can be completed only after verify and cutover",
            hint="Run `dualwire verify`, then `dualwire cutover`."
            if phase == "backfilled"
            else "Run `dualwire start` again, then `dualwire cutover`.",
        )
    routing = await publish.current(ctx.conn)
    if phase == "verified" or routing.auto != "new" or routing.percent != 100:
        raise Refused(
            f"cutover is at {routing.percent if routing.auto == 'new' else 0} %, not at 100 %",
            hint="Run `dualwire cutover` first.",
        )
    assert ctx.row.cutover_at is not None
    left = ctx.row.cutover_at + retention - datetime.now(UTC)
    if left > timedelta(0):
        raise Refused(
            f"retention: {duration(left.total_seconds())} of {duration(retention.total_seconds())} remain in"
            " which a rollback is possible",
            hint="Run `dualwire complete` later, or `dualwire complete --retention 0` now.",
            data={"remaining_seconds": int(left.total_seconds()) + 1},
        )
    if not outlives:
        await _old_clients(ctx)


async def _old_clients(ctx: Context) -> None:
    speaking = await acks.clients_on_old(ctx.conn)
    if speaking:
        said = ", ".join(f"{s['service']} ({s['clients']})" for s in speaking)
        raise Refused(
            f"clients still speak the old version: {said}",
            hint="Deploy code for the new version there (schema_version), then run the command again;"
            " or serve them without the old columns with `dualwire complete --compat`.",
            data={"services": speaking},
        )


async def run(ctx: Context, *, outlives: bool = False) -> None:
    """Close. ``check`` has passed."""
    await ctx.wait_acks()
    await enforce.run(ctx)
    result = await verify.verify(ctx)
    if not result.clean:
        raise verify.failure(result)
    if not outlives:
        await _old_clients(ctx)

    async def step(conn: asyncpg.Connection) -> None:
        served = await compat.make(conn, ctx.design, await ctx.look(conn)) if outlives else {}
        for table in ctx.design.tables:
            for statement in table.relax:
                await conn.execute(statement)
        await conn.execute("SET LOCAL search_path = pg_catalog")
        catalogs = await ctx.look(conn)
        tables = ctx.models(
            lambda t, c: compat.closed_model(models.closed(t, c), served.get(t.oid), t), catalogs
        )
        tables += await steps.closed(ctx, conn, outlives=outlives)
        await ctx.publish(
            conn,
            lambda r: replace(
                r,
                phase="closed",
                serves_old=outlives,
                serves_new=True,
                auto="new",
                percent=100,
                dual_write=outlives,
            ),
            tables,
            epoch=True,
        )
        statements = [s for made in served.values() for s in made.statements]
        statements += [s for t in ctx.design.tables for s in t.relax]
        await store.step_done(conn, ctx.row.id, "close", statements)
        await ctx.finish_phase(conn, "closed", catalogs)

    await with_tables_locked(
        ctx.session, ctx.tables, step, what="close", options=ctx.options.lock, progress=ctx.progress
    )


async def settle(ctx: Context) -> None:
    """After closed is published: the guard goes, strict constraints come and are validated."""
    await ctx.wait_acks()
    await _step(ctx, "strict", [s for t in ctx.design.tables for s in t.strict], lock=True)
    for table in ctx.design.tables:
        await _step(ctx, f"validate {table.label} strictly", table.validate_strict, lock=False)
    await steps.settle(ctx)


async def _step(ctx: Context, name: str, statements: Sequence[str], *, lock: bool) -> None:
    if await store.step_state(ctx.conn, ctx.row.id, name) == "done":
        return

    async def step(conn: asyncpg.Connection) -> None:
        for statement in statements:
            await conn.execute(statement)
        await fire_alike(conn, ctx.design.tables)
        await conn.execute("SET LOCAL search_path = pg_catalog")
        await store.step_done(conn, ctx.row.id, name, statements)
        await drift.remember(conn, ctx.row.id, ctx.design)

    await with_tables_locked(
        ctx.session,
        ctx.tables if lock else [],
        step,
        what=name,
        options=ctx.options.lock,
        progress=ctx.progress,
    )
    await ctx.reload()
