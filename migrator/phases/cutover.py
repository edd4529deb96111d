"""verified → cutover: ``auto`` clients go over to the new version, by percent; no epoch, so the brake always works."""

from __future__ import annotations

from dataclasses import replace

from migrator.control import acks, store
from migrator.control.store import reached
from migrator.errors import Refused
from migrator.phases.backfill import replica_lag
from migrator.phases.context import Context
from migrator.phases.verify import list_problems
from migrator.replace import flip


async def gate(ctx: Context) -> None:
    """Refuse where going over would not be safe."""
    phase = ctx.row.phase
    if not reached(phase, "verified") or reached(phase, "closed"):
        raise Refused(
            f"cutover is not possible in phase {phase}",
            hint="Run `dualwire verify` first." if phase == "backfilled" else "See `dualwire status`.",
        )
    await list_problems(ctx)
    # Rows that only a replaced table can hold are what a rollback would lose, no reason to stop.
    direction = "old" if ctx.design.replaces else None
    total, listed = await store.problems(ctx.conn, ctx.row.id, direction=direction)
    if total:
        raise Refused(
            f"{total} unresolved problems",
            detail="; ".join(f"{p['table']} {p['key']}: {p['reason']}" for p in listed[:5]),
            hint="Correct these rows, then run `dualwire verify`.",
            data={"problems": listed},
        )
    lag = await replica_lag(ctx.conn)
    if lag > ctx.options.backfill.max_lag:
        raise Refused(
            f"a replica is {lag:.1f} s behind (limit {ctx.options.backfill.max_lag:g} s)",
            hint="Wait until it has caught up, or raise --max-lag.",
        )


async def run(ctx: Context) -> None:
    """All of ``auto``."""
    await set_percent(ctx, 100)


async def set_percent(ctx: Context, percent: int) -> None:
    """Send so many percent of ``auto`` sessions to the new version; 0 flips back at once."""
    await ctx.wait_acks()
    if percent:
        await gate(ctx)
    elif ctx.row.phase not in {"verified", "cutover"}:
        raise Refused(f"there is nothing to flip back in phase {ctx.row.phase}")
    side = await flip.needed(ctx, percent)
    if side == "new":
        await ctx.wait_acks(await flip.flip(ctx, side))
        ctx.progress.settle()
        return
    async with ctx.session.transaction() as conn:
        routing = await ctx.publish(
            conn,
            lambda r: replace(
                r,
                phase="cutover" if percent else "verified",
                auto="new" if percent else "old",
                percent=percent,
            ),
            None,
            epoch=False,
        )
        await conn.execute(
            "UPDATE dualwire.migration SET cutover_at = CASE WHEN $2 = 100"
            " THEN coalesce(cutover_at, clock_timestamp()) END WHERE id = $1",
            ctx.row.id,
            percent,
        )
        await store.event(conn, "cutover", ctx.row.id, {"percent": percent})
        await store.set_phase(conn, ctx.row.id, "cutover" if percent else "verified")
    await acks.wait_revision(ctx.conn, routing, ctx.progress, ctx.options.ack_timeout)
    if side == "old":
        # It needs locks; clients have gone back before, and they work on either table.
        await ctx.wait_acks(await flip.flip(ctx, side))
    ctx.progress.settle()
