"""Hypothesis strategies of programs for one version of a combination.

The grammar is written so that most statements are valid and hit rows; some fail, on purpose, in ways that a client may
depend on. A statement whose rows come in an order that nothing promises is compared without order.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.oracle.pen import Text
from tests.oracle.schemas import Combo
from tests.oracle.steps import Batch, Call, CopyIn, Program, Query, Step
from tests.oracle.writing import Writer

SET_LEVELS = ("", " ISOLATION LEVEL REPEATABLE READ")


class Author(Writer):
    """Writes programs."""

    def query(self) -> Step:
        self.text, self.extended = Text(), False
        sql = self.statement()
        return Query(sql, self.text.ordered)

    def call(self) -> Call:
        self.text, self.extended = Text(), True
        sql = self.statement()
        text = self.text
        types = tuple(text.types) if any(text.types) else ()
        return Call(
            sql,
            tuple(text.values),
            types,
            describe=self.pick(("", "S", "P", "SP")),
            binary=self.chance(40),
            ordered=text.ordered,
        )

    def batch(self) -> Step:
        count = self.pick((1, 1, 1, 2, 3))
        return Batch(tuple(self.call() for _ in range(count)))

    def named(self, number: int) -> list[Step]:
        """A statement that is prepared once and run twice."""
        self.text, self.extended = Text(), True
        sql = self.statement()
        text = self.text
        name = f"s{number}"
        values = tuple(text.values)
        types = tuple(text.types) if any(text.types) else ()
        again = Batch((Call(None, values, name=name, binary=self.chance(30), ordered=text.ordered),))
        return [Batch((Call(sql, None, types, name, "S"),)), again, again]

    def prepared(self, number: int) -> list[Step]:
        """SQL's PREPARE and EXECUTE."""
        self.text, self.extended = Text(), False
        sql = self.statement()
        return [Query(f"PREPARE p{number} AS {sql}"), Query(f"EXECUTE p{number}", self.text.ordered)]

    def copy_out(self) -> Step:
        table = self.table()
        columns = ""
        if self.chance(50):
            given = self.some([c for c in self.columns(table) if c.generated is None])
            columns = f" ({', '.join(c.sql for c in given)})"
        options = self.pick(
            (
                "",
                " (FORMAT csv)",
                " (FORMAT csv, HEADER)",
                " (FORMAT binary)",
                " WITH (DELIMITER '|', NULL 'nil')",
            )
        )
        return Query(f"COPY {self.name(table)}{columns} TO STDOUT{options}")

    def copy_in(self) -> Step:
        table = self.table()
        columns = [c for c in self.columns(table) if c.generated is None]
        listed = ""
        if self.chance(70):
            columns = [c for c in columns if c.name == "id" or c.not_null or self.chance(60)]
            listed = f" ({', '.join(c.sql for c in columns)})"
        style = self.pick(("text", "csv", "header"))
        lines = []
        for number in range(self.pick((1, 2, 3))):
            cells: list[str | None] = []
            for column in columns:
                if column.name == "id":
                    cells.append(str(40 + number))
                elif not column.not_null and self.chance(15):
                    cells.append(None)
                elif column.bad and self.chance(2):
                    cells.append(self.pick(column.bad))
                else:
                    cells.append(self.pick(column.values))
            lines.append((_text_line if style == "text" else _csv_line)(cells))
        options = {"text": "", "csv": " (FORMAT csv)", "header": " (FORMAT csv, HEADER MATCH)"}[style]
        if style == "header":
            lines.insert(0, _csv_line([c.name for c in columns]))
        data = "".join(lines).encode()
        cut = self.below(len(data) + 1)
        return CopyIn(
            f"COPY {self.name(table)}{listed} FROM STDIN{options}", (data[:cut], data[cut:]), self.chance(5)
        )

    def cursor(self) -> list[Step]:
        """DECLARE, FETCH, and a change of the row where it stands."""
        self.text, self.extended = Text(), False
        table = self.table()
        lock = self.pick(("", " FOR UPDATE"))
        where = self.where(table, "")
        steps: list[Step] = [
            Query("BEGIN"),
            Query(
                f"DECLARE c CURSOR FOR SELECT {self.pick(('*', 'id'))} FROM {table.name}{where} ORDER BY id{lock}"
            ),
            Query(f"FETCH {self.pick(('NEXT', '2'))} FROM c", True),
        ]
        if lock or self.chance(30):
            change = self.pick(
                (
                    f"UPDATE {table.name} SET {self.assignments(table, '')} WHERE CURRENT OF c",
                    f"DELETE FROM {table.name} WHERE CURRENT OF c",
                )
            )
            steps.append(Query(change))
        steps += [Query("FETCH ALL FROM c", True), Query("COMMIT")]
        return steps

    def utility(self) -> Step:
        """EXPLAIN, CREATE TABLE AS, TRUNCATE, several statements in one."""
        self.text, self.extended = Text(), False
        chosen = self.pick(("explain", "create", "truncate", "several"))
        if chosen == "explain":
            return Query(f"EXPLAIN (COSTS OFF) {self.statement()}")
        if chosen == "create":
            return Query(f"CREATE TEMP TABLE made AS {self.select()}; TABLE made; DROP TABLE made")
        if chosen == "truncate":
            return Query(self.truncate())
        return Query("; ".join(self.statement() for _ in range(2)))

    def steps(self) -> list[Step]:
        """The whole program."""
        found: list[Step] = []
        open_transaction = False
        savepoints = 0
        for number in range(1 + self.below(6)):
            if self.chance(25):
                if not open_transaction:
                    found.append(Query(f"BEGIN{self.pick(SET_LEVELS)}"))
                    open_transaction, savepoints = True, 0
                else:
                    word = self.pick(("COMMIT", "ROLLBACK", "SAVEPOINT", "ROLLBACK TO", "RELEASE"))
                    if word == "SAVEPOINT":
                        savepoints += 1
                        found.append(Query("SAVEPOINT a"))
                    elif word in {"COMMIT", "ROLLBACK"}:
                        found.append(Query(word))
                        open_transaction = False
                    elif savepoints:
                        found.append(Query(f"{word} a"))
            chosen = self.pick(
                (
                    "query",
                    "query",
                    "batch",
                    "batch",
                    "named",
                    "prepared",
                    "copy_out",
                    "copy_in",
                    "cursor",
                    "utility",
                )
            )
            if chosen in {"named", "prepared"}:
                found += getattr(self, chosen)(number)
            elif chosen == "cursor":
                if not open_transaction:
                    found += self.cursor()
            else:
                found.append(getattr(self, chosen)())
        if open_transaction and self.chance(70):
            found.append(Query("COMMIT"))
        return found


def _text_line(cells: list[str | None]) -> str:
    escaped = ("\\N" if c is None else c.replace("\\", "\\\\").replace("\t", "\\t") for c in cells)
    return "\t".join(escaped) + "\n"


def _csv_line(cells: list[str | None]) -> str:
    return ",".join("" if c is None else '"' + c.replace('"', '""') + '"' for c in cells) + "\n"


@st.composite
def programs(draw: Any, combo: Combo, side: str) -> Program:
    """A program of one speaker."""
    return Program(side, tuple(Author(draw, combo, side).steps()))
