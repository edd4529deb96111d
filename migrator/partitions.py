"""Partitioned tables: one shape for the whole tree, and every partition a table that clients may name.

DDL on the parent reaches all partitions: columns, CHECK constraints and row triggers are inherited, their ALWAYS state
too, by partitions that are created or attached later as well. What does not come by itself is done here: the
partitions' catalog (each has an order of columns and triggers of its own), indexes (CONCURRENTLY is not allowed on
the parent), and what must be refused.

A partition that is created while a migration is under way has columns and guard at once; statements that name it
directly are left to the guard until the next publication.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import asyncpg
from pglast import ast, parse_sql
from pglast.stream import RawStream

from migrator.catalog import CatalogTable, read_table
from migrator.design import Finding, IndexDesign, TableDesign
from migrator.sqltext import cut, ident, qualified

Order = Sequence[tuple[str, str]]


async def tree(conn: asyncpg.Connection, oid: int) -> list[int]:
    """All partitions below a table, parents before their children."""
    rows = await conn.fetch(
        "SELECT relid::oid::bigint FROM pg_partition_tree($1::oid::regclass) WHERE relid <> $1::oid::regclass"
        " ORDER BY level, relid",
        oid,
    )
    return [int(r[0]) for r in rows]


async def read_partitions(
    conn: asyncpg.Connection, table: CatalogTable, *, brief: bool = False
) -> list[CatalogTable]:
    """The catalog entries of all partitions; none for an ordinary table."""
    if table.kind != "p":
        return []
    return [await read_table(conn, oid, brief=brief) for oid in await tree(conn, table.oid)]


def members(oid: int, catalogs: Mapping[int, CatalogTable]) -> list[CatalogTable]:
    """The table and its partitions, of those that were read."""
    return [catalogs[oid], *(c for c in catalogs.values() if oid in c.ancestors)]


def merged(table: CatalogTable, partitions: Sequence[CatalogTable]) -> CatalogTable:
    """The table with everything around its partitions that matters to a write through it, for lint to judge."""
    if not partitions:
        return table
    triggers = {t.name: t for p in partitions for t in p.triggers} | {t.name: t for t in table.triggers}
    return table.model_copy(
        update={
            "triggers": sorted(triggers.values(), key=lambda t: t.name),
            "dependents": [d for c in [table, *partitions] for d in c.dependents],
            "foreign": list(dict.fromkeys(f for c in [table, *partitions] for f in c.foreign)),
            "publications": list(dict.fromkeys(x for c in [table, *partitions] for x in c.publications)),
            "whole_row": list(dict.fromkeys(x for c in [table, *partitions] for x in c.whole_row)),
            "has_rules": any(c.has_rules for c in [table, *partitions]),
            "instead_rules": any(c.instead_rules for c in [table, *partitions]),
            "rows": sum(p.rows for p in partitions if p.kind != "p"),
            "bytes": sum(p.bytes for p in partitions),
        }
    )


def judge(
    table: CatalogTable, partitions: Sequence[CatalogTable], design: TableDesign, gone: Mapping[str, str]
) -> Iterator[Finding]:
    """What cannot be done to a partitioned table; ``gone`` has the physical columns that change, with their names."""

    def error(code: str, message: str, hint: str) -> Finding:
        return Finding(severity="error", code=code, message=message, hint=hint)

    for member in [table, *partitions]:
        for name in member.partition_key:
            if name in gone:
                yield error(
                    "partition_key",
                    f"{design.label}.{gone[name]} is in the partition key of {member.qualified}: it cannot change"
                    " inside the table",
                    "Use replace_table, which makes another table.",
                )
    for partition in partitions:
        if partition.kind == "f" and design.mark:
            yield error(
                "partition_foreign",
                f"{partition.qualified}, a partition of {design.label}, is a foreign table",
                "Detach it for the time of the migration.",
            )
        for index in partition.indexes:
            touched = [gone[c] for c in index.columns if c in gone]
            if touched and not index.inherited:
                yield error(
                    "partition_index",
                    f"{design.label}: the index {index.name} of the partition {partition.qualified} alone uses"
                    f" {', '.join(touched)}",
                    "Create it on the partitioned table, or drop it before the migration.",
                )
        for constraint in partition.constraints:
            touched = [gone[c] for c in constraint.columns if c in gone]
            if touched and not constraint.inherited:
                yield error(
                    "partition_constraint",
                    f"{design.label}: the constraint {constraint.name} of the partition {partition.qualified} alone"
                    f" uses {', '.join(touched)}",
                    "Drop it before the migration.",
                )


async def fire_alike(conn: asyncpg.Connection, tables: Sequence[TableDesign]) -> None:
    """Make sure that partitions fire the triggers of ours as their table does, whatever the server's version copies.

    In the transaction that makes the triggers; on PostgreSQL 18 there is nothing left to do.
    """
    for table in tables:
        if not table.partitioned:
            continue
        rows = await conn.fetch(
            "SELECT n.nspname, c.relname, t.tgname, p.tgenabled::text AS wanted"
            " FROM pg_trigger p JOIN pg_partition_tree(p.tgrelid::regclass) x ON x.level > 0"
            " JOIN pg_trigger t ON t.tgrelid = x.relid AND t.tgname = p.tgname AND t.tgenabled <> p.tgenabled"
            " JOIN pg_class c ON c.oid = x.relid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE p.tgrelid = $1 AND p.tgname LIKE 'zzz\\_dualwire\\_%' AND p.tgenabled = 'A'",
            table.oid,
        )
        for row in rows:
            name = qualified(row["nspname"], row["relname"])
            await conn.execute(f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER {ident(row['tgname'])}")


def odd_orders(
    table: CatalogTable, partitions: Sequence[CatalogTable], old: Order, known: Mapping[int, Order]
) -> dict[str, list[str]]:
    """Partitions whose columns stand in another order than the parent's: the version's names in that order, by OID."""
    physical = [c.name for c in table.columns]
    found: dict[str, list[str]] = {}
    for partition in partitions:
        own = [c.name for c in partition.columns]
        if own == physical:
            continue
        names = {p: n for n, p in old}
        published = [n for n, _ in known.get(partition.oid, ())]
        if set(published) == set(names.values()):
            found[str(partition.oid)] = published
        else:
            found[str(partition.oid)] = [names[p] for p in own if p in names]
    return found


# -- indexes -------------------------------------------------------------------------------------------------


async def build_index(conn: asyncpg.Connection, table: TableDesign, index: IndexDesign) -> None:
    """Build an index of the whole tree without blocking writes; what is there already is kept.

    The parent's index is invalid until every partition's is attached, and a partition that comes later gets its own.
    """
    await _build(conn, table.oid, index.name, index)


async def _build(conn: asyncpg.Connection, oid: int, name: str, index: IndexDesign) -> None:
    relation = await conn.fetchrow(
        "SELECT n.nspname, c.relname, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.oid = $1",
        oid,
    )
    schema, table, kind = relation
    made = await conn.fetchval(
        "SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass($1)", qualified(schema, name)
    )
    if kind != "p":
        if made is False:
            await conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {qualified(schema, name)}")
        if not made:
            await conn.execute(_over(index.create, schema, table, name, concurrent=True, only=False))
        return
    if made is None:
        await conn.execute(_over(index.create, schema, table, name, concurrent=False, only=True))
    children = await conn.fetch(
        "SELECT i.inhrelid::bigint AS oid, n.nspname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.inhparent = $1 AND NOT EXISTS ("
        "   SELECT FROM pg_index x JOIN pg_inherits a ON a.inhrelid = x.indexrelid"
        "   WHERE x.indrelid = i.inhrelid AND a.inhparent = to_regclass($2)) ORDER BY i.inhrelid",
        oid,
        qualified(schema, name),
    )
    for child in children:
        own = child_name(index, child["oid"])
        await _build(conn, child["oid"], own, index)
        await conn.execute(
            f"ALTER INDEX {qualified(schema, name)} ATTACH PARTITION {qualified(child['nspname'], own)}"
        )


def child_name(index: IndexDesign, partition: int) -> str:
    """A partition's index until the swap."""
    return cut("", f"{index.name}_{partition}")


def _over(create: str, schema: str, table: str, name: str, *, concurrent: bool, only: bool) -> str:
    [raw] = parse_sql(create)
    statement = raw.stmt
    assert isinstance(statement, ast.IndexStmt)
    statement.idxname = name
    statement.concurrent = concurrent
    target = statement.relation
    assert target is not None
    target.schemaname, target.relname, target.inh = schema, table, not only
    return str(RawStream()(statement))


async def index_names(conn: asyncpg.Connection, schema: str, name: str) -> dict[int, str]:
    """The names of a partitioned index's parts, by partition."""
    rows = await conn.fetch(
        "SELECT x.indrelid::bigint AS partition, c.relname FROM pg_partition_tree(to_regclass($1)) t"
        " JOIN pg_index x ON x.indexrelid = t.relid JOIN pg_class c ON c.oid = t.relid WHERE t.level > 0",
        qualified(schema, name),
    )
    return {int(r["partition"]): str(r["relname"]) for r in rows}


async def rename_parts(
    conn: asyncpg.Connection, table: TableDesign, index: IndexDesign, before: Mapping[int, str]
) -> None:
    """After the swap: parts get the names that the former index's parts had."""
    for partition, name in (await index_names(conn, table.schema_name, index.final)).items():
        wanted = before.get(partition)
        if wanted is not None and wanted != name:
            schema = await conn.fetchval(
                "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
                partition,
            )
            await conn.execute(f"ALTER INDEX {qualified(schema, name)} RENAME TO {ident(wanted)}")
