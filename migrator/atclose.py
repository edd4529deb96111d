"""``enforce: at_close``: constraints of the new version that old clients' values may violate.

Until closed, both versions' writes share the new shape's columns, so a UNIQUE, a foreign key (always), or a CHECK or
NOT NULL for which the file says so, would make an old client's statement fail that succeeds without the migration.
Such a constraint is made and validated when the migration is about to close, after the last old client is gone and
before the point of no return: if rows break it, closing is refused and nothing else has happened. Until the swap it
has a name of its own, because the final one may still belong to the old column.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

import asyncpg

from migrator.analysis import PROBE, Compiled
from migrator.catalog import CatalogTable, find_table
from migrator.design import AtClose, Finding, TableDesign
from migrator.draft import Check, Slot, TableDraft
from migrator.expressions import render
from migrator.operations.common import ReferencesSpec
from migrator.sqltext import cut, ident, qualified

WORDS = {"unique": "unique", "foreign_key": "foreign key", "check": "check", "not_null": "NOT NULL"}


def unique(schema: str, table: str, column: str, name: str, label: str) -> AtClose:
    """A UNIQUE constraint: its index is built without blocking writes."""
    own = cut("_dualwire_index_uq_", name)
    return AtClose(
        kind="unique",
        name=name,
        own=own,
        column=column,
        label=label,
        build=f"CREATE UNIQUE INDEX CONCURRENTLY {ident(own)} ON {qualified(schema, table)} ({ident(column)})",
        validate_=[],
        unmake=[f"DROP INDEX IF EXISTS {qualified(schema, own)}"],
        swap=[
            f"ALTER TABLE {qualified(schema, table)} ADD CONSTRAINT {ident(name)} UNIQUE USING INDEX {ident(own)}"
        ],
    )


def foreign_key(schema: str, table: str, column: str, spec: ReferencesSpec, label: str) -> AtClose:
    """A foreign key."""
    referenced = f" ({ident(spec.column)})" if spec.column else ""
    return _constraint(
        schema,
        table,
        "foreign_key",
        cut("_dualwire_fk_", spec.name),
        spec.name,
        column,
        label,
        f"FOREIGN KEY ({ident(column)}) REFERENCES {qualified(schema, spec.table)}{referenced}"
        f" MATCH {spec.match_type} ON DELETE {spec.on_delete} ON UPDATE {spec.on_update}",
    )


def check(schema: str, table: str, column: str, name: str, condition: str, label: str) -> AtClose:
    """A CHECK constraint; ``condition`` is over physical columns."""
    own = cut("_dualwire_ck_", name)
    return _constraint(schema, table, "check", own, name, column, label, f"CHECK ({condition})")


def not_null(schema: str, table: str, column: str, label: str) -> AtClose:
    """NOT NULL, by way of a CHECK that spares the scan under an exclusive lock."""
    own = cut("_dualwire_an_", label)
    made = _constraint(
        schema, table, "not_null", own, own, column, label, f"CHECK ({ident(column)} IS NOT NULL)"
    )
    head = f"ALTER TABLE {qualified(schema, table)}"
    return made.model_copy(
        update={
            "validate_": [
                *made.validate_,
                f"{head} ALTER COLUMN {ident(column)} SET NOT NULL",
                f"{head} DROP CONSTRAINT {ident(own)}",
            ],
            "unmake": [*made.unmake, f"{head} ALTER COLUMN {ident(column)} DROP NOT NULL"],
            "swap": [],
        }
    )


def _constraint(
    schema: str, table: str, kind: str, own: str, name: str, column: str, label: str, text: str
) -> AtClose:
    head = f"ALTER TABLE {qualified(schema, table)}"
    return AtClose(
        kind=kind,
        name=name,
        own=own,
        column=column,
        label=label,
        build=f"{head} ADD CONSTRAINT {ident(own)} {text} NOT VALID",
        validate_=[f"{head} VALIDATE CONSTRAINT {ident(own)}"],
        unmake=[f"{head} DROP CONSTRAINT IF EXISTS {ident(own)}"],
        swap=[f"{head} RENAME CONSTRAINT {ident(own)} TO {ident(name)}"],
    )


async def designed(
    conn: asyncpg.Connection,
    draft: TableDraft,
    physical: Callable[[int], str],
    compile_check: Callable[[Slot, Check], Awaitable[Compiled]],
) -> tuple[list[AtClose], list[str]]:
    """A table's constraints of this kind, and what the server has against them. The probe table must be there."""
    found: list[AtClose] = []
    said: list[str] = []
    for index, slot in enumerate(draft.slots):
        if slot.new is None:
            continue
        where = (draft.schema, draft.name, physical(index))
        found += [unique(*where, name, slot.new) for name in slot.uniques]
        for spec in slot.references:
            found.append(foreign_key(*where, spec, slot.new))
            said += await _reference_problems(conn, draft.schema, spec)
        for item in slot.checks:
            if item.at_close:
                compiled = await compile_check(slot, item)
                text = render(compiled.template, [ident(s) for s in compiled.sources])
                found.append(check(*where, item.name, text, slot.new))
        if slot.not_null_at_close:
            found.append(not_null(*where, slot.new))
    return found, [*said, *await _problems(conn, found)]


def judge(
    catalog: CatalogTable, design: TableDesign, gone: Sequence[str], problems: Sequence[str]
) -> Iterator[Finding]:
    """Findings; ``problems`` is what the server has said against them."""
    for text in problems:
        yield Finding(severity="error", code="at_close", message=f"{design.label}: {text}")
    taken = {c.name for c in catalog.constraints if not set(c.columns) & set(gone)} | {
        i.name for i in catalog.indexes if not set(i.columns) & set(gone)
    }
    for item in design.at_close:
        what = f"{design.label}.{item.label}: {WORDS[item.kind]}"
        if item.kind != "not_null":
            what += f" {item.name}"
            if item.name in taken:
                yield Finding(
                    severity="error",
                    code="constraint_name",
                    message=f"{design.label}: constraint {item.name} already exists",
                )
        if design.partitioned and item.kind in {"unique", "foreign_key"}:
            yield Finding(
                severity="error",
                code="at_close_partitioned",
                message=f"{what}: not supported on a partitioned table",
                hint="Add it with SQL after the migration.",
            )
        yield Finding(
            severity="warning",
            code="at_close",
            message=f"{what} is enforced when the migration is closed, not before; `dualwire complete` refuses to"
            " close while rows break it",
        )


async def _problems(conn: asyncpg.Connection, items: Sequence[AtClose]) -> list[str]:
    """What the server would say against the constraints only when closing: told before anything is changed."""
    found = []
    for item in items:
        if item.kind != "unique":
            continue
        try:
            async with conn.transaction():
                await conn.execute(f"CREATE UNIQUE INDEX ON pg_temp.{PROBE} ({ident(item.column)})")
        except asyncpg.PostgresError as error:
            found.append(f"unique {item.name}: {error}")
    return found


async def _reference_problems(conn: asyncpg.Connection, schema: str, spec: ReferencesSpec) -> list[str]:
    """A foreign key needs a table with a unique column to point at."""
    oid = await find_table(conn, schema, spec.table)
    if oid is None:
        return [f"foreign key {spec.name}: table {schema}.{spec.table} does not exist"]
    found = await conn.fetchval(
        "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid"
        " AND a.attnum = i.indkey[0] WHERE i.indrelid = $1 AND i.indisunique AND i.indnkeyatts = 1"
        " AND i.indpred IS NULL AND i.indexprs IS NULL AND CASE WHEN $2::text IS NULL THEN i.indisprimary"
        " ELSE a.attname = $2 END)",
        oid,
        spec.column,
    )
    if found:
        return []
    column = f"({spec.column})" if spec.column else "'s primary key"
    return [f"foreign key {spec.name}: {spec.table}{column} is not unique"]
