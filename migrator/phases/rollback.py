"""Any phase before closed → rolled_back, without moving data.

Under the guards ``check`` and ``off`` sidecars go on mirroring until it is certain that nothing would be lost, because
nobody else does; only then they are told to stop, in one transaction with the end of the guard.

Order: what only the new shape can hold is looked for; then a state is published without the new version and without
mirrors, and acknowledged, while the guard still mirrors; then the same is looked for again, because new speakers
wrote until then; then guard, columns and functions go and the former state is published, in one transaction.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import asyncpg

from migrator import drift, models
from migrator.control import publish, store
from migrator.control.store import reached
from migrator.design import Design, TableDesign
from migrator.errors import Refused, from_postgres
from migrator.locks import with_tables_locked
from migrator.phases.context import Context
from migrator.replace import flip, steps
from migrator.replace import verify as replaced
from migrator.sqltext import MARK, ident, qualified
from proxy.rewrite.model import TableModel

LISTED = 20
WITHDRAW = "withdraw"
STOP = "stop mirroring"


def backward_of(design: Design) -> list[str]:
    """The SQL that undoes expand, in order: what ``plan`` prints and the last step runs."""
    statements = [s.down for s in reversed(design.sql) if s.down and not s.on_complete]
    for table in reversed(design.tables):
        statements += table.shrink
    for design_replaced in reversed(design.replaces):
        statements += design_replaced.shrink
    statements += [f"DROP TABLE IF EXISTS {c.sql}" for c in reversed(design.creates)]
    return [*statements, *design.epilogue]


async def run(ctx: Context, *, accept_loss: bool) -> dict[str, Any]:
    """Roll back; gives what was lost."""
    phase = ctx.row.phase
    if reached(phase, "closed"):
        raise Refused(
            f"a migration in phase {phase} cannot be rolled back",
            hint="Write a migration that changes it back."
            if phase == "completed"
            else "Run `dualwire complete`.",
        )
    expanded = reached(phase, "expanded")
    lost: list[dict[str, Any]] = []
    if phase != "planned":
        # Once mirroring has stopped, marks say nothing any more; what is lost was accepted before.
        judged = await store.step_state(ctx.conn, ctx.row.id, STOP) == "done"
        if expanded and not judged:
            lost = await losses(ctx)
            _refuse_loss(lost, accept_loss)
        if await flip.needed(ctx, 0) is not None:
            await ctx.wait_acks(await flip.flip(ctx, "old"))
            await ctx.reload()
        await withdraw(ctx)
        await ctx.wait_acks()
        if expanded and not judged:
            lost = await losses(ctx)
            if lost and not accept_loss:
                await _restore(ctx)
                _refuse_loss(lost, accept_loss)
        if expanded and _mirrors_inline_only(ctx):
            await _stop(ctx)
            await ctx.wait_acks()
    await _shrink(ctx, expanded)
    await ctx.wait_acks()
    ctx.progress.settle()
    return {"lost": lost}


def _refuse_loss(lost: list[dict[str, Any]], accept: bool) -> None:
    if lost and not accept:
        said = "; ".join(f"{item['table']}: {item['rows']} rows, e.g. {item['keys'][:3]}" for item in lost)
        raise Refused(
            "values that only the new shape can hold would be lost",
            detail=said,
            hint="Change these rows through the old version, or run `dualwire rollback --accept-loss`.",
            data={"lost": lost},
        )


async def losses(ctx: Context) -> list[dict[str, Any]]:
    """Rows whose values of the new shape do not follow from the old one, and tables with rows."""
    found = []
    for table in ctx.design.tables:
        condition = _loss_condition(table)
        if condition is None:
            continue
        key = table.key_json("t.") if table.key else "to_jsonb(t.ctid::text)"
        record = await ctx.conn.fetchrow(
            f"SELECT count(*) AS rows, (array_agg({key}::text))[1:{LISTED}] AS keys"
            f" FROM {table.sql} AS t WHERE {condition}"
        )
        if record["rows"]:
            keys = [json.loads(k) for k in record["keys"]]
            found.append({"table": table.label, "rows": record["rows"], "keys": keys})
    for design in ctx.design.replaces:
        total, keys = await replaced.losses(ctx, design)
        if total:
            found.append({"table": design.label, "rows": total, "keys": keys})
    for create in ctx.design.creates:
        rows = await ctx.conn.fetchval(f"SELECT count(*) FROM {create.sql}")
        if rows:
            label = f"{create.schema_name}.{create.name}"
            found.append({"table": label, "rows": rows, "keys": []})
    return found


def _loss_condition(table: TableDesign) -> str | None:
    parts = []
    differs = [f"t.{ident(m.target)} IS DISTINCT FROM {m.computed('t.')}" for m in table.up.reproducible] + [
        "true" for m in table.up.mirrors if m.value.volatility == "volatile"
    ]
    if table.mark and differs:
        parts.append(f"(t.{ident(MARK)} >= 3 AND ({' OR '.join(differs)}))")
    for column in table.columns:
        if column.native:
            default = column.default if column.default is not None else "NULL"
            if column.default_kind != "volatile":
                parts.append(f"t.{ident(column.name)} IS DISTINCT FROM ({default})")
    return " OR ".join(parts) if parts else None


async def withdraw(ctx: Context) -> None:
    """New speakers are refused, old ones see their frozen lists and mirror no more."""
    if await store.step_state(ctx.conn, ctx.row.id, WITHDRAW) == "done":
        return
    async with ctx.session.transaction() as conn:
        before = await publish.current(conn)
        served = {
            "serves_new": before.serves_new,
            "auto": before.auto,
            "percent": before.percent,
            "dual_write": before.dual_write,
        }
        catalogs = await ctx.look(conn)
        mirroring = reached(ctx.row.phase, "expanded") and _mirrors_inline_only(ctx)
        model = models.mirrored if mirroring else models.frozen
        tables = ctx.models(model, catalogs)
        tables += await steps.frozen(ctx, conn)
        await ctx.publish(
            conn,
            lambda r: replace(r, serves_new=False, auto="old", percent=0, dual_write=mirroring, hold=None),
            tables,
            epoch=True,
        )
        # A migrator that takes over must know what to go back to if it finds that something would be lost.
        await store.step_done(conn, ctx.row.id, WITHDRAW, [json.dumps(served)])


def _mirrors_inline_only(ctx: Context) -> bool:
    """Whether what sidecars do not mirror is not mirrored at all."""
    return any(t.guard != "sync" for t in ctx.design.mirrored)


async def _stop(ctx: Context) -> None:
    """Sidecars mirror no more, and no guard asks for it."""
    if await store.step_state(ctx.conn, ctx.row.id, STOP) == "done":
        return
    statements = [s for t in ctx.design.tables for s in t.disarm]

    async def step(conn: asyncpg.Connection) -> None:
        for statement in statements:
            await conn.execute(statement)
        catalogs = await ctx.look(conn)
        tables = ctx.models(models.frozen, catalogs)
        tables += await steps.frozen(ctx, conn)
        await ctx.publish(conn, lambda r: replace(r, dual_write=False), tables, epoch=True)
        await store.step_done(conn, ctx.row.id, STOP, statements)
        await drift.remember(conn, ctx.row.id, ctx.design, catalogs)

    await with_tables_locked(
        ctx.session, ctx.tables, step, what=STOP, options=ctx.options.lock, progress=ctx.progress
    )
    await ctx.reload()


async def _restore(ctx: Context) -> None:
    """Nothing was dropped yet: go back to serving both versions."""
    async with ctx.session.transaction() as conn:
        [text] = await conn.fetchval(
            "SELECT statements FROM dualwire.step WHERE migration = $1 AND name = $2", ctx.row.id, WITHDRAW
        )
        served = json.loads(text)
        catalogs = await ctx.look(conn)
        tables: list[TableModel] = ctx.models(models.mirrored, catalogs)
        tables += await steps.both(ctx, conn, "old")
        await ctx.publish(
            conn,
            lambda r: replace(
                r,
                serves_new=served["serves_new"],
                auto=served["auto"],
                percent=served["percent"],
                dual_write=served["dual_write"],
            ),
            tables,
            epoch=True,
        )
        await conn.execute(
            "DELETE FROM dualwire.step WHERE migration = $1 AND name = $2", ctx.row.id, WITHDRAW
        )


async def _shrink(ctx: Context, expanded: bool) -> None:
    statements = backward_of(ctx.design) if expanded else []
    for table in ctx.design.tables:
        for index in table.indexes:
            # A partitioned table's goes with its column: CONCURRENTLY is not for it.
            if expanded and not table.partitioned:
                name = qualified(table.schema_name, index.name)
                await ctx.conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    async def step(conn: asyncpg.Connection) -> None:
        raw = {s.down for s in ctx.design.sql}
        for statement in statements:
            if statement in raw:
                await conn.execute(f"SET LOCAL search_path = {ident(ctx.design.schema_name)}, pg_catalog")
            await conn.execute(statement)
            await conn.execute("SET LOCAL search_path = pg_catalog")
        catalogs = await ctx.look(conn)
        tables = ctx.models(models.rolled_back, catalogs)
        tables += await steps.restored(ctx, conn)
        versions = tuple(await store.completed_versions(conn))
        await ctx.publish(
            conn,
            lambda r: replace(
                r,
                migration=None,
                phase=None,
                new=None,
                serves_old=True,
                serves_new=False,
                auto="old",
                percent=0,
                dual_write=False,
                versions=versions,
                hold=None,
            ),
            [t for t in tables if t is not None],
            epoch=True,
        )
        await store.step_done(conn, ctx.row.id, "shrink", statements)
        await conn.execute("DELETE FROM dualwire.problem WHERE migration = $1", ctx.row.id)
        await store.set_phase(conn, ctx.row.id, "rolled_back")

    try:
        await with_tables_locked(
            ctx.session,
            ctx.tables if expanded else [],
            step,
            what="rollback",
            options=ctx.options.lock,
            progress=ctx.progress,
        )
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        raise
    except asyncpg.PostgresError as error:
        raise from_postgres(error, "rollback") from error
