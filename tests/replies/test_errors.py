"""Errors are those of the client's version: every field equals that of a server which has this version only."""

from __future__ import annotations

import pytest

from proxy.wire import messages as m
from tests.conftest import Sidecar
from tests.regressions import raw
from tests.replies.conftest import Migrating

OLD = {
    "not null": "INSERT INTO orders (id, status, code) VALUES (10, NULL, 'x')",
    "not null of another column": "UPDATE orders SET amount = NULL WHERE id = 1",
    "check": "INSERT INTO orders (id, status, amount) VALUES (10, 1, -1)",
    "check of two columns": "UPDATE orders SET note = 'a', status = 1 WHERE id = 1",
    "check, values with commas": "UPDATE orders SET amount = -1 WHERE id = 2",
    "unique": "INSERT INTO orders (id, status, code) VALUES (10, 1, 'b')",
    "unique by update": "UPDATE orders SET code = 'b', status = 0 WHERE id = 1",
    "primary key": "INSERT INTO orders VALUES (1, 1, 'z')",
    "foreign key": "INSERT INTO orders (id, status, customer) VALUES (10, 1, 99)",
    "foreign key from another table": "DELETE FROM orders WHERE id = 1",
    "foreign key to the table": "INSERT INTO items VALUES (5, 99, 1)",
    "too long": "UPDATE orders SET code = 'much too long a code' WHERE id = 1",
    "out of range": "UPDATE orders SET status = 70000 WHERE id = 1",
    "numeric out of range": "INSERT INTO orders (id, status, amount) VALUES (10, 1, 12345678)",
    "no number": "UPDATE orders SET status = 'x' WHERE id = 1",
    "undefined column": "SELECT id, colour FROM orders",
    "undefined column with a hint": "SELECT id, statu FROM orders",
    "undefined column to set": "UPDATE orders SET colour = 1 WHERE id = 1",
    "undefined column in WHERE of UPDATE": "UPDATE orders SET status = 1 WHERE statu = 1",
    "undefined column to insert": "INSERT INTO orders (id, statu) VALUES (10, 1)",
    "undefined column in RETURNING": "UPDATE orders SET status = 1 WHERE id = 1 RETURNING colour",
    "undefined qualified column": "SELECT o.colour FROM orders AS o WHERE o.id = 1",
    "ambiguous": "SELECT status FROM orders JOIN customers ON customers.id = orders.customer",
    "ambiguous in UPDATE": "UPDATE orders SET note = '' FROM customers WHERE customers.id = customer AND status = 1",
    "syntax": "UPDATE orders SET status 1",
    "types": "SELECT * FROM orders WHERE status = 'x'::text",
    "types in UPDATE": "UPDATE orders SET status = now() WHERE id = 1",
    "types in INSERT": "INSERT INTO orders (id, status) SELECT 10, now()",
    "division": "UPDATE orders SET status = 1 / (id - 1) WHERE id = 1",
    "twice": "UPDATE orders SET status = 1, status = 2",
    "too many values": "INSERT INTO orders (id, status) VALUES (10, 1, 'x')",
    "no such table": "SELECT * FROM orders JOIN nowhere ON true",
    "not ASCII before it": "UPDATE orders SET note = 'ä€ü', status = 1 WHERE colour = 'ß'",
}
NEW = {
    "not null": "INSERT INTO orders (id, state, sku) VALUES (10, NULL, 'x')",
    "not null of another column": "UPDATE orders SET amount = NULL WHERE id = 1",
    "check": "INSERT INTO orders (id, state, amount) VALUES (10, 'paid', -1)",
    "check of two columns": "UPDATE orders SET note = 'a', state = 'new' WHERE id = 1",
    "check, values with commas": "UPDATE orders SET amount = -1 WHERE id = 2",
    "check of the new version": "UPDATE orders SET state = 'lost' WHERE id = 1",
    "unique": "INSERT INTO orders (id, state, sku) VALUES (10, 'new', 'b')",
    "unique by update": "UPDATE orders SET sku = 'b', state = 'new' WHERE id = 1",
    "primary key": "INSERT INTO orders VALUES (1, 'new', 'z')",
    "foreign key": "INSERT INTO orders (id, state, buyer) VALUES (10, 'new', 99)",
    "foreign key from another table": "DELETE FROM orders WHERE id = 1",
    "too long": "UPDATE orders SET sku = 'much too long a code' WHERE id = 1",
    "too long for the new column": "UPDATE orders SET state = 'much too long a state' WHERE id = 1",
    "numeric out of range": "INSERT INTO orders (id, state, amount) VALUES (10, 'new', 12345678)",
    "undefined column": "SELECT id, colour FROM orders",
    "undefined column with a hint": "SELECT id, stat FROM orders",
    "undefined column to set": "UPDATE orders SET colour = 1 WHERE id = 1",
    "undefined column in WHERE of UPDATE": "UPDATE orders SET state = 'new' WHERE stat = 'new'",
    "undefined column to insert": "INSERT INTO orders (id, stat) VALUES (10, 'new')",
    "undefined column in RETURNING": "UPDATE orders SET state = 'new' WHERE id = 1 RETURNING colour",
    "undefined qualified column": "SELECT o.colour FROM orders AS o WHERE o.id = 1",
    "a column of the old version": "SELECT status FROM orders",
    "a column of the old version to set": "UPDATE orders SET status = 1",
    "a column of the old version in WHERE": "DELETE FROM orders WHERE status = 1",
    "ambiguous": "SELECT id FROM orders JOIN customers ON customers.id = orders.buyer",
    "syntax": "UPDATE orders SET state 1",
    "types": "SELECT * FROM orders WHERE state = 1",
    "types in WHERE of UPDATE": "UPDATE orders SET note = '' WHERE state = 1",
    "types in UPDATE": "UPDATE orders SET buyer = now() WHERE id = 1",
    "types in INSERT": "INSERT INTO orders (id, state, buyer) SELECT 10, 'new', now()",
    "twice": "UPDATE orders SET buyer = 1, buyer = 2",
    "twice in INSERT": "INSERT INTO orders (id, buyer, buyer) VALUES (1, 2, 3)",
    "conflict target": "INSERT INTO orders (id, state) VALUES (1, 'new') ON CONFLICT (buyer) DO NOTHING",
    "not ASCII before it": "UPDATE orders SET note = 'ä€ü', state = 'new' WHERE colour = 'ß'",
}
CASES = [
    pytest.param(side, sql, id=f"{side}: {name}")
    for side, all_ in (("old", OLD), ("new", NEW))
    for name, sql in all_.items()
]


OWN_HINT = ("UPDATE orders SET status = 1", "DELETE FROM orders WHERE status = 1")
"""The hint names the version's columns, instead of the one that has the most similar name."""


def said(frames: list[bytes]) -> list[dict[str, str]]:
    """The errors in an answer, without the places in the server's own source."""
    return [
        {key: value.decode() for key, value in m.error_fields(frame).items() if key not in "FLR"}
        for frame in frames
        if frame[0] == m.ERROR_RESPONSE
    ]


@pytest.mark.parametrize(("side", "sql"), CASES)
async def test_every_field_of_an_error_is_that_of_the_version(
    migrating: Migrating, side: str, sql: str
) -> None:
    through, native = await migrating.both(side)
    for request in (raw.query(sql), raw.extended(sql)):
        expected = said(await native.ask(request))
        assert len(expected) == 1, "the case is no error"
        got = said(await through.ask(request))
        if sql in OWN_HINT:
            assert "speaks has the columns id, state, sku" in got[0].pop("H")
            expected[0].pop("H", None)
        assert got == expected


PIPELINES = {
    "old": (
        ["SELECT 1", "UPDATE orders SET status = 1 WHERE id = 1", "UPDATE orders SET code = 'b' WHERE id = 1"],
        ["UPDATE orders SET status = 1 WHERE id = 1 AND colour = 1", "SELECT status FROM orders"],
        ["SELECT status FROM orders WHERE id = 1", "/* ä */ INSERT INTO orders (id, status) VALUES (1, 1)"],
        ["BEGIN", "UPDATE orders SET status = 70000", "SELECT 1", "ROLLBACK"],
    ),
    "new": (
        ["SELECT 1", "UPDATE orders SET state = 'new' WHERE id = 1", "UPDATE orders SET sku = 'b' WHERE id = 1"],
        ["UPDATE orders SET state = 'new' WHERE id = 1 AND colour = 1", "SELECT state FROM orders"],
        ["SELECT state FROM orders WHERE id = 1", "/* ä */ INSERT INTO orders (id, state) VALUES (1, 'new')"],
        ["BEGIN", "UPDATE orders SET buyer = 7 WHERE id = 1", "SELECT 1", "ROLLBACK"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("side", ["old", "new"])
async def test_an_error_of_several_statements_is_that_of_the_one_that_failed(
    migrating: Migrating, side: str
) -> None:
    through, native = await migrating.both(side)
    for statements in PIPELINES[side]:
        together = raw.query("; ".join(statements))
        in_one_batch = b"".join(raw.parse(sql) + raw.bind() + raw.execute() for sql in statements) + raw.SYNC
        for request in (together, in_one_batch):
            expected = await native.ask(request)
            got = await through.ask(request)
            assert said(expected), "the case is no error"
            assert said(got) == said(expected)
            assert raw.kinds(got) == raw.kinds(expected)
            assert got[-1] == expected[-1]
            for client in (through, native):
                await client.query("ROLLBACK")


@pytest.mark.parametrize("side", ["old", "new"])
async def test_an_error_of_a_prepared_statement_is_that_of_its_text(migrating: Migrating, side: str) -> None:
    through, native = await migrating.both(side)
    column, value = ("status", "1") if side == "old" else ("state", "'new'")
    sql = f"UPDATE orders SET {column} = {value} FROM extra WHERE extra.id = orders.id AND extra.gone = 1 RETURNING 1"
    for database in (migrating.database, migrating.plain[side]):
        database.sql("CREATE TABLE extra (id int, gone int); INSERT INTO extra VALUES (1, 1)")
    try:
        for client in (through, native):
            assert (
                raw.codes(await client.ask(raw.parse(sql, "s") + raw.bind("s") + raw.execute() + raw.SYNC))
                == []
            )
        for database in (migrating.database, migrating.plain[side]):
            database.sql("ALTER TABLE extra DROP COLUMN gone")
        for request in (
            raw.bind("s") + raw.execute() + raw.SYNC,
            raw.describe("s") + raw.SYNC,
            raw.query("SELECT 1; " + sql),
            raw.bind("s") + raw.execute() + raw.parse("SELECT 1") + raw.bind() + raw.execute() + raw.SYNC,
        ):
            expected = said(await native.ask(request))
            assert expected[0]["P"]
            assert said(await through.ask(request)) == expected
    finally:
        for database in (migrating.database, migrating.plain[side]):
            database.sql("DROP TABLE extra")


async def test_what_a_function_does_to_the_table_fails_in_the_words_of_the_version(
    migrating: Migrating,
) -> None:
    function = """CREATE FUNCTION spoil() RETURNS void LANGUAGE plpgsql AS
        $$BEGIN UPDATE orders SET {column} = 'b' WHERE id = 1; END$$"""
    for database, column in ((migrating.database, "code"), (migrating.plain["new"], "sku")):
        database.sql(function.format(column=column))
    through, native = await migrating.both("new")
    try:
        for request in (raw.query("SELECT spoil()"), raw.extended("SELECT spoil()")):
            [expected], [got] = said(await native.ask(request)), said(await through.ask(request))
            # The function's own text is the function's.
            assert "UPDATE orders SET code" in got.pop("W")
            assert "UPDATE orders SET sku" in expected.pop("W")
            assert got == expected
    finally:
        for database in (migrating.database, migrating.plain["new"]):
            database.sql("DROP FUNCTION spoil()")


COPIED = {
    "old": (
        ("COPY orders FROM STDIN", "30\tx\ta\n"),
        ("COPY orders (id, status, code) FROM STDIN", "30\t1\tmuch too long a code\n"),
        ("COPY orders (id, status, code) FROM STDIN", "30\t1\n"),
        ("COPY orders (id, status, code) FROM STDIN", "30\t1\tb\n"),
        ("COPY orders (id, status, amount) FROM STDIN", "30\t1\t-1\n"),
        ("COPY orders (id, code) FROM STDIN", "30\tx\n"),
    ),
    "new": (
        ("COPY orders (id, state, buyer) FROM STDIN", "30\tnew\tx\n"),
        ("COPY orders (id, state, sku) FROM STDIN", "30\tnew\tmuch too long a code\n"),
        ("COPY orders (id, state, sku) FROM STDIN", "30\tnew\n"),
        ("COPY orders (id, state, sku) FROM STDIN", "30\tnew\tb\n"),
        ("COPY orders (id, state, amount) FROM STDIN", "30\tnew\t-1\n"),
        ("COPY orders (id, sku) FROM STDIN", "30\tx\n"),
    ),
}


@pytest.mark.parametrize("side", ["old", "new"])
async def test_data_that_cannot_be_copied_is_named_by_table_and_column(
    migrating: Migrating, side: str
) -> None:
    through, native = await migrating.both(side)
    for copy, data in COPIED[side]:
        answers = []
        for client in (through, native):
            client.send(raw.query(copy))
            await client.until(m.COPY_IN_RESPONSE)
            answers.append(said(await client.ask(raw.copy_data(data), raw.COPY_DONE)))
        [got], [expected] = answers
        # Where a trigger keeps PostgreSQL from inserting many rows at once, it shows the line too.
        for error in (got, expected):
            if error.get("W", "").startswith("COPY orders, line 1"):
                error["W"] = error["W"].partition(": ")[0]
        assert got == expected, copy


@pytest.mark.parametrize("side", ["old", "new"])
async def test_an_error_on_servers_shared_by_transactions_is_the_same(
    migrating: Migrating, side: str, shared: Sidecar
) -> None:
    through, native = await migrating.both(side, shared)
    cases = OLD if side == "old" else NEW
    for name in ("unique", "check", "undefined column with a hint", "not ASCII before it"):
        for client in (through, native):
            await client.ask(raw.parse(cases[name], "shared") + raw.SYNC)
        request = (
            raw.close("shared")
            + raw.parse(cases[name], "shared")
            + raw.bind("shared")
            + raw.execute()
            + raw.SYNC
        )
        assert said(await through.ask(request)) == said(await native.ask(request))
