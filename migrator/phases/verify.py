"""backfilled → verified: every row is compared, by its own direction, chunk by chunk.

One statement, and so one snapshot, for each key range: counts by direction, a digest of what the mirrored columns are
and of what they should be, and the keys that differ. A clean verification publishes that the new version is served.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg

from migrator.control import publish, store
from migrator.design import DirectionDesign, TableDesign
from migrator.errors import Differences
from migrator.phases.backfill import key_range, own_writes, update_statement, upper_key
from migrator.phases.context import Context
from migrator.replace import verify as replaced
from migrator.sqltext import MARK, ident, literal, names

CHUNK_ROWS = 20_000
LISTED = 20


@dataclass(slots=True)
class TableResult:
    """What verification found in one table."""

    table: str
    rows: int = 0
    old: int = 0
    new: int = 0
    unmarked: int = 0
    differing: int = 0
    digest: int = 0
    expected: int = 0
    keys: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return {
            "table": self.table,
            "rows": self.rows,
            "direction_old": self.old,
            "direction_new": self.new,
            "unmarked": self.unmarked,
            "differing": self.differing,
            "digest": f"{self.digest & (2**64 - 1):016x}",
            "digest_expected": f"{self.expected & (2**64 - 1):016x}",
            "keys": self.keys,
        }


@dataclass(slots=True)
class Result:
    """What verification found in all tables."""

    tables: list[TableResult]
    problems: int
    problem_list: list[dict[str, Any]]

    @property
    def clean(self) -> bool:
        """Whether every row is right in both shapes."""
        return not self.problems and not any(t.unmarked or t.differing for t in self.tables)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return {
            "clean": self.clean,
            "tables": [t.as_dict() for t in self.tables],
            "problems": self.problems,
            "problem_list": self.problem_list,
        }


async def run(ctx: Context) -> None:
    """Verify, then serve the new version."""
    result = await verify(ctx)
    if not result.clean:
        raise failure(result)
    await serve(ctx)


async def serve(ctx: Context) -> None:
    """Publish that the new version is served. A clean verification has just ended."""
    async with ctx.session.transaction() as conn:
        routing = await ctx.publish(
            conn, lambda r: replace(r, phase="verified", serves_new=True), None, epoch=True
        )
        await _verified(conn, ctx.row.id, routing.epoch)
        await store.step_done(conn, ctx.row.id, "serve")
        await ctx.finish_phase(conn, "verified")
    await ctx.wait_acks(routing)


async def verify(ctx: Context, *, repair: bool = False) -> Result:
    """Compare all rows; with ``repair`` bring rows that differ right in their own direction first."""
    await _stale_problems(ctx)
    for design in ctx.design.replaces:
        await replaced.drop_stale_problems(ctx, design)
        if repair:
            await replaced.repair(ctx, design)
    if repair:
        for table in ctx.design.mirrored:
            await _repair(ctx, table)
    await list_problems(ctx)
    tables = [await _table(ctx, table) for table in ctx.design.mirrored]
    for design in ctx.design.replaces:
        found = await replaced.compare(ctx, design)
        tables.append(
            TableResult(
                design.label,
                rows=found.rows,
                unmarked=found.missing,
                differing=found.differing,
                keys=found.keys,
            )
        )
    # What only a replaced table can hold is listed, but nothing is wrong with it.
    direction = "old" if ctx.design.replaces else None
    total, listed = await store.problems(ctx.conn, ctx.row.id, LISTED, direction)
    result = Result(tables, total, listed)
    async with ctx.session.transaction() as conn:
        routing = await publish.current(conn)
        if result.clean:
            await _verified(conn, ctx.row.id, routing.epoch)
        else:
            await conn.execute(
                "UPDATE dualwire.migration SET verified_epoch = NULL, verified_at = NULL WHERE id = $1",
                ctx.row.id,
            )
        await store.event(conn, "verify", ctx.row.id, {"epoch": routing.epoch, **result.as_dict()})
    ctx.progress.settle()
    return result


async def _verified(conn: asyncpg.Connection, migration: int, epoch: int) -> None:
    await conn.execute(
        "UPDATE dualwire.migration SET verified_epoch = $2, verified_at = clock_timestamp() WHERE id = $1",
        migration,
        epoch,
    )


def failure(result: Result) -> Differences:
    """The error for rows that are not right."""
    differing = sum(t.differing for t in result.tables)
    unmarked = sum(t.unmarked for t in result.tables)
    keys = [f"{t.table} {json.dumps(k['key'])}: {k['what']}" for t in result.tables for k in t.keys]
    problems = [f"{p['table']} {json.dumps(p['key'])}: {p['reason']}" for p in result.problem_list]
    return Differences(
        f"verification found {differing} differing rows, {unmarked} of them never carried over,"
        f" and {result.problems} problems",
        detail="; ".join(dict.fromkeys([*problems, *keys]))[:2000],
        hint="Correct the rows in the old version (or the new one, where it was written last), or change up/down"
        " in a new start after `dualwire rollback`; `dualwire verify --repair` recomputes rows.",
        data={"verify": result.as_dict()},
    )


def _side(direction: DirectionDesign, *, expected: bool) -> str:
    """Text of the mirrored columns of one direction, as they are or as they should be."""
    parts = []
    for mirror in direction.reproducible:
        value = mirror.computed("t.") if expected else f"t.{ident(mirror.target)}"
        parts.append(f"({value})")
    return f"ROW({', '.join(parts)})" if parts else "ROW()"


def chunk_statement(table: TableDesign, condition: str) -> str:
    """The aggregate over one key range."""
    mark = f"t.{ident(MARK)}"
    right = table.consistent("t.")
    actual = (
        f"CASE WHEN {mark} < 3 THEN hashtextextended({_side(table.up, expected=False)}::text, 0)"
        f" WHEN {mark} >= 3 THEN hashtextextended({_side(table.down, expected=False)}::text, 0) ELSE 0 END"
    )
    should = (
        f"CASE WHEN {mark} < 3 THEN hashtextextended({_side(table.up, expected=True)}::text, 0)"
        f" WHEN {mark} >= 3 THEN hashtextextended({_side(table.down, expected=True)}::text, 0) ELSE 0 END"
    )
    return (
        "SELECT count(*) AS rows, count(*) FILTER (WHERE x.mark < 3) AS old,"
        " count(*) FILTER (WHERE x.mark >= 3) AS new, count(*) FILTER (WHERE x.mark IS NULL) AS unmarked,"
        " count(*) FILTER (WHERE NOT x.good) AS differing,"
        " coalesce(sum(x.actual), 0)::text AS digest, coalesce(sum(x.should), 0)::text AS expected,"
        f" (array_agg(x.key::text) FILTER (WHERE NOT x.good))[1:{LISTED}] AS keys,"
        f" (array_agg(x.mark) FILTER (WHERE NOT x.good))[1:{LISTED}] AS marks"
        f" FROM (SELECT {mark} AS mark, {right} AS good, {actual} AS actual, {should} AS should,"
        f" {table.key_json('t.')} AS key FROM {table.sql} AS t WHERE {condition}) x"
    )


async def _table(ctx: Context, table: TableDesign) -> TableResult:
    result = TableResult(table.label)
    after: list[str] | None = None
    while True:
        upper = await upper_key(ctx.conn, table, after, CHUNK_ROWS)
        condition = key_range(table, after is not None, upper is not None)
        record = await ctx.conn.fetchrow(chunk_statement(table, condition), *(after or []), *(upper or []))
        result.rows += record["rows"]
        result.old += record["old"]
        result.new += record["new"]
        result.unmarked += record["unmarked"]
        result.differing += record["differing"]
        result.digest += int(record["digest"])
        result.expected += int(record["expected"])
        for key, mark in zip(record["keys"] or [], record["marks"] or [], strict=True):
            if len(result.keys) < LISTED:
                what = "never carried over" if mark is None else "the shapes differ"
                result.keys.append({"key": json.loads(key), "mark": mark, "what": what})
        ctx.progress.wait(f"verify {table.label}: {result.rows} rows, {result.differing} differing")
        if upper is None:
            return result
        after = upper


async def _repair(ctx: Context, table: TableDesign) -> None:
    """Recompute rows that differ, each in its own direction; rows whose up fails stay problems."""
    down = [f"{ident(m.target)} = {m.computed('t.')}" for m in table.down.reproducible if not m.keeps]
    after: list[str] | None = None
    while True:
        async with ctx.session.transaction() as conn:
            await own_writes(conn, table, ctx.row.id)
            upper = await upper_key(conn, table, after, CHUNK_ROWS)
            condition = key_range(table, after is not None, upper is not None)
            arguments = [*(after or []), *(upper or [])]
            await conn.execute(update_statement(table, condition, f"t.{ident(MARK)} IS NULL"), *arguments)
            old = f"t.{ident(MARK)} < 3 AND NOT {table.right('old', 't.')}"
            await conn.execute(update_statement(table, condition, old), *arguments)
            if down:
                await conn.execute(
                    f"UPDATE {table.sql} AS t SET {', '.join(down)} WHERE {condition}"
                    f" AND t.{ident(MARK)} >= 3 AND NOT {table.right('new', 't.')}",
                    *arguments,
                )
        if upper is None:
            return
        after = upper
        await asyncio.sleep(0)


async def _stale_problems(ctx: Context) -> None:
    """Problems whose row is right by now, or gone, are none."""
    for table in ctx.design.mirrored:
        async with ctx.session.transaction() as conn:
            await conn.execute(
                "DELETE FROM dualwire.problem p WHERE p.migration = $1 AND p.table_name = $2"
                f" AND NOT EXISTS (SELECT FROM {table.sql} AS t WHERE {_key_matches(table)}"
                f" AND NOT {table.consistent('t.')})",
                ctx.row.id,
                table.label,
            )


async def list_problems(ctx: Context) -> None:
    """Without the guard ``sync`` nobody has listed the rows that cannot be carried over."""
    for table in ctx.design.mirrored:
        if table.guard != "sync":
            await _list_problems(ctx, table)


def _problems_statement(ctx: Context, table: TableDesign, condition: str) -> str | None:
    """Lists the rows of one key range that cannot be carried over; None where that cannot happen."""
    mark = f"t.{ident(MARK)}"
    parts = []
    for side, direction, which in (
        ("old", table.up, f"{mark} IS NULL"),
        ("new", table.down, f"{mark} >= 3 AND NOT {table.right('new', 't.')}"),
    ):
        if direction.why is not None:
            reason = f"{direction.why}({names(direction.ok_sources, 't.')})"
            parts.append(
                f"SELECT {table.key_json('t.')} AS key, '{side}' AS direction, {reason} AS reason"
                f" FROM {table.sql} AS t WHERE {condition} AND {which}"
            )
    if not parts:
        return None
    return (
        "INSERT INTO dualwire.problem AS p (migration, table_name, key, direction, reason)"
        f" SELECT {ctx.row.id}, {literal(table.label)}, x.key, x.direction, x.reason"
        f" FROM ({' UNION ALL '.join(parts)}) x WHERE x.reason IS NOT NULL"
        " ON CONFLICT ON CONSTRAINT problem_pkey DO UPDATE"
        " SET direction = excluded.direction, reason = excluded.reason, found_at = clock_timestamp()"
        " WHERE (p.direction, p.reason) IS DISTINCT FROM (excluded.direction, excluded.reason)"
    )


async def _list_problems(ctx: Context, table: TableDesign) -> None:
    after: list[str] | None = None
    while True:
        async with ctx.session.transaction() as conn:
            upper = await upper_key(conn, table, after, CHUNK_ROWS)
            condition = key_range(table, after is not None, upper is not None)
            statement = _problems_statement(ctx, table, condition)
            if statement is None:
                return
            await conn.execute(statement, *(after or []), *(upper or []))
        if upper is None:
            return
        after = upper


def _key_matches(table: TableDesign) -> str:
    return " AND ".join(f"t.{ident(k.name)} = CAST(p.key->>{literal(k.name)} AS {k.type})" for k in table.key)
