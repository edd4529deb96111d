"""psycopg by hand: COPY both ways, executemany in a pipeline, statements that it prepares by itself."""

from __future__ import annotations

import psycopg
import pytest

from tests.orms.conftest import Shop

COLUMNS = {"old": "id, status, customer", "new": "id, state, buyer"}
VALUES = {"old": [0, 1, 2], "new": ["new", "paid", "sent"]}
FIRST = {"old": 100_000, "new": 200_000}


def connect(shop: Shop, side: str) -> psycopg.Connection:
    return psycopg.connect((shop.old if side == "old" else shop.new).dsn(), autocommit=True)


def other(side: str) -> str:
    return "new" if side == "old" else "old"


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("side", ["old", "new"])
def test_rows_are_copied_in_and_out(shop: Shop, side: str, binary: bool) -> None:
    first = FIRST[side] + 10_000 * binary
    with connect(shop, side) as ours, connect(shop, other(side)) as theirs:
        how = " (FORMAT binary)" if binary else ""
        with ours.cursor() as cursor, cursor.copy(f"COPY orders ({COLUMNS[side]}) FROM STDIN{how}") as copy:
            if binary:
                copy.set_types(["int8", "int2" if side == "old" else "varchar", "varchar"])
            for n in range(60):
                copy.write_row((first + n, VALUES[side][n % 3], f"copied {n}"))
        away = other(side)
        rows = theirs.execute(
            f"SELECT {COLUMNS[away]} FROM orders WHERE id >= %s AND id < %s ORDER BY id", (first, first + 60)
        ).fetchall()
        assert rows == [(first + n, VALUES[away][n % 3], f"copied {n}") for n in range(60)]
        with theirs.cursor() as cursor, cursor.copy(f"COPY orders ({COLUMNS[away]}) TO STDOUT{how}") as copy:
            if binary:
                copy.set_types(["int8", "int2" if away == "old" else "varchar", "varchar"])
            copied = {row[0]: row for row in copy.rows()}
        expected = {row[0]: row for row in rows}
        if not binary:
            expected = {str(key): tuple(map(str, row)) for key, row in expected.items()}
        assert {key: row for key, row in copied.items() if key in expected} == expected


@pytest.mark.parametrize("side", ["old", "new"])
def test_many_executions_of_one_statement(shop: Shop, side: str) -> None:
    """executemany is a pipeline; after the fifth execution the statement is a prepared one."""
    value, who = COLUMNS[side].split(", ")[1:]
    first = FIRST[side] + 50_000
    with connect(shop, side) as ours, connect(shop, other(side)) as theirs:
        with ours.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO orders (id, {value}, {who}) VALUES (%s, %s, %s) RETURNING {value}",
                [(first + n, VALUES[side][n % 3], "many") for n in range(40)],
                returning=True,
            )
            returned = []
            while True:
                returned += cursor.fetchall()
                if not cursor.nextset():
                    break
            assert [row[0] for row in returned] == [VALUES[side][n % 3] for n in range(40)]
        for n in range(12):
            ours.execute(f"UPDATE orders SET {value} = %s WHERE id = %s", (VALUES[side][2], first + n))
        away = other(side)
        their_value = COLUMNS[away].split(", ")[1]
        rows = theirs.execute(
            f"SELECT {their_value} FROM orders WHERE id >= %s AND id < %s ORDER BY id", (first, first + 40)
        ).fetchall()
        assert [row[0] for row in rows] == [VALUES[away][2 if n < 12 else n % 3] for n in range(40)]
        with ours.pipeline():
            ours.execute("DELETE FROM orders WHERE id = %s", (first,))
            ours.execute(f"UPDATE orders SET {value} = %s WHERE id = %s", (VALUES[side][1], first + 1))
            got = ours.execute(f"SELECT {value} FROM orders WHERE id = %s", (first + 1,))
            assert got.fetchone() == (VALUES[side][1],)
        assert shop.row(first + 1) == (1, "paid")
