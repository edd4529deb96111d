"""The routing state that a migration would publish, told from its design.

Nothing is changed, and no table that exists is locked: the second table of ``replace_table`` is made in a transaction
that is rolled back, columns that expand would add are only thought.
"""

from __future__ import annotations

import re
from dataclasses import replace

import asyncpg

from migrator import models
from migrator.catalog import CatalogColumn, CatalogTable, find_table, read_table
from migrator.design import Design, TableDesign
from migrator.partitions import read_partitions
from migrator.phases.expand import forward_of
from migrator.replace import models as replacement
from migrator.replace.design import ReplaceDesign
from migrator.sqltext import MARK, ident
from proxy.control.routing import Phase, Routing
from proxy.rewrite.model import TableModel

_CREATES = re.compile(r'\s*CREATE (?:OR REPLACE )?FUNCTION dualwire\."?(\w+)"?')
_SERVES_NEW = ("verified", "cutover")


async def foreseen(
    conn: asyncpg.Connection, routing: Routing, design: Design, phase: Phase
) -> tuple[Routing, dict[str, str]]:
    """The state at a phase from prepared to cutover, and the definitions of the functions it would call."""
    tables: list[TableModel] = []
    for table in design.tables:
        whole = await read_table(conn, table.oid)
        for catalog in [whole, *await read_partitions(conn, whole)]:
            tables.append(
                models.frozen(table, catalog)
                if phase == "prepared"
                else models.mirrored(table, expanded(table, catalog))
            )
    for replaced in design.replaces:
        tables.append(await _replaced(conn, replaced, phase))
    oids = {table.oid for table in design.existing} | {model.oid for model in tables}
    others = await models.untouched(conn, routing.tables, oids)
    serves_new = phase in _SERVES_NEW
    state = replace(
        routing,
        migration=design.migration,
        phase=phase,
        new=design.migration,
        serves_old=True,
        serves_new=serves_new,
        auto="new" if phase == "cutover" else "old",
        percent=100 if phase == "cutover" else 0,
        dual_write=phase != "prepared",
        tables=(*others, *tables),
        versions=(*routing.versions, design.migration),
    )
    bodies = {
        match[1]: statement
        for statement in forward_of(design)
        if (match := _CREATES.match(statement)) is not None
    }
    return state, bodies


async def _replaced(conn: asyncpg.Connection, table: ReplaceDesign, phase: Phase) -> TableModel:
    """A table that another one is to replace; that one is made for a moment, to be asked for its columns."""
    old = await read_table(conn, table.oid)
    if phase == "prepared":
        return replacement.frozen(table, old)
    transaction = conn.transaction()
    await transaction.start()
    try:
        await conn.execute(f"SET LOCAL search_path = pg_catalog, {ident(table.schema_name)}")
        for statement in table.create:
            await conn.execute(statement)
        oid = await find_table(conn, table.schema_name, table.temporary)
        assert oid is not None
        new = await read_table(conn, oid)
    finally:
        await transaction.rollback()
    return replacement.both(table, old, new, "new" if phase == "cutover" else "old")


def expanded(table: TableDesign, catalog: CatalogTable) -> CatalogTable:
    """The table's catalog entry as it will be once the new shape is there."""
    number = max((column.number for column in catalog.columns), default=0)
    added = [
        _column(
            number + at,
            column.name,
            column.type,
            column.type_full,
            not_null=column.not_null and column.native,
            default=column.default,
            default_kind=column.default_kind,
            collation=column.collation,
        )
        for at, column in enumerate(table.columns, 1)
    ]
    if table.mark:
        added.append(_column(number + len(added) + 1, MARK, "smallint", "smallint"))
    return catalog.model_copy(update={"columns": [*catalog.columns, *added]})


def _column(
    number: int,
    name: str,
    type: str,
    type_full: str,
    *,
    not_null: bool = False,
    default: str | None = None,
    default_kind: str = "none",
    collation: str | None = None,
) -> CatalogColumn:
    return CatalogColumn.model_validate(
        {
            "name": name,
            "number": number,
            "type": type,
            "type_full": type_full,
            "type_oid": 0,
            "typmod": -1,
            "kind": "b",
            "not_null": not_null,
            "default": default,
            "default_kind": default_kind,
            "identity": "",
            "generated": "",
            "collation": collation,
            "exact": True,
            "equality": True,
            "extension": False,
            "comment": None,
            "grants": [],
        }
    )
