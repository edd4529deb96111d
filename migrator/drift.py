"""Notices when somebody else changes a migrated table: what the catalog said after the last step, compared now.

A partition that has been added has inherited all that matters and is no drift; one that is gone is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import asyncpg

from migrator.catalog import CatalogTable, find_table, read_table
from migrator.design import Design
from migrator.errors import Refused
from migrator.partitions import members, read_partitions

_OWN_INDEX = "_dualwire_index_"


Catalogs = Mapping[int, CatalogTable]


async def look(conn: asyncpg.Connection, design: Design) -> Catalogs:
    """The migrated tables' catalog by OID; a table that is gone is left out."""
    catalogs: dict[int, CatalogTable] = {}
    for table in design.existing:
        if await find_table(conn, table.schema_name, table.name) == table.oid:
            catalogs[table.oid] = await read_table(conn, table.oid, brief=True)
            for partition in await read_partitions(conn, catalogs[table.oid], brief=True):
                catalogs[partition.oid] = partition
    for replaced in design.replaces:
        oid = await find_table(conn, replaced.schema_name, replaced.temporary)
        if oid is not None:
            catalogs[oid] = await read_table(conn, oid, brief=True)
    return catalogs


def snapshot(catalogs: Catalogs, design: Design) -> dict[str, Any]:
    """What matters of the migrated tables."""
    result: dict[str, Any] = {}
    watched = [(t.label, catalogs.get(t.oid)) for t in design.existing]
    for replaced in design.replaces:
        label = f"{replaced.schema_name}.{replaced.temporary}"
        watched.append((label, next((c for c in catalogs.values() if c.qualified == label), None)))
    for label, catalog in watched:
        if catalog is None:
            result[label] = None
            continue
        result[label] = {
            "columns": {
                c.name: [c.type_full, c.not_null, c.default, c.identity, c.generated, c.collation]
                for c in catalog.columns
            },
            "constraints": {c.name: [c.definition, c.validated] for c in catalog.constraints},
            "indexes": {
                i.name: [i.definition, i.valid] for i in catalog.indexes if not i.name.startswith(_OWN_INDEX)
            },
            "triggers": {t.name: [t.definition, t.enabled] for t in catalog.triggers},
            "partitions": {
                p.qualified: [[c.name for c in p.columns], {t.name: t.enabled for t in p.triggers}]
                for p in members(catalog.oid, catalogs)[1:]
            },
        }
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]


async def remember(
    conn: asyncpg.Connection, migration: int, design: Design, catalogs: Catalogs | None = None
) -> None:
    """Store the present state as the expected one."""
    if catalogs is None:
        catalogs = await look(conn, design)
    await conn.execute(
        "UPDATE dualwire.migration SET catalog = $2 WHERE id = $1",
        migration,
        json.dumps(snapshot(catalogs, design)),
    )


def differences(expected: dict[str, Any] | None, actual: dict[str, Any]) -> list[str]:
    """What changed, in words."""
    if expected is None:
        return []
    found = []
    for label, before in expected.items():
        after = actual.get(label)
        if before is None or after is None:
            if before != after:
                found.append(f"{label} was {'dropped or replaced' if after is None else 'created'}")
            continue
        for name, old in before.get("partitions", {}).items():
            new = after["partitions"].get(name)
            if new is None:
                found.append(f"{label}: partition {name} is gone")
            elif old != new:
                found.append(f"{label}: partition {name} changed from {old} to {new}")
        for kind in ("columns", "constraints", "indexes", "triggers"):
            one = kind.removesuffix("s").removesuffix("e") if kind == "indexes" else kind.removesuffix("s")
            for name in sorted(before[kind].keys() | after[kind].keys()):
                old, new = before[kind].get(name), after[kind].get(name)
                if old == new:
                    continue
                if old is None:
                    found.append(f"{label}: {one} {name} is new")
                elif new is None:
                    found.append(f"{label}: {one} {name} is gone")
                else:
                    found.append(f"{label}: {one} {name} changed from {old} to {new}")
    return found


async def check(conn: asyncpg.Connection, expected: dict[str, Any] | None, design: Design) -> None:
    """Refuse to go on over somebody else's DDL."""
    found = differences(expected, snapshot(await look(conn, design), design))
    if found:
        raise Refused(
            "a migrated table was changed by somebody else: " + "; ".join(found[:10]),
            hint="Undo the change, or accept it with `dualwire drift --accept`; then run the same command again.",
            data={"drift": found},
        )
