"""Indexes on a column that gets another physical column: built anew for it, under a temporary name, after backfill.

Plain, non-unique indexes are carried over; others are findings, never silently lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg
from pglast import ast, parse_sql
from pglast.stream import RawStream

from migrator.analysis import PROBE
from migrator.catalog import CatalogIndex, CatalogTable
from migrator.design import Finding, IndexDesign, TableDesign


async def index_designs(
    conn: asyncpg.Connection, catalog: CatalogTable, table: TableDesign, migration: int
) -> tuple[list[IndexDesign], list[Finding]]:
    """The indexes to build, and what stands against others. The probe table must be there."""
    replaced = {c.replaces: c.name for c in table.columns if c.replaces is not None}
    designs, findings = [], []
    for number, index in enumerate(catalog.indexes, start=1):
        touched = [c for c in index.columns if c in replaced]
        if not touched:
            continue
        if index.constraint or index.unique or not index.plain:
            kind = "unique or constraint" if index.unique or index.constraint else "expression or partial"
            findings.append(
                Finding(
                    severity="error",
                    code="index",
                    message=f"{table.label}: changing column {', '.join(touched)} of the {kind} index"
                    f" {index.name} is not supported yet",
                    hint="Drop the index before the migration and create it again after it.",
                )
            )
            continue
        name = f"_dualwire_index_{migration}_{number}"
        try:
            async with conn.transaction():
                await conn.execute(_rewritten(index, replaced, name, None, PROBE, concurrent=False))
        except asyncpg.PostgresError as error:
            findings.append(
                Finding(
                    severity="error",
                    code="index",
                    message=f"{table.label}: index {index.name} cannot be built on the new column: {error}",
                    hint="Drop the index before the migration, or keep a type that it can be built on.",
                )
            )
            continue
        create = _rewritten(index, replaced, name, table.schema_name, table.name, concurrent=True)
        designs.append(IndexDesign(name=name, final=index.name, create=create))
    return designs, findings


def _rewritten(
    index: CatalogIndex,
    replaced: Mapping[str, str],
    name: str,
    schema: str | None,
    relation: str,
    *,
    concurrent: bool,
) -> str:
    """The index's definition over other columns, under another name."""
    [raw] = parse_sql(index.definition)
    statement: Any = raw.stmt
    assert isinstance(statement, ast.IndexStmt)
    statement.idxname = name
    statement.concurrent = concurrent
    statement.if_not_exists = False
    target: Any = statement.relation
    target.schemaname, target.relname, target.inh = schema, relation, True
    for element in [*(statement.indexParams or ()), *(statement.indexIncludingParams or ())]:
        if element.name in replaced:
            element.name = replaced[element.name]
    return str(RawStream()(statement))
