"""Compares the two tables of a replacement, key range by key range, each in one statement and so in one snapshot.

Every commit leaves both tables right, so what a snapshot shows apart is apart. Rows that are listed as problems
because only the new table can hold them count neither as differing nor as a reason to stop: they are what a rollback
would lose.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from migrator.phases.backfill import key_range, upper_key
from migrator.phases.context import Context
from migrator.replace import steps
from migrator.replace.design import ColumnPair, ReplaceDesign, Side, other
from migrator.replace.mirror import SETTING, function_name, wider_types
from migrator.sqltext import ident, literal, names

CHUNK_ROWS = 20_000
LISTED = 20


@dataclass(slots=True)
class Found:
    """What the comparison of one table found."""

    rows: int = 0
    missing: int = 0
    differing: int = 0
    new_only: int = 0
    keys: list[dict[str, Any]] = field(default_factory=list)


def _differs(design: ReplaceDesign, column: ColumnPair, side: Side) -> list[str]:
    """SQL: the column is not what it should be. Aliases: o the old row, n the new one."""
    old, new = f"o.{ident(column.name)}", f"n.{ident(column.name)}"
    if column.carried or column.raw:
        if not column.exact:
            old, new = f"{old}::text", f"{new}::text"
        return [f"{old} IS DISTINCT FROM {new}"]
    up = _should(column, "new", "o.")
    down = _should(column, "old", "n.")
    found = [f"{old} IS DISTINCT FROM {down}"]
    # While the old table is the authoritative one, what has no way back must not become the only truth.
    return [f"{new} IS DISTINCT FROM {up}", *found] if side == "old" else found


def _should(column: ColumnPair, to: Side, prefix: str) -> str:
    value = column.value(to)
    function = column.up_try if to == "new" else column.down_try
    if function is not None:
        return f"{function}({names(value.sources, prefix)})"
    kind = column.new_type if to == "new" else column.old_type
    return f"CAST(({column.computed(to, prefix)}) AS {kind})"


def compared(design: ReplaceDesign, side: Side, old_where: str, new_where: str) -> str:
    """A query over pairs of rows: rows, key, what is wrong (or NULL), whether only the new table can hold it."""
    first = ident(design.pair_names[0])
    differs = " OR ".join(d for c in design.written() for d in _differs(design, c, side))
    key = ", ".join(f"coalesce(o.{ident(n)}, n.{ident(n)})" for n in design.pair_names)
    absent = {"old": f"o.{first} IS NULL", "new": f"n.{first} IS NULL"}
    return (
        f"SELECT x.key, x.what, EXISTS (SELECT FROM dualwire.problem p WHERE {design.problems_where}"
        " AND p.direction = 'new' AND p.key = x.key AND x.what IS NOT NULL) AS new_only, x.missing"
        f" FROM (SELECT dualwire.key_{design.tag}({key}) AS key, {absent[other(side)]} AS missing,"
        f" CASE WHEN {absent[side]} THEN 'not in the {side} table'"
        f" WHEN {absent[other(side)]} THEN 'never carried over' WHEN {differs} THEN 'the tables differ' END AS what"
        f" FROM (SELECT * FROM {design.sql} AS t WHERE {old_where}) AS o"
        f" FULL JOIN (SELECT * FROM {design.new_sql} AS t WHERE {new_where}) AS n ON {design.paired('n.', 'o.')}) AS x"
    )


async def compare(ctx: Context, design: ReplaceDesign) -> Found:
    """Compare all rows."""
    side = await steps.authority(ctx)
    found = Found()
    async for condition, arguments in _ranges(ctx.conn, design):
        query = compared(design, side, condition, condition)
        record = await ctx.conn.fetchrow(
            "SELECT count(*) AS rows, count(*) FILTER (WHERE what IS NOT NULL AND NOT new_only) AS differing,"
            " count(*) FILTER (WHERE what IS NOT NULL AND missing AND NOT new_only) AS missing,"
            " count(*) FILTER (WHERE new_only) AS new_only,"
            f" (array_agg(jsonb_build_object('key', key, 'what', what)::text)"
            f" FILTER (WHERE what IS NOT NULL AND NOT new_only))[1:{LISTED}] AS keys FROM ({query}) AS y",
            *arguments,
        )
        found.rows += record["rows"]
        found.differing += record["differing"]
        found.missing += record["missing"]
        found.new_only += record["new_only"]
        found.keys += [{"mark": None, **json.loads(k)} for k in record["keys"] or []][
            : LISTED - len(found.keys)
        ]
        ctx.progress.wait(f"verify {design.label}: {found.rows} rows, {found.differing} differing")
    return found


async def _ranges(conn: asyncpg.Connection, design: ReplaceDesign) -> Any:
    after: list[str] | None = None
    while True:
        upper = await upper_key(conn, design, after, CHUNK_ROWS)
        condition = key_range(design, after is not None, upper is not None)
        yield condition, [*(after or []), *(upper or [])]
        if upper is None:
            return
        after = upper


async def losses(ctx: Context, design: ReplaceDesign) -> tuple[int, list[Any]]:
    """Rows that the old table does not hold as the new one does."""
    side = await steps.authority(ctx)
    total = 0
    keys: list[Any] = []
    async for condition, arguments in _ranges(ctx.conn, design):
        query = compared(design, side, condition, condition)
        wanted = "what IS NOT NULL" if side == "new" else "new_only"
        rows = await ctx.conn.fetch(f"SELECT key::text FROM ({query}) AS y WHERE {wanted}", *arguments)
        total += len(rows)
        keys += [json.loads(r[0]) for r in rows][: LISTED - len(keys)]
    return total, keys


async def drop_stale_problems(ctx: Context, design: ReplaceDesign) -> None:
    """Problems whose rows are right by now, or gone, are none."""
    side = await steps.authority(ctx)
    kinds = wider_types(design)
    condition = " AND ".join(
        f"t.{ident(n)} = CAST(q.key->>{literal(n)} AS {k})"
        for n, k in zip(design.pair_names, kinds, strict=True)
    )
    where = design.problems_where.replace("p.", "q.")
    async with ctx.session.transaction() as conn:
        await conn.execute(
            f"DELETE FROM dualwire.problem q WHERE {where} AND NOT EXISTS"
            f" (SELECT FROM ({compared(design, side, condition, condition)}) AS y WHERE y.what IS NOT NULL)"
        )


async def repair(ctx: Context, design: ReplaceDesign) -> None:
    """Bring rows that differ right, from the authoritative table to the other one."""
    side = await steps.authority(ctx)
    async for condition, arguments in _ranges(ctx.conn, design):
        query = compared(design, side, condition, condition)
        rows = await ctx.conn.fetch(
            f"SELECT key::text FROM ({query}) AS y WHERE what IS NOT NULL AND NOT new_only", *arguments
        )
        for row in rows:
            await repair_key(ctx, design, side, json.loads(row[0]))


async def repair_key(ctx: Context, design: ReplaceDesign, side: Side, key: dict[str, Any]) -> None:
    """One key: the authoritative row is locked first, then its twin is synchronized with a fresh snapshot."""
    kinds = [p.of(side) for p in design.pair]
    values = [f"CAST({literal(str(key[n]))} AS {k})" for n, k in zip(design.pair_names, kinds, strict=True)]
    sync = f"{function_name(design, 'sync', other(side))}({', '.join(values)}, 'repair')"
    async with ctx.session.transaction() as conn:
        await conn.execute(f"SELECT set_config('{SETTING}', '{design.tag}:0', true)")
        for table in (design.table(side), design.table(other(side))):
            await conn.execute(f"SELECT FROM {table} AS t WHERE {_equals(design, values)} FOR UPDATE")
        reason = await conn.fetchval(f"SELECT {sync}")
        await conn.execute(
            f"SELECT dualwire.note_{design.tag}($1::jsonb, $2, $3)", json.dumps(key), side, reason
        )


def _equals(design: ReplaceDesign, values: Sequence[str]) -> str:
    return " AND ".join(f"t.{ident(n)} = {v}" for n, v in zip(design.pair_names, values, strict=True))
