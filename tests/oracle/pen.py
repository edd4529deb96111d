"""The words of statements: choices, values, expressions and conditions over the columns of one version.

What is volatile is so in a way that gives the same on all sides if, and only if, it is evaluated equally often
(``ticket()``). Of several errors that a statement could give, which one is told first is no promise: constants that
their columns do not take stand where only one of them can (``Text.bad``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import strategies as st

from tests.oracle.schemas import Column, Combo, Table

T = TypeVar("T")
OIDS = {"integer": 23, "bigint": 20, "smallint": 21, "text": 25, "boolean": 16, "numeric": 1700}
NUMBER = re.compile(r"-?\d+(\.\d+)?")


@dataclass
class Text:
    """A statement under construction."""

    sql: str = ""
    values: list[str | bytes | None] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    ordered: bool = False
    rows: bool = False
    """Whether it gives rows."""
    bad: bool = True
    """Whether it may have constants that their columns do not take."""


class Pen:
    """Writes statements of one version. ``extended`` allows parameters."""

    def __init__(self, draw: Any, combo: Combo, side: str) -> None:
        self.draw = draw
        self.combo = combo
        self.side = side
        self.extended = False
        self.text = Text()

    # -- choices -----------------------------------------------------------------------------------------------

    def below(self, count: int) -> int:
        """A number from 0 to count - 1; shrinks to 0."""
        return int(self.draw(st.integers(0, count - 1)))

    def pick(self, options: Sequence[T]) -> T:
        """One of them; shrinks to the first."""
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        """True in so many percent; shrinks to False."""
        return self.below(100) >= 100 - percent

    def some(self, options: Sequence[T], least: int = 1) -> list[T]:
        """A few of them in their order."""
        found = [o for o in options if self.chance(45)]
        for option in options:
            if len(found) >= least:
                break
            if option not in found:
                found.append(option)
        return found

    # -- values ------------------------------------------------------------------------------------------------

    def columns(self, table: Table) -> tuple[Column, ...]:
        return table.columns(self.side)

    def table(self) -> Table:
        return self.pick(self.combo.tables)

    def quote(self, text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    def constant(self, column: Column, typed: bool = False) -> str:
        """A literal or a parameter of a column's type."""
        value: str | None
        if column.bad and self.text.bad and self.chance(2):
            value = self.pick(column.bad)
        else:
            value = self.pick(column.values)
        if self.extended and self.chance(50):
            return self.parameter(column, value, typed)
        if column.kind in {"int", "num"} and NUMBER.fullmatch(value) and self.chance(60):
            return f"({value})" if value.startswith("-") else value
        if typed or self.chance(15):
            return f"{self.quote(value)}::{column.type}"
        return self.quote(value)

    def parameter(self, column: Column, value: str | None, typed: bool) -> str:
        self.text.values.append(value)
        number = len(self.text.values)
        if typed or self.chance(20):
            self.text.types.append(0)
            return f"${number}::{column.type}"
        oid = OIDS.get(column.type, 0) if self.chance(40) else 0
        self.text.types.append(oid)
        if oid in {20, 21, 23} and value is not None and NUMBER.fullmatch(value) and self.chance(50):
            size = {21: 2, 23: 4, 20: 8}[oid]
            try:
                self.text.values[-1] = int(value).to_bytes(size, "big", signed=True)
            except (OverflowError, ValueError):
                pass
        return f"${number}"

    def nothing(self, column: Column) -> str:
        if self.extended and self.chance(30):
            return self.parameter(column, None, False)
        return "NULL"

    def expression(self, column: Column, around: str, table: Table | None, depth: int = 0) -> str:
        """A value for a column; ``around`` qualifies columns of ``table`` that are in scope, if there is one."""
        kind = column.kind
        options = ["constant"] * 6
        if not column.not_null or self.chance(10):
            options.append("null")
        same = [c for c in self.columns(table) if c.kind == kind] if table is not None else []
        if same:
            options += ["column", "function", "case"]
        if depth == 0:
            options += ["subselect", "volatile"]
        chosen = self.pick(options)
        if chosen == "null":
            return self.nothing(column)
        if chosen == "constant":
            return self.constant(column)
        if chosen == "subselect":
            source = {"int": "max(amount)", "text": "max(word)", "num": "sum(amount)"}.get(kind)
            if source is None:
                return f"(SELECT {self.constant(column, True)})"
            return f"(SELECT {source} FROM notes WHERE id < {self.pick((3, 2, 0))})"
        if chosen == "volatile":
            if kind == "int":
                return "ticket()"
            return f"CASE WHEN random() < 2 THEN {self.constant(column, True)} END"
        other = self.pick(same)
        name = f"{around}{other.sql}"
        if chosen == "column":
            return name
        if chosen == "case":
            return f"CASE WHEN {name} IS NULL THEN {self.constant(column, True)} ELSE {name} END"
        return self.function(kind, name, other)

    def function(self, kind: str, name: str, column: Column) -> str:
        """Something computed from a column, of the same kind."""
        options = {
            "int": (f"{name} + 1", f"-{name}", f"coalesce({name}, 0)", f"{name} * 2", f"{name} % 3"),
            "num": (f"{name} + 1", f"{name} * 1.5", f"coalesce({name}, 0)", f"round({name})"),
            "text": (
                f"upper({name})",
                f"{name} || 'é'",
                f"left({name}, 2)",
                f"coalesce({name}, 'b')",
                f"shout({name})",
            ),
            "bool": (f"NOT {name}", f"{name} IS NOT TRUE", f"coalesce({name}, true)"),
            "time": (f"{name} + interval '1 day'", f"greatest({name}, today())"),
            "json": (f"{name} || '[1]'", f"coalesce({name}, '[]')"),
            "list": (f"{name} || 4", f"{name}[1:1]", f"array_append({name}, NULL)"),
            "bytes": (f"{name} || '\\x01'",),
        }.get(kind, (f"coalesce({name}, {self.constant(column, True)})",))
        return self.pick(options)

    def predicate(self, table: Table, around: str = "", depth: int = 0) -> str:
        """A condition over a table's columns."""
        columns = self.columns(table)
        chosen = self.pick(
            ("key", "key", "in", "equal", "less", "null", "all", "not", "and", "exists", "row")
        )
        if depth > 1 and chosen in {"not", "and", "exists"}:
            chosen = "key"
        if chosen == "key":
            return f"{around}id = {self.constant(table.column(self.side, 'id'))}"
        if chosen == "in":
            return f"{around}id IN (1, {self.constant(table.column(self.side, 'id'))})"
        column = self.pick(columns)
        if chosen == "equal":
            if column.kind == "json" and self.chance(50):
                return f"{around}{column.sql} @> '[1]'"
            return f"{around}{column.sql} = {self.constant(column)}"
        if chosen == "less":
            return f"{around}{column.sql} {self.pick(('<', '>=', '<>', 'IS DISTINCT FROM'))} {self.constant(column)}"
        if chosen == "null":
            return f"{around}{column.sql} IS {self.pick(('', 'NOT '))}NULL"
        if chosen == "not":
            return f"NOT ({self.predicate(table, around, depth + 1)})"
        if chosen == "and":
            word = self.pick(("AND", "OR"))
            return f"({self.predicate(table, around, depth + 1)} {word} {self.predicate(table, around, depth + 1)})"
        if chosen == "exists":
            other = self.table()
            return f"EXISTS (SELECT 1 FROM {other.name} e WHERE {self.predicate(other, 'e.', depth + 1)})"
        if chosen == "row":
            return f"({around}id, {around}{column.sql}) = (2, {self.constant(column)})"
        return "true"

    # -- parts of statements -----------------------------------------------------------------------------------

    def name(self, table: Table) -> str:
        return self.pick((table.name, table.name, table.name, f"public.{table.name}", f'"{table.name}"'))

    def alias(self) -> str:
        return self.pick(("", "", "t", "AS t", 'AS "T x"'))

    def around(self, table: Table, alias: str) -> str:
        """What qualifies a column of a table with that alias."""
        return f"{alias.removeprefix('AS ')}." if alias else f"{table.name}."

    def output(self, table: Table, around: str, old_new: bool = False) -> str:
        """A target list or what RETURNING gives."""
        columns = self.columns(table)
        items = []
        for _ in range(1 + self.below(3)):
            column = self.pick(columns)
            prefix = self.pick(("", around))
            options = [
                "*",
                f"{prefix}{column.sql}",
                f"{around}*",
                f"{prefix}{column.sql} AS x",
                self.function(column.kind, prefix + column.sql, column),
                f"{prefix}id",
                f"({prefix}{column.sql} IS NULL) AS nil",
            ]
            if old_new:
                options += [f"old.{column.sql}", f"new.{column.sql} AS n", "old.*", "new.*"]
            else:
                options += [
                    f"row_to_json({around[:-1]})",
                    around[:-1],
                    f"{around}ctid IS NOT NULL",
                    f"{around}tableoid::regclass",
                ]
            items.append(self.pick(options))
        return ", ".join(items)

    def returning(self, table: Table, alias: str, old_new: bool = True) -> str:
        if not self.chance(55):
            return ""
        self.text.rows = True
        return f" RETURNING {self.output(table, self.around(table, alias), old_new and self.chance(30))}"

    def where(self, table: Table, around: str) -> str:
        return f" WHERE {self.predicate(table, around)}" if self.chance(85) else ""
