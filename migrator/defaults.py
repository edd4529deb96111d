"""The default of a column that stands in another's place: given, kept, or carried over by ``up``."""

from __future__ import annotations

import json

import asyncpg
from pglast.parser import ParseError, parse_sql_json

from migrator.catalog import CatalogColumn, CatalogTable
from migrator.design import Finding, MirrorDesign
from migrator.draft import Slot
from migrator.expressions import render
from migrator.sqltext import literal


async def new_default(
    conn: asyncpg.Connection,
    table: CatalogTable,
    probe: CatalogTable,
    slot: Slot,
    column: CatalogColumn,
    mirror: MirrorDesign | None,
    findings: list[Finding],
) -> str | None:
    """The default's text, or None.

    A retyped column whose old default is a constant gets what ``up`` makes of it; any other default of a retyped
    column is a finding, because nobody but the author can say what it becomes.
    """
    if slot.default_given:
        return slot.default
    if slot.physical is None:
        return None
    before = table.column(slot.physical)
    if before.default is None:
        return None
    if (before.type_oid, before.typmod) == (column.type_oid, column.typmod):
        return before.default
    where = f"{table.name}.{slot.new}"
    if mirror is not None and mirror.value.sources == [slot.physical] and _constant(before.default):
        value = render(mirror.value.template, [f"CAST(({before.default}) AS {before.type_full})"])
        try:
            async with conn.transaction():
                text = await conn.fetchval(f"SELECT CAST(({value}) AS {column.type_full})::text")
            return None if text is None else f"{literal(text)}::{column.type_full}"
        except asyncpg.PostgresError:
            pass
    findings.append(
        Finding(
            severity="error",
            code="default",
            message=f"{where}: the old default {before.default} cannot be carried over to {column.type_full}",
            hint="Give `default` in alter_column (null drops it).",
        )
    )
    return None


def _constant(text: str) -> bool:
    """Whether a default is a literal, perhaps cast."""
    try:
        tree = json.loads(parse_sql_json(f"SELECT {text}"))
        node = tree["stmts"][0]["stmt"]["SelectStmt"]["targetList"][0]["ResTarget"]["val"]
    except (ParseError, KeyError, IndexError, ValueError):
        return False
    while "TypeCast" in node:
        node = node["TypeCast"]["arg"]
    return "A_Const" in node
