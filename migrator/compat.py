"""After contract: the old version without its columns (``compat``).

Clients that still speak the old version are served from the new shape alone. A column that is gone is *virtual*: it is
read by a function made of ``down``, and what is written to it reaches the new shape by functions made of ``up``. No
function here traps an error: nobody lists problems any more, so what cannot be computed is the client's error. Texts of
old clients are parsed against the *twin*, an empty table of the old shape.

Everything that serves the old version then, functions and twins, has a name that begins with ``compat_`` in the schema
``dualwire``, is made in the transaction that closes the migration, and goes when the next migration starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import asyncpg

from migrator import copyview
from migrator.analysis import Compiled
from migrator.catalog import CatalogColumn, CatalogTable
from migrator.copyview import CopyView
from migrator.design import Design, TableDesign
from migrator.expressions import parameters, parse_expression, render
from migrator.functions import settings_for, volatility_of
from migrator.models import completed, plain
from migrator.sqltext import cut, dollar, ident, literal
from proxy.control.routing import Routing
from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel, Virtual

KEY_PREFIX = "_dualwire_virtual_"
INTEGERS = frozenset({"smallint", "integer", "bigint"})
_INTEGER_NAMES = frozenset({"int2", "int4", "int8"})
_CUT_BY_CASTS = frozenset({1042, 1043, 1560, 1562, 1014, 1015, 1561, 1563})
"""char(n), varchar(n), bit(n), varbit(n) and their arrays: a cast cuts what an assignment refuses."""


@dataclass(frozen=True, slots=True)
class _Type:
    """What functions must know of a column, be it there or still to be added."""

    type: str
    type_full: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A column that only the old version has."""

    label: str
    column: CatalogColumn
    value: Compiled | None
    """``down``; None where there is none."""
    key: str
    written: bool
    """Some ``up`` takes it."""


@dataclass(frozen=True, slots=True)
class Served:
    """How one table's old version is served."""

    old: tuple[LogicalColumn, ...]
    virtuals: tuple[Virtual, ...]
    up: Direction
    twin: tuple[str, str]
    copy: CopyView | None
    """The view that takes the rows of COPY; None where a column follows from one that only the server knows."""
    statements: tuple[str, ...]
    """What makes the functions, the twin and the view."""
    lost: tuple[Lost, ...]


def serve(
    table: TableDesign,
    catalog: CatalogTable,
    migration: int,
    number: int,
    taken: AbstractSet[str] = frozenset(),
) -> Served:
    """Design how the old version of a table is served without its columns; physical names are those before the swap.

    Args:
        catalog: the table while the old version's columns are as they were.
        taken: names of relations in the schema ``dualwire``.
    """
    types = _types(table, catalog)
    down = {m.target: m.value for m in table.down.mirrors}
    used = {s for m in table.up.mirrors for s in m.value.sources}
    kept = {physical for _, physical in table.new}
    place = {physical: physical for _, physical in table.old if physical in kept}
    place.update(_unchanged(table, catalog))
    lost: list[Lost] = []
    for label, physical in table.old:
        if physical not in place:
            key = cut(KEY_PREFIX, label)
            while any(one.key == key for one in lost):
                key = cut(f"{KEY_PREFIX}{len(lost)}_", label)
            place[physical] = key
            column = catalog.column(physical)
            lost.append(Lost(label, column, down.get(physical), key, physical in used))
    statements: list[str] = []
    virtuals = tuple(
        _virtual(one, types, table, f"{migration}_{number}_{index}", statements)
        for index, one in enumerate(lost, start=1)
    )
    checked = {
        one.column.name: one
        for one in lost
        if one.column.not_null and one.value is not None and one.value.not_null
    }
    mirrors = []
    for index, mirror in enumerate(table.up.mirrors, start=1):
        if mirror.target in place.values():
            continue
        name = f"dualwire.compat_write_{migration}_{number}_{index}"
        value = mirror.value
        given = [
            (place_, checked[source])
            for place_, source in enumerate(value.sources, start=1)
            if source in checked
        ]
        arguments = [types[source].type for source in value.sources]
        body = _refusals(table, given)
        statements += _function(name, arguments, value, types[mirror.target], body)
        sources = tuple(place[source] for source in value.sources)
        mirrors.append(Mirror(target=mirror.target, function=name, sources=sources, total=value.total))
    twin = ("dualwire", f"compat_twin_{migration}_{number}")
    statements += _twin(table, catalog, twin, taken)
    old = tuple(LogicalColumn(label, place[physical]) for label, physical in table.old)
    columns = {
        c.name: catalog.column(c.replaces).model_copy(update={"name": c.name})
        for c in table.columns
        if c.replaces is not None
    }
    columns |= {c.name: c for c in catalog.columns}
    columns |= {
        one.key: one.column.model_copy(update={"default": v.column.default, "identity": ""})
        for one, v in zip(lost, virtuals, strict=True)
    }
    copy = _copy_view(f"compat_copy_{migration}_{number}", table.sql, old, columns, mirrors)
    statements += copy.create() if copy is not None else []
    return Served(
        old=old,
        virtuals=virtuals,
        up=Direction(mirrors=tuple(mirrors)),
        twin=twin,
        copy=copy,
        statements=tuple(statements),
        lost=tuple(lost),
    )


def _types(table: TableDesign, catalog: CatalogTable) -> Mapping[str, _Type]:
    added = {c.name: _Type(c.type, c.type_full) for c in table.columns}
    return added | {c.name: _Type(c.type, c.type_full) for c in catalog.columns}


def _unchanged(table: TableDesign, catalog: CatalogTable) -> Iterator[tuple[str, str]]:
    """Old columns whose successor holds the very same values, each with that: only constraints are others."""
    up = {m.target: m.value for m in table.up.mirrors}
    down = {m.target: m.value for m in table.down.mirrors}
    for column in table.columns:
        before = column.replaces
        if before is None or column.name not in up or before not in down:
            continue
        there, back = up[column.name], down[before]
        if (
            there.identity
            and there.sources == [before]
            and back.identity
            and back.sources == [column.name]
            and catalog.column(before).default == column.default
        ):
            yield before, column.name


# -- functions -----------------------------------------------------------------------------------------------


def _virtual(
    lost: Lost, types: Mapping[str, _Type], table: TableDesign, suffix: str, statements: list[str]
) -> Virtual:
    column, value = lost.column, lost.value
    default, kind = column.default, column.default_kind
    if column.identity or (default is not None and kind == "volatile" and "nextval(" in default):
        # Its sequence may go with the column.
        default, kind = None, "none"
    read = f"dualwire.compat_read_{suffix}"
    if value is None:
        constant = default if kind == "stable" and default is not None else "NULL"
        value = Compiled(
            template=f"CAST({constant} AS {column.type})",
            sources=[],
            total=True,
            not_null=False,
            volatility="immutable",
            path=[],
        )
        statements += _function(read, [], value, _Type(column.type, column.type_full), stable=True)
        raw = None
    else:
        raw = _raw(lost, types, table)
        if raw is not None:
            value = value.model_copy(
                update={"template": f"CAST(({value.template}) AS {column.type})", "total": True}
            )
        arguments = [types[source].type for source in value.sources]
        statements += _function(read, arguments, value, _Type(column.type, column.type_full))
    assign = None
    if (column.type_oid in _CUT_BY_CASTS and column.typmod != -1) or column.kind == "d":
        assign = f"dualwire.compat_assign_{suffix}"
        body = f"DECLARE dualwire_value {column.type_full} := $1; BEGIN RETURN dualwire_value; END"
        statements += [
            f"CREATE OR REPLACE FUNCTION {assign}({column.type}) RETURNS {column.type} LANGUAGE plpgsql IMMUTABLE"
            f" {settings_for([], False)} AS {dollar(body)}",
            f"GRANT EXECUTE ON FUNCTION {assign} TO PUBLIC",
        ]
    return Virtual(
        column=Column(
            name=lost.key,
            type=column.type,
            type_full=column.type_full,
            not_null=column.not_null,
            default=default,
            default_kind=kind,
            generated=bool(column.generated),
        ),
        function=read,
        sources=tuple(value.sources),
        raw=raw,
        assign=assign,
        discards=True,
    )


def _raw(lost: Lost, types: Mapping[str, _Type], table: TableDesign) -> str | None:
    """The physical column that holds the same numbers in another integer type, if there is one."""
    down = lost.value
    if down is None or lost.column.type not in INTEGERS or len(down.sources) != 1:
        return None
    [target] = down.sources
    up = next((m.value for m in table.up.mirrors if m.target == target), None)
    if types[target].type not in INTEGERS or up is None or up.sources != [lost.column.name]:
        return None
    return target if plain_integer(down) and plain_integer(up) else None


def plain_integer(value: Compiled) -> bool:
    """Whether an expression is its column, perhaps cast between integer types."""
    node = parse_expression(render(value.template, ["c"]), "compat").node
    while "TypeCast" in node:
        name = node["TypeCast"]["typeName"]["names"][-1]["String"]["sval"]
        if name not in _INTEGER_NAMES:
            return False
        node = node["TypeCast"]["arg"]
    return "ColumnRef" in node


def _function(
    name: str,
    arguments: Sequence[str],
    value: Compiled,
    target: _Type,
    before: str = "",
    *,
    stable: bool = False,
) -> list[str]:
    """A function that gives a value, or the error that computing or assigning it gives."""
    head = f"CREATE OR REPLACE FUNCTION {name}({', '.join(arguments)}) RETURNS {target.type}"
    kind = "STABLE" if stable else volatility_of([value.volatility])
    text = parameters(value.template)
    if value.total and value.volatility != "pinned" and not value.path and not before:
        made = f"{head} LANGUAGE sql {kind} PARALLEL SAFE RETURN ({text}\n)"
    else:
        body = "\n".join(
            [
                f"DECLARE dualwire_result {target.type_full};",
                "BEGIN",
                *([before] if before else []),
                f"    dualwire_result := ({text}\n);",
                "    RETURN dualwire_result;",
                "END",
            ]
        )
        pinned = settings_for([value.path], value.volatility == "pinned")
        made = f"{head} LANGUAGE plpgsql {kind} {pinned} AS {dollar(body)}"
    return [made, f"GRANT EXECUTE ON FUNCTION {name} TO PUBLIC"]


def _refusals(table: TableDesign, given: Sequence[tuple[int, Lost]]) -> str:
    """What a NULL in a column that was NOT NULL gets: what it got when the column was there."""
    return "\n".join(
        f"    IF ${place} IS NULL THEN RAISE EXCEPTION USING ERRCODE = '23502', MESSAGE = {literal(message)},"
        f" SCHEMA = {literal(table.schema_name)}, TABLE = {literal(table.name)}, COLUMN = {literal(lost.label)};"
        " END IF;"
        for place, lost in given
        for message in [
            f'null value in column "{lost.label}" of relation "{table.name}" violates not-null constraint'
        ]
    )


# -- COPY ----------------------------------------------------------------------------------------------------


def _copy_view(
    name: str,
    table: str,
    old: Sequence[LogicalColumn],
    columns: Mapping[str, CatalogColumn],
    mirrors: Sequence[Mirror],
) -> CopyView | None:
    """The view for COPY FROM. A key in ``columns`` that is another than the column's name is a virtual one's."""
    shown = [(c.name, columns[c.column]) for c in old if c.column in columns]
    shown = [(label, column) for label, column in shown if not column.generated]
    known = {c.column: c.name for c in old if any(label == c.name for label, _ in shown)}
    extra = []
    for mirror in mirrors:
        if not all(source in known for source in mirror.sources):
            return None
        arguments = ", ".join(f"NEW.{ident(known[source])}" for source in mirror.sources)
        extra.append((mirror.target, f"{mirror.function}({arguments})"))
    virtual = frozenset(c.name for c in old if c.column in columns and columns[c.column].name != c.column)
    return CopyView(name, table, shown, extra, virtual)


# -- the twin ------------------------------------------------------------------------------------------------


def _twin(
    table: TableDesign, catalog: CatalogTable, twin: tuple[str, str], taken: AbstractSet[str]
) -> list[str]:
    """The empty table: what matters for parsing and analysis, and nothing that others would have to respect."""
    labels = {physical: label for label, physical in table.old}
    parts = []
    for label, physical in table.old:
        column = catalog.column(physical)
        text = f"{ident(label)} {column.type_full}"
        if column.collation:
            text += f" COLLATE {column.collation}"
        if column.generated:
            text += f" GENERATED ALWAYS AS (CAST(NULL AS {column.type_full})) STORED"
        elif column.identity:
            text += f" GENERATED {'ALWAYS' if column.identity == 'a' else 'BY DEFAULT'} AS IDENTITY"
        parts.append(text + (" NOT NULL" if column.not_null else ""))
    for index, constraint in enumerate(catalog.constraints):
        if constraint.kind not in {"p", "u"} or not set(constraint.columns) <= set(labels):
            continue
        # GROUP BY the key, ON CONFLICT ON CONSTRAINT. An index of that name may be dualwire's own.
        name = f"{twin[1]}_{index}" if constraint.name in taken else constraint.name
        kind = "PRIMARY KEY" if constraint.kind == "p" else "UNIQUE"
        listed = ", ".join(ident(labels[c]) for c in constraint.columns)
        late = " DEFERRABLE" if " DEFERRABLE" in constraint.definition else ""
        parts.append(f"CONSTRAINT {ident(name)} {kind} ({listed}){late}")
    parts.append("CONSTRAINT compat_twin_is_empty CHECK (false)")
    return [f"CREATE TABLE {'.'.join(map(ident, twin))} (\n    " + ",\n    ".join(parts) + "\n)"]


# -- models --------------------------------------------------------------------------------------------------


def closed_model(closed: TableModel, served: Served | None, table: TableDesign) -> TableModel:
    """A table, or a partition of it, between closed and the swap: physical names are the migration's."""
    if served is None:
        return closed
    place = {name: at for at, (name, _) in enumerate(table.orders(closed.oid)[0])}
    return replace(
        closed,
        old=tuple(sorted(served.old, key=lambda c: place.get(c.name, len(place)))),
        virtuals=served.virtuals,
        up=served.up,
        guard="off",
        twin_old=served.twin,
        # The view writes to the table itself.
        copy_old=None
        if served.copy is None or closed.oid != table.oid
        else (copyview.SCHEMA, served.copy.name),
    )


def completed_model(routing: Routing, table: TableDesign, catalog: CatalogTable) -> TableModel | None:
    """A table after the swap; None where its columns need no rule.

    Args:
        routing: the state before it.
    """
    before = next((t for t in routing.tables if t.oid == catalog.oid), None)
    if not routing.compat or before is None or before.twin_old is None:
        return completed(table, catalog)
    final = {physical: name for name, physical in table.new}

    def named(name: str) -> str:
        return final.get(name, name)

    return replace(
        plain(catalog, [(name, name) for name, _ in table.orders(catalog.oid)[1]]),
        guard="off",
        twin_old=before.twin_old,
        copy_old=before.copy_old,
        old=tuple(LogicalColumn(c.name, named(c.column)) for c in before.old),
        up=Direction(
            mirrors=tuple(
                replace(m, target=named(m.target), sources=tuple(map(named, m.sources)))
                for m in before.up.mirrors
            )
        ),
        virtuals=tuple(
            replace(v, sources=tuple(map(named, v.sources)), raw=None if v.raw is None else named(v.raw))
            for v in before.virtuals
        ),
    )


def copy_functions(
    design: Design, models: Sequence[TableModel | None], catalogs: Mapping[int, CatalogTable]
) -> list[str]:
    """What lets the views for COPY write to the columns under the names that they have after the swap."""
    made = {model.oid: model for model in models if model is not None and model.twin_old is not None}
    statements = []
    for table in design.tables:
        model = made.get(table.oid)
        if model is None or model.copy_old is None:
            continue
        catalog = catalogs[table.oid]
        columns = {c.name: c for c in catalog.columns}
        # Whatever it is of, a virtual column's place in the function is among the arguments only.
        for virtual in model.virtuals:
            columns[virtual.column.name] = catalog.columns[0].model_copy(
                update={"name": "", "identity": "", "generated": ""}
            )
        view = _copy_view(model.copy_old[1], table.sql, model.old, columns, model.up.mirrors)
        statements += [view.function()] if view is not None else []
    return statements


# -- the objects ---------------------------------------------------------------------------------------------


def planned(design: Design, catalogs: Mapping[int, CatalogTable]) -> Design:
    """The design with what closing makes for each table."""
    tables = [
        t.model_copy(update={"compat": list(served[t.oid].statements)}) if t.oid in served else t
        for served in [every(design, catalogs)]
        for t in design.tables
    ]
    return design.model_copy(update={"compat": True, "tables": tables})


def every(
    design: Design, catalogs: Mapping[int, CatalogTable], taken: AbstractSet[str] = frozenset()
) -> dict[int, Served]:
    """Every table of which the versions differ, by OID."""
    return {
        table.oid: serve(table, catalogs[table.oid], design.id, number, taken)
        for number, table in enumerate(design.tables, start=1)
        if table.oid in catalogs and (table.old != table.new or table.columns)
    }


async def make(
    conn: asyncpg.Connection, design: Design, catalogs: Mapping[int, CatalogTable]
) -> dict[int, Served]:
    """Make functions and twins, in the transaction that closes and before it changes anything."""
    await drop(conn)
    taken = {
        str(r[0])
        for r in await conn.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'dualwire'::regnamespace"
        )
    }
    made = every(design, catalogs, taken)
    for served in made.values():
        for statement in served.statements:
            await conn.execute(statement)
    return made


async def left(conn: asyncpg.Connection) -> list[str]:
    """Functions and twins that are there, as DROP takes them."""
    rows = await conn.fetch(
        "SELECT 'TABLE ' || oid::regclass AS what FROM pg_class"
        " WHERE relnamespace = 'dualwire'::regnamespace AND relkind = 'r' AND relname LIKE 'compat\\_twin\\_%'"
        " UNION ALL SELECT 'VIEW ' || oid::regclass FROM pg_class"
        " WHERE relnamespace = 'dualwire'::regnamespace AND relkind = 'v' AND relname LIKE 'compat\\_copy\\_%'"
        " UNION ALL SELECT 'FUNCTION ' || oid::regprocedure FROM pg_proc"
        " WHERE pronamespace = 'dualwire'::regnamespace AND proname ~ '^compat_(read|write|assign|copy)_'"
    )
    return [str(row["what"]) for row in rows]


async def drop(conn: asyncpg.Connection) -> None:
    """Drop whatever a compat has left."""
    for what in await left(conn):
        await conn.execute(f"DROP {what}")


def ended(routing: Routing) -> Routing:
    """The state without compat: the version that the schema has is the only one."""
    if not routing.compat or routing.new is None:
        return routing
    return replace(
        routing,
        phase=None,
        old=routing.new,
        new=None,
        serves_old=True,
        serves_new=False,
        auto="old",
        percent=0,
        dual_write=False,
    )
