"""Views that take the rows of COPY for both shapes: the version's columns, and an INSTEAD OF trigger behind them.

COPY cannot compute anything on its way in, and a version whose columns are not the physical ones needs their names
(HEADER MATCH), their types (binary) and their order. So a sidecar points such a COPY at a view of the version; the
trigger inserts into the table what a rewritten INSERT would: the mark, and the mirrors by their functions.

The function is SECURITY INVOKER: privileges, row security and triggers are those of the caller, which is why everybody
may INSERT into the view. Its body names everything with its schema and uses no operator, so no search_path has to be
set around it; one that was set would also be seen by the table's own triggers.

Omitted columns get the table's defaults, which the view's columns repeat. An identity column has none there: where it
is NULL it is left out of the insert, so the server fills it and no privilege on its sequence is needed. Two
differences from COPY into the table remain: statement triggers fire for each row, and CONTEXT names the view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrator.catalog import CatalogColumn
from migrator.design import DirectionDesign, TableDesign
from migrator.sqltext import MARK, dollar, ident, names
from proxy.rewrite.model import Side

SCHEMA = "dualwire"


@dataclass(frozen=True, slots=True)
class CopyView:
    """One view: its name, what it shows, and what is written besides."""

    name: str
    table: str
    """The quoted name of the table."""
    columns: Sequence[tuple[str, CatalogColumn]]
    """(name in the version, physical column), generated ones left out."""
    extra: Sequence[tuple[str, str]]
    """Physical columns that are computed, each with SQL over NEW's fields by their logical names."""
    virtual: frozenset[str] = frozenset()
    """Those of ``columns``, by logical name, that the table has not: what follows from them is in ``extra``."""

    @property
    def sql(self) -> str:
        """The quoted name of the view and of its function."""
        return f"{SCHEMA}.{ident(self.name)}"

    def create(self) -> list[str]:
        """DDL. The table must have its columns by then."""
        shown = ", ".join(
            f"CAST(NULL AS {c.type_full})"
            + (f" COLLATE {c.collation}" if c.collation else "")
            + f" AS {ident(n)}"
            for n, c in self.columns
        )
        defaults = [
            f"ALTER VIEW {self.sql} ALTER COLUMN {ident(n)} SET DEFAULT {c.default}"
            for n, c in self.columns
            if c.default is not None and not c.identity
        ]
        return [
            f"CREATE VIEW {self.sql} AS SELECT {shown} WHERE false",
            *defaults,
            self.function(),
            f"CREATE TRIGGER {ident(self.name)} INSTEAD OF INSERT ON {self.sql} FOR EACH ROW"
            f" EXECUTE FUNCTION {self.sql}()",
            f"GRANT INSERT ON {self.sql} TO PUBLIC",
        ]

    def function(self) -> str:
        """DDL for the function alone, which knows the names that the table's columns have."""
        return f"CREATE OR REPLACE FUNCTION {self.sql}() RETURNS trigger LANGUAGE plpgsql AS {dollar(self._body())}"

    def drop(self) -> list[str]:
        """What removes it."""
        return [f"DROP VIEW IF EXISTS {self.sql}", f"DROP FUNCTION IF EXISTS {self.sql}()"]

    def _body(self) -> str:
        filled = [n for n, c in self.columns if c.identity]
        return "\n".join(["", "BEGIN", *self._inserts(filled, []), "    RETURN NEW;", "END"])

    def _inserts(self, undecided: list[str], left_out: list[str]) -> list[str]:
        if not undecided:
            return [f"    {self._insert(left_out)};", "    IF NOT FOUND THEN RETURN NULL; END IF;"]
        first, rest = undecided[0], undecided[1:]
        return [
            f"    IF NEW.{ident(first)} IS NULL THEN",
            *self._inserts(rest, [*left_out, first]),
            "    ELSE",
            *self._inserts(rest, left_out),
            "    END IF;",
        ]

    def _insert(self, left_out: list[str]) -> str:
        given = [
            (c.name, f"NEW.{ident(n)}")
            for n, c in self.columns
            if n not in left_out and n not in self.virtual
        ]
        given += self.extra
        always = any(c.identity == "a" and n not in left_out for n, c in self.columns)
        overriding = " OVERRIDING SYSTEM VALUE" if always else ""
        values = ", ".join(value for _, value in given)
        return f"INSERT INTO {self.table} ({names(n for n, _ in given)}){overriding} VALUES ({values})"


def copy_view_name(migration: int, number: int, side: Side) -> str:
    """The name of a migration's view for one version of one table."""
    return f"copy_{migration}_{number}_{side}"


def views(
    table: TableDesign, types: Mapping[str, CatalogColumn], migration: int, number: int
) -> dict[Side, CopyView]:
    """The views that a table needs while both versions are served.

    New speakers always need one; old ones where the guard does not carry over what COPY brings. There is none where a
    mirror follows from a generated column, whose value only the server knows.
    """
    if not table.mark:
        return {}
    sides: list[Side] = ["new"] if table.guard == "sync" else ["old", "new"]
    found: dict[Side, CopyView] = {}
    for side in sides:
        logical = table.old if side == "old" else table.new
        columns = [(n, types[p]) for n, p in logical if not types[p].generated]
        extra = _computed(table, side, {c.name: n for n, c in columns})
        if extra is not None:
            found[side] = CopyView(copy_view_name(migration, number, side), table.sql, columns, extra)
    return found


def _computed(table: TableDesign, side: Side, known: Mapping[str, str]) -> list[tuple[str, str]] | None:
    direction: DirectionDesign = table.up if side == "old" else table.down
    extra: list[tuple[str, str]] = []
    for mirror in direction.mirrors:
        arguments = _arguments(mirror.value.sources, known)
        if arguments is None:
            return None
        extra.append((mirror.target, f"{mirror.function}({arguments})"))
    mark = "3" if side == "new" else "1"
    if side == "old" and direction.ok is not None:
        arguments = _arguments(direction.ok_sources, known)
        if arguments is None:
            return None
        mark = f"CASE WHEN {direction.ok}({arguments}) THEN 1 END"
    return [*extra, (MARK, mark)]


def _arguments(sources: Sequence[str], known: Mapping[str, str]) -> str | None:
    if not all(s in known for s in sources):
        return None
    return ", ".join(f"NEW.{ident(known[s])}" for s in sources)
