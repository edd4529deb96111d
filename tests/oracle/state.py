"""What the databases must hold when a program is over.

The speaker's shape must be the plain database's, value for value. Every row must be right by its own direction
(`TableDesign.consistent`) or a listed problem. And the other shape must be what ``up`` (or ``down``) gives of the plain
database's rows: computed there, one expression after the other, with nothing of the migrator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from migrator.design import TableDesign
from migrator.sqltext import MARK, ident, literal
from tests.oracle.schemas import Column, Combo, Table, quoted

Rows = list[tuple[str | None, ...]]
Run = Callable[[str], Rows]
Physical = Callable[[str, str], list[tuple[str, str]]]
"""(logical name, physical column as SQL) by table and version."""


def functions(combo: Combo, side: str) -> list[str]:
    """What computes the other shape in a plain database: for each column a function that tells value and failure."""
    made = []
    for table in combo.tables:
        target = "new" if side == "old" else "old"
        for number, (name, text) in enumerate(table.up if side == "old" else table.down):
            made.append(
                f"CREATE FUNCTION seed.other_{table.name}_{number}"
                f"(r {table.name}, OUT value {table.column(target, name).type}, OUT failed boolean)"
                f" LANGUAGE plpgsql AS $$ DECLARE held {table.column(target, name).type}; BEGIN failed := false;"
                f" held := (SELECT {text} FROM (SELECT (r).*) AS {table.name}); value := held;"
                " EXCEPTION WHEN OTHERS THEN value := NULL; failed := true; END $$"
            )
    return made


class State:
    """Compares the databases of one combination."""

    def __init__(self, combo: Combo, designs: dict[str, TableDesign], physical: Physical) -> None:
        self.combo = combo
        self.designs = designs
        self.physical = physical

    def differences(self, side: str, both: Run, plain: Run) -> Iterator[str]:
        """Sentences about what is wrong after a program of a speaker of ``side``."""
        if both("TABLE notes ORDER BY 1") != plain("TABLE notes ORDER BY 1"):
            yield "notes differ"
        for table in self.combo.tables:
            got = both(f"SELECT {self._listed(table, side)} FROM {table.name} ORDER BY id")
            names = ", ".join(c.sql for c in table.columns(side))
            expected = plain(f"SELECT {names} FROM {table.name} ORDER BY id")
            if got != expected:
                yield f"{table.name} holds {got!r}, expected {expected!r}"
                continue
            design = self.designs.get(table.name)
            if design is not None and design.mark:
                yield from self._right(design, both)
                yield from (self._up if side == "old" else self._down)(table, design, both, plain)

    def right(self, both: Run) -> Iterator[str]:
        """Sentences about rows that are neither right by their own direction nor listed problems."""
        for design in self.designs.values():
            if design.mark:
                yield from self._right(design, both)

    def _listed(self, table: Table, side: str) -> str:
        return ", ".join(
            f"{physical} AS {quoted(name)}" for name, physical in self.physical(table.name, side)
        )

    @staticmethod
    def _right(design: TableDesign, both: Run) -> Iterator[str]:
        mine = f"p.table_name = {literal(design.label)} AND p.key = {design.key_json('t.')}"
        # As `verify` does first: a problem whose row is right by now, or gone, is none.
        both(
            f"DELETE FROM dualwire.problem p WHERE p.table_name = {literal(design.label)}"
            f" AND NOT EXISTS (SELECT FROM {design.sql} t WHERE {mine} AND NOT {design.consistent('t.')})"
        )
        for found in both(
            f"SELECT t.id, t.{ident(MARK)}, t FROM {design.sql} AS t WHERE NOT {design.consistent('t.')}"
            f" AND NOT EXISTS (SELECT FROM dualwire.problem p WHERE {mine})"
        ):
            yield f"{design.name}: neither right nor a problem: {found!r}"

    def _up(self, table: Table, design: TableDesign, both: Run, plain: Run) -> Iterator[str]:
        """After old speakers: the new shape is up of the old one, and the problems are the rows that it fails for."""
        expected, problems = [], []
        for row in plain(self._computed(table, "old")):
            *values, failed = row
            expected.append(tuple(values))
            if failed == "t":
                problems.append(values[0])
        names = ["id", *(name for name, _ in table.up), *(c.name for c in self._native(table))]
        columns = dict(self.physical(table.name, "new"))
        got = both(
            f"SELECT {', '.join(f'{columns[n]}::text' for n in names)} FROM {table.name} t ORDER BY t.id"
        )
        if got != expected:
            yield f"{table.name}: columns {names} of the new shape hold {got!r}, up gives {expected!r}"
        wanted = (
            f"SELECT key->>'id' FROM dualwire.problem WHERE table_name = {literal(design.label)} ORDER BY 1"
        )
        listed = [key for (key,) in both(wanted)]
        if sorted(listed, key=str) != sorted(problems, key=str):
            yield f"{table.name}: problems {listed!r} are listed, up fails for {problems!r}"

    def _down(self, table: Table, design: TableDesign, both: Run, plain: Run) -> Iterator[str]:
        """After new speakers: where they have written, the old shape is down of the new one, unless that fails."""
        names = ["id", *(name for name, _ in table.down)]
        columns = dict(self.physical(table.name, "old"))
        listed = ", ".join(f"{columns[n]}::text" for n in names)
        got = both(f"SELECT {listed} FROM {table.name} t WHERE {ident(MARK)} >= 3 ORDER BY t.id")
        keys = {row[0] for row in got}
        expected, right = [], set()
        for row in plain(self._computed(table, "new")):
            if row[0] in keys and row[-1] == "f":
                right.add(row[0])
                expected.append(row[:-1])
        got = [row for row in got if row[0] in right]
        if got != expected:
            yield f"{table.name}: columns {names} of the old shape hold {got!r}, down gives {expected!r}"

    @staticmethod
    def _native(table: Table) -> list[Column]:
        """New columns that nothing computes for old speakers."""
        computed = {name for name, _ in table.up}
        kept = {new for slot in table.slots for _, new in slot.kept}
        return [c for c in table.columns("new") if c.name not in computed and c.name not in kept]

    def _computed(self, table: Table, side: str) -> str:
        """A query of a plain database: the key, the other shape's computed columns, and whether any of them fails."""
        pairs = table.up if side == "old" else table.down
        values, wrong, sources = ["r.id::text"], ["false"], [f"{table.name} r"]
        for number, (name, _) in enumerate(pairs):
            sources.append(f"LATERAL seed.other_{table.name}_{number}(r) AS f{number}")
            values.append(f"f{number}.value::text")
            wrong.append(f"f{number}.failed")
            if side == "old":
                column = table.column("new", name)
                if column.not_null:
                    wrong.append(f"f{number}.value IS NULL")
                if column.condition:
                    row = f"SELECT f{number}.value AS {column.sql}"
                    wrong.append(f"NOT coalesce((SELECT {column.condition} FROM ({row}) c), true)")
        if side == "old":
            values += [f"({c.default or 'NULL'})::text" for c in self._native(table)]
        return f"SELECT {', '.join(values)}, {' OR '.join(wrong)} FROM {', '.join(sources)} ORDER BY r.id"
