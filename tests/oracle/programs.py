"""Hypothesis strategies of programs for one version of a combination.

The grammar is written so that most statements are valid and hit rows; some fail, on purpose, in ways that a client may
depend on. A statement whose rows come in an order that nothing promises is compared without order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.oracle.mistakes import Blunderer
from tests.oracle.pen import Text
from tests.oracle.schemas import Column, Combo, Table
from tests.oracle.steps import Batch, Call, CopyIn, Mixed, Program, Query, Step

BINARY: dict[str, Callable[[str], bytes]] = {
    "smallint": lambda text: struct.pack(">h", int(text)),
    "integer": lambda text: struct.pack(">i", int(text)),
    "bigint": lambda text: struct.pack(">q", int(text)),
    "boolean": lambda text: bytes([text == "t"]),
    "uuid": lambda text: bytes.fromhex(text.replace("-", "")),
    "bytea": lambda text: bytes.fromhex(text[2:]),
    **dict.fromkeys(("text", "varchar(6)", "varchar(20)", "mood", "answer"), str.encode),
}
"""The binary form of a value by its type."""

SET_LEVELS = ("", " ISOLATION LEVEL REPEATABLE READ")


class Author(Blunderer):
    """Writes programs."""

    def query(self) -> Step:
        self.text, self.extended = Text(), False
        sql = self.wrong() if self.chance(12) else self.statement()
        return Query(sql, self.text.ordered)

    def wrong(self) -> str:
        """A statement that fails."""
        return self.foreign() if self.chance(30) else self.mistake()

    def call(self) -> Call:
        self.text, self.extended = Text(), True
        sql = self.wrong() if self.chance(7) else self.statement()
        text = self.text
        types = tuple(text.types) if any(text.types) else ()
        return Call(
            sql,
            tuple(text.values),
            types,
            describe=self.pick(("", "S", "P", "SP")),
            binary=self.chance(40),
            rows=1 if text.ordered and self.chance(30) else 0,
            ordered=text.ordered,
        )

    def batch(self) -> Step:
        count = self.pick((1, 1, 1, 2, 3))
        calls = [self.call() for _ in range(count)]
        if count > 1 and self.chance(30):
            first, last = self.pick(
                (("BEGIN", "COMMIT"), ("BEGIN", "ROLLBACK"), ("SAVEPOINT b", "ROLLBACK TO b"))
            )
            calls = [Call(first), *calls, Call(last)]
        return Batch(tuple(calls))

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
        if self.chance(20):
            return self.copy_binary(table, columns)
        style = self.pick(("text", "csv", "header"))
        lines = []
        count = self.pick((1, 2, 3))
        for number in range(count):
            cells: list[str | None] = []
            for column in columns:
                if column.name == "id":
                    cells.append(str(40 + number))
                elif not column.not_null and self.chance(15):
                    cells.append(None)
                elif column.bad and count == 1 and self.chance(2):
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

    def copy_binary(self, table: Table, columns: list[Column]) -> Step:
        """COPY in the binary format, of columns whose binary form is simple."""
        wanted = [c for c in columns if c.name == "id" or c.type in BINARY]
        data = b"PGCOPY\n\xff\r\n\0" + bytes(8)
        for number in range(self.pick((1, 2))):
            data += struct.pack(">h", len(wanted))
            for column in wanted:
                if column.name != "id" and not column.not_null and self.chance(20):
                    data += struct.pack(">i", -1)
                    continue
                value = str(40 + number) if column.name == "id" else self.pick(column.values)
                cell = BINARY[column.type](value)
                data += struct.pack(">i", len(cell)) + cell
        listed = ", ".join(c.sql for c in wanted)
        return CopyIn(f"COPY {table.name} ({listed}) FROM STDIN (FORMAT binary)", (data + b"\xff\xff",))

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

    def shadow(self) -> list[Step]:
        """A temporary table of a migrated one's name, and the search_path."""
        table = self.table()
        if self.chance(40):
            paths = ("pg_catalog, public", "nosuch", "public, pg_catalog", '"$user", public')
            return [Query(f"SET search_path TO {self.pick(paths)}"), self.query(), Query("RESET search_path")]
        made = self.pick(
            (f"SELECT 1 AS id, 'x' AS {self.pick(('nosuch', self.columns(table)[-1].sql))}", "SELECT")
        )
        return [
            Query(f"CREATE TEMP TABLE {table.name} AS {made}"),
            self.query(),
            Query(
                f"SELECT * FROM {self.pick((table.name, 'pg_temp.' + table.name, 'public.' + table.name))}"
            ),
            Query(f"DROP TABLE {self.pick(('pg_temp.', ''))}{table.name}"),
            Query("DISCARD ALL"),
        ]

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
                    "shadow",
                )
            )
            if chosen in {"named", "prepared"}:
                found += getattr(self, chosen)(number)
            elif chosen in {"cursor", "shadow"}:
                if not open_transaction:
                    found += getattr(self, chosen)()
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


@st.composite
def mixed(draw: Any, combo: Combo) -> Mixed:
    """Turns of several clients, each a transaction of its own."""
    turns: list[tuple[str, Step]] = []
    count = 1 + draw(st.integers(0, 6))
    for _ in range(count):
        who = draw(st.sampled_from(("old", "new", "past")))
        author = Author(draw, combo, "new" if who == "new" else "old")
        turns.append((who, author.pick((author.query, author.query, author.batch, author.copy_in))()))
    return Mixed(tuple(turns))
