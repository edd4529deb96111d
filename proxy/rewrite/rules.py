"""What one version needs of one table, compiled once for many statements, and the lookup of tables by name."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.rewrite.model import Column, LogicalColumn, Side, TableModel, Virtual
from proxy.sql.quote import ident

INTERNAL_PREFIX = "_dualwire_"
SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})

NO_EQUALITY = frozenset({"json", "xml", "point", "box", "path", "polygon", "circle", "lseg", "citext"})
"""Types that have no ``=``, or one under which different values are equal: they are compared by their text."""

UNGROUPABLE = frozenset({"json", "xml", "point", "box", "path", "polygon", "circle", "lseg"})
"""Types that GROUP BY does not take."""


class Rule:
    """A table as one version sees it."""

    __slots__ = (
        "by_name",
        "columns",
        "direction",
        "hidden",
        "mark",
        "migrating",
        "mirrors",
        "model",
        "names",
        "prefix",
        "relation",
        "select_list",
        "side",
        "sources",
        "text_compared",
        "translated",
        "twin",
        "types",
        "virtuals",
    )

    def __init__(self, model: TableModel, side: Side) -> None:
        logical = model.logical(side)
        self.model = model
        self.side = side
        self.columns = logical
        self.names = tuple(c.name for c in logical)
        self.by_name = {c.name: c.column for c in logical}
        self.hidden = frozenset(c.name for c in model.columns) - self.by_name.keys()
        """Physical columns under whose name this version has nothing."""
        used = {c.column for c in logical}
        self.virtuals = {v.column.name: v for v in model.virtuals if v.column.name in used}
        """Columns of this version that the table has not, by their keys."""
        self.relation = None if model.relation is None else ".".join(map(ident, model.relation))
        """SQL text of the table that holds the rows, where the table's own name does not mean it."""
        twin = model.twin(side)
        self.twin = None if twin is None else ".".join(map(ident, twin))
        self.translated = (
            bool(self.virtuals)
            or self.relation is not None
            or any(c.name != c.column for c in logical)
            or any(not name.startswith(INTERNAL_PREFIX) for name in self.hidden)
        )
        """Whether names must be turned; otherwise every name of the version means the same physically."""
        self.prefix = all(c.name == c.column for c in logical) and self.names == tuple(
            c.name for c in model.columns[: len(logical)]
        )
        """Whether the version's columns are the first physical ones, so that missing lists mean the same."""
        self.direction = model.direction(side)
        self.mark = model.mark
        self.mirrors = self.direction.mirrors
        self.sources = frozenset(name for mirror in self.mirrors for name in mirror.sources).union(
            self.direction.ok_sources
        )
        """Columns from which something of the other shape follows."""
        self.migrating = (
            model.mark is not None or bool(model.up.mirrors or model.down.mirrors) or model.old != model.new
        )
        every = (*model.columns, *(virtual.column for virtual in self.virtuals.values()))
        self.types = {c.name: c.type_full for c in every}
        self.text_compared = frozenset(
            c.name for c in every if c.type.removesuffix("[]").rpartition(".")[2] in NO_EQUALITY
        )
        self.select_list = ", ".join(self._named(c, "") for c in logical)

    @property
    def mirroring(self) -> bool:
        """Whether a write of this version must reach the other shape as well."""
        return bool(self.mirrors) or self.mark is not None

    def column(self, key: str) -> Column:
        """The column, physical or virtual; KeyError if there is none."""
        virtual = self.virtuals.get(key)
        return self.model.column(key) if virtual is None else virtual.column

    def virtual(self, name: str) -> Virtual | None:
        """The virtual column that has this name in the version, if it is one."""
        return self.virtuals.get(self.by_name.get(name, ""))

    def read(self, key: str, qualifier: str) -> str:
        """The value of a column of the row that a qualifier stands for (SQL text; empty: none is needed)."""
        prefix = f"{qualifier}." if qualifier else ""
        virtual = self.virtuals.get(key)
        if virtual is None:
            return f"{prefix}{ident(key)}"
        call = f"{virtual.function}({', '.join(prefix + ident(name) for name in virtual.sources)})"
        if virtual.column.type == virtual.column.type_full:
            return call
        return (
            f"CAST({call} AS {virtual.column.type_full})"  # or the modifier would not be told to the client
        )

    def _named(self, column: LogicalColumn, qualifier: str) -> str:
        value = self.read(column.column, qualifier)
        if column.name == column.column and column.column not in self.virtuals:
            return value
        return f"{value} AS {ident(column.name)}"

    def expanded(self, qualifier: str) -> str:
        """The version's columns of a base table that stands under a qualifier (SQL text), named as in the version."""
        return ", ".join(self._named(column, qualifier) for column in self.columns)

    def values(self, qualifier: str) -> str:
        """The same without names."""
        return ", ".join(self.read(column.column, qualifier) for column in self.columns)

    def whole_row(self, qualifier: str) -> str:
        """An expression for the version's whole row of a base table, usable where a column reference is."""
        return f"(SELECT {qualifier} FROM (SELECT {self.expanded(qualifier)}) AS {qualifier})"


class Catalog:
    """The tables that have rules, found as PostgreSQL would find them."""

    def __init__(self, tables: Sequence[TableModel], side: Side) -> None:
        self.rules = tuple(Rule(table, side) for table in tables)
        self._by_name: dict[str, tuple[Rule, ...]] = {}
        for rule in self.rules:
            name = rule.model.name
            self._by_name[name] = (*self._by_name.get(name, ()), rule)

    def find(
        self, schema: str | None, name: str, search_path: tuple[str, ...], temporary: frozenset[str]
    ) -> Rule | None:
        """The rule of the table that a (folded) name means under a search path, if it has one."""
        rules = self._by_name.get(name)
        if rules is None:
            return None
        if schema is not None:
            for rule in rules:
                if rule.model.schema == schema:
                    return rule
            return None
        if name in temporary:
            return None
        for candidate in search_path:
            for rule in rules:
                if rule.model.schema == candidate:
                    return rule
            if any(candidate in rule.model.shadows for rule in rules):
                return None
        return None
