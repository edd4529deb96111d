"""What sidecars are told about a replaced table in each phase.

Before the flip both versions live on the old table: columns that only the new version has are virtual, read by the
``up`` functions and written by way of the ``down`` functions. After it the same the other way round.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

from migrator.catalog import CatalogColumn, CatalogTable
from migrator.models import bare, settled
from migrator.replace.design import ColumnPair, ReplaceDesign, Side, other
from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel, Virtual

VIRTUAL = "_dualwire_virtual_"


def frozen(design: ReplaceDesign, old: CatalogTable) -> TableModel:
    """The old version's columns and nothing else."""
    order = [(c.name, c.name) for c in design.columns]
    return bare(old, order, order)


def both(design: ReplaceDesign, old: CatalogTable, new: CatalogTable, authority: Side) -> TableModel:
    """Both versions on the authoritative table."""
    catalog = old if authority == "old" else new
    guest = other(authority)
    shape = new if guest == "new" else old
    native = [(c.name, c.name) for c in design.columns]
    translated = [(c.name, c.name if c.carried else VIRTUAL + c.name) for c in design.columns]
    keys = {c.name: VIRTUAL + c.name for c in design.columns if not c.carried}
    virtuals = tuple(_virtual(c, shape, guest, keys[c.name]) for c in design.columns if not c.carried)
    mirrors = Direction(mirrors=tuple(_mirror(c, authority, keys) for c in design.columns if not c.carried))
    sides = (native, translated) if authority == "old" else (translated, native)
    made = bare(catalog, *sides)
    twin = (design.schema_name, design.temporary if guest == "new" else design.name)
    return replace(
        made,
        schema=design.schema_name,
        name=design.name,
        shadows=tuple(old.shadows),
        virtuals=virtuals,
        relation=None if authority == "old" else (design.schema_name, design.temporary),
        up=mirrors if authority == "new" else Direction(),
        down=mirrors if authority == "old" else Direction(),
        twin_old=twin if guest == "old" else None,
        twin_new=twin if guest == "new" else None,
        labels=tuple(design.labels),
    )


def closed(design: ReplaceDesign, old: CatalogTable, new: CatalogTable) -> TableModel:
    """The new version only, still under the new table's temporary name."""
    order = tuple(LogicalColumn(c.name, c.name) for c in design.columns)
    made = both(design, old, new, "new")
    return replace(made, old=order, new=order, virtuals=(), up=Direction(), twin_old=None)


def swapped(design: ReplaceDesign, new: CatalogTable) -> TableModel | None:
    """After the swap; None where it needs no rule."""
    return settled(new, [(c.name, c.name) for c in design.columns])


def restored(design: ReplaceDesign, old: CatalogTable) -> TableModel | None:
    """After a rollback."""
    return settled(old, [(c.name, c.name) for c in design.columns])


def _virtual(column: ColumnPair, shape: CatalogTable, guest: Side, key: str) -> Virtual:
    function = column.up_function if guest == "new" else column.down_function
    assign = column.up_assign if guest == "new" else column.down_assign
    assert function is not None
    return Virtual(
        column=_column(shape.column(column.name), key),
        function=function,
        sources=tuple(column.value(guest).sources),
        raw=column.name if column.raw else None,
        assign=assign,
    )


def _mirror(column: ColumnPair, authority: Side, keys: dict[str, str]) -> Mirror:
    function = column.up_function if authority == "new" else column.down_function
    assert function is not None
    value = column.value(authority)
    return Mirror(
        target=column.name,
        function=function,
        sources=tuple(keys.get(s, s) for s in value.sources),
        total=value.total,
    )


def _column(column: CatalogColumn, key: str) -> Column:
    return Column(
        name=key,
        type=column.type,
        type_full=column.type_full,
        not_null=column.not_null,
        default=column.default,
        default_kind=column.default_kind,
        identity=cast(Literal["", "a", "d"], column.identity),
        generated=bool(column.generated),
    )
