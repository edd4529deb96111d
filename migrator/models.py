"""The tables of a routing state, as sidecars know them, built from the catalog of the moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import asyncpg

from migrator import copyview
from migrator.armed import strict_name
from migrator.catalog import CatalogTable, find_table, read_table
from migrator.design import DirectionDesign, TableDesign
from migrator.sqltext import MARK
from proxy.rewrite.model import Column, Direction, Guard, LogicalColumn, Mirror, TableModel

Order = Sequence[tuple[str, str]]


def _columns(table: CatalogTable) -> tuple[Column, ...]:
    return tuple(
        Column(
            name=c.name,
            type=c.type,
            type_full=c.type_full,
            not_null=c.not_null,
            default=c.default,
            default_kind=c.default_kind,
            identity=cast(Literal["", "a", "d"], c.identity),
            generated=bool(c.generated),
        )
        for c in table.columns
    )


def _direction(design: DirectionDesign) -> Direction:
    return Direction(
        mirrors=tuple(
            Mirror(target=m.target, function=m.function, sources=tuple(m.value.sources), total=m.value.total)
            for m in design.mirrors
        ),
        ok_function=design.ok,
        ok_sources=tuple(design.ok_sources),
    )


def _model(
    table: CatalogTable,
    old: Order,
    new: Order,
    *,
    up: Direction | None = None,
    down: Direction | None = None,
    mark: str | None = None,
    labels: tuple[tuple[str, str], ...] = (),
    guard: Guard = "sync",
    inline: bool = True,
    copy_old: str | None = None,
    copy_new: str | None = None,
) -> TableModel:
    return TableModel(
        schema=table.schema_name,
        name=table.name,
        oid=table.oid,
        columns=_columns(table),
        primary_key=tuple(table.primary_key),
        old=tuple(LogicalColumn(*pair) for pair in old),
        new=tuple(LogicalColumn(*pair) for pair in new),
        up=up or Direction(),
        down=down or Direction(),
        mark=mark,
        guard=guard,
        inline=inline,
        copy_old=None if copy_old is None else (copyview.SCHEMA, copy_old),
        copy_new=None if copy_new is None else (copyview.SCHEMA, copy_new),
        shadows=tuple(table.shadows),
        labels=labels,
    )


def _labels(table: TableDesign) -> tuple[tuple[str, str], ...]:
    """What the new shape's indexes and constraints are called until the swap, and after it."""
    constraints = [
        (strict_name(c), c.name if c.kind == "check" else f"{table.name}_{c.label}_not_null")
        for c in table.up.constraints
    ]
    return (*((index.name, index.final) for index in table.indexes), *constraints)


def bare(table: CatalogTable, old: Order, new: Order) -> TableModel:
    """Both versions' columns without any mirror."""
    return _model(table, old, new)


def frozen(table: TableDesign, catalog: CatalogTable) -> TableModel:
    """The old version's columns and nothing else: before expand, and while a rollback is under way."""
    old, _ = table.orders(catalog.oid)
    return _model(catalog, old, old)


def mirrored(table: TableDesign, catalog: CatalogTable) -> TableModel:
    """Both versions with all mirrors: from expanded until closed."""
    old, new = table.orders(catalog.oid)
    # A view inserts into the whole table: what is copied into one partition must not go to another one.
    whole = catalog.oid == table.oid
    return _model(
        catalog,
        old,
        new,
        up=_direction(table.up),
        down=_direction(table.down),
        mark=MARK if table.mark else None,
        labels=_labels(table),
        guard=table.guard,
        inline=table.inline,
        copy_old=table.copy_old if whole else None,
        copy_new=table.copy_new if whole else None,
    )


def closed(table: TableDesign, catalog: CatalogTable) -> TableModel:
    """The new version only, still under the physical names of the migration."""
    _, new = table.orders(catalog.oid)
    return _model(catalog, new, new, labels=_labels(table))


def plain(catalog: CatalogTable, order: Order) -> TableModel:
    """One version, and nothing that follows from anything else."""
    return _model(catalog, order, order)


def settled(catalog: CatalogTable, order: Order) -> TableModel | None:
    """A table outside of any migration; None where its columns need no rule."""
    if [(c.name, c.name) for c in catalog.columns] == [tuple(pair) for pair in order]:
        return None
    return plain(catalog, order)


def completed(table: TableDesign, catalog: CatalogTable) -> TableModel | None:
    """The new version alone, after the swap."""
    _, new = table.orders(catalog.oid)
    return settled(catalog, [(name, name) for name, _ in new])


def rolled_back(table: TableDesign, catalog: CatalogTable) -> TableModel | None:
    """The old version alone, after a rollback."""
    old, _ = table.orders(catalog.oid)
    return settled(catalog, old)


def logical_order(table: CatalogTable, known: Order | None) -> list[tuple[str, str]]:
    """The version's columns: the published order, without columns that are gone, new ones at the end."""
    physical = [c.name for c in table.columns]
    if known is None:
        return [(name, name) for name in physical]
    kept = [(logical, name) for logical, name in known if name in physical]
    listed = {name for _, name in kept}
    return kept + [(name, name) for name in physical if name not in listed]


async def untouched(
    conn: asyncpg.Connection, tables: Sequence[TableModel], design_oids: set[int]
) -> tuple[TableModel, ...]:
    """Published tables that a migration does not touch, with their catalog read again."""
    kept = []
    for model in tables:
        if model.oid in design_oids or await find_table(conn, model.schema, model.name) != model.oid:
            continue
        catalog = await read_table(conn, model.oid, brief=True)
        fresh = settled(catalog, logical_order(catalog, [(c.name, c.column) for c in model.new]))
        if fresh is not None:
            kept.append(fresh)
    return tuple(kept)
