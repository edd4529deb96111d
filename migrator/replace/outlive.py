"""After contract (``compat``) for a replaced table: clients of the old version go on with the new one.

They read its columns by copies of the ``down`` functions and write them by copies of the ``up`` functions, all with
names by which ``migrator.compat`` finds and drops them; their texts are parsed against an empty table of the old shape.
"""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from migrator.catalog import CatalogTable
from migrator.models import bare
from migrator.replace import mirror, models
from migrator.replace.design import ColumnPair, ReplaceDesign
from migrator.sqltext import ident, qualified
from proxy.control.routing import Routing
from proxy.rewrite.model import TableModel

TWIN_SCHEMA = "dualwire"


def twin_name(design: ReplaceDesign) -> str:
    """The empty table of the old shape."""
    return f"compat_twin_{design.migration}_r{design.number}"


def renamed(design: ReplaceDesign) -> ReplaceDesign:
    """The design with functions that outlive the swap."""
    columns = [_renamed(c, f"{design.migration}_r{design.number}_{i}") for i, c in enumerate(design.columns)]
    return design.model_copy(update={"columns": columns})


def _renamed(column: ColumnPair, suffix: str) -> ColumnPair:
    if column.carried:
        return column
    return column.model_copy(
        update={
            "up_function": f"dualwire.compat_write_{suffix}",
            "down_function": f"dualwire.compat_read_{suffix}",
            "down_assign": column.down_assign and f"dualwire.compat_assign_{suffix}",
            "up_assign": None,
            "up_try": None,
            "down_try": None,
        }
    )


def statements(design: ReplaceDesign, old: CatalogTable, taken: set[str]) -> list[str]:
    """What makes the functions and the twin."""
    twin = twin_name(design)
    parts = [f"LIKE {design.sql} INCLUDING GENERATED INCLUDING IDENTITY"]
    for index, constraint in enumerate(c for c in old.constraints if c.kind in {"p", "u"}):
        name = f"{twin}_{index}" if constraint.name in taken else constraint.name
        parts.append(f"CONSTRAINT {ident(name)} {constraint.definition}")
    parts.append("CONSTRAINT compat_twin_is_empty CHECK (false)")
    return [
        *mirror.values(renamed(design)),
        f"CREATE TABLE {qualified(TWIN_SCHEMA, twin)} ({', '.join(parts)})",
    ]


async def make(
    conn: asyncpg.Connection, design: ReplaceDesign, old: CatalogTable, new: CatalogTable
) -> TableModel:
    """Make them, in the transaction that closes; gives the model from there to the swap."""
    rows = await conn.fetch("SELECT relname FROM pg_class WHERE relnamespace = 'dualwire'::regnamespace")
    for statement in statements(design, old, {str(r[0]) for r in rows}):
        await conn.execute(statement)
    made = models.both(renamed(design), old, new, "new")
    return replace(made, guard="off", twin_old=(TWIN_SCHEMA, twin_name(design)))


def swapped(routing: Routing, design: ReplaceDesign, new: CatalogTable) -> TableModel | None:
    """The model after the swap, with the state before it."""
    before = next(
        (t for t in routing.tables if (t.schema, t.name) == (design.schema_name, design.name)), None
    )
    if not routing.compat or before is None or before.twin_old is None:
        return models.swapped(design, new)
    order = [(c.name, c.name) for c in design.columns]
    return replace(
        bare(new, order, order),
        guard="off",
        old=before.old,
        up=before.up,
        virtuals=before.virtuals,
        twin_old=before.twin_old,
    )
