"""SET lists whose expressions may be written down only once: one assignment of several columns for each row."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from orders import ORDERS
from pairs import Pair, statements
from test_derived import DRAWN, run, said_by
from test_old_speakers import STATUS

from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, Side, TableModel
from proxy.rewrite.planner import Planner

ROWS = """
INSERT INTO orders (id, status, amount, note) VALUES (1, 'new', 1, 'a'), (2, 'paid', 2, 'b'), (3, 'sent', NULL, NULL), (4, NULL, 4, 'd')
"""  # noqa: E501

UPDATES = """
UPDATE orders SET amount = nextval('drawn') RETURNING *
UPDATE orders SET amount = nextval('drawn') WHERE id > 2
UPDATE orders SET note = 'n', amount = random() * 100, created = '2020-01-01Z' WHERE id = 1 RETURNING amount
UPDATE orders SET amount = (SELECT sum(qty) FROM items WHERE order_id = orders.id) RETURNING *
UPDATE orders SET amount = (SELECT nextval('drawn')) RETURNING *
UPDATE orders SET amount = (SELECT qty FROM items)
UPDATE orders SET amount = amount + (SELECT max(qty) FROM items), note = note || (SELECT 'x') RETURNING *
UPDATE orders o SET amount = o.amount + (SELECT max(qty) FROM items WHERE order_id = o.id) WHERE o.amount > 1 RETURNING o.*
UPDATE orders o SET amount = (SELECT i.qty), note = i.sku FROM items i WHERE i.order_id = o.id AND i.sku <> 'b' RETURNING *
UPDATE orders SET (amount, note) = (5, 'x') WHERE id = 1 RETURNING *
UPDATE orders SET (amount, note) = ROW(6, DEFAULT) WHERE id = 1 RETURNING *
UPDATE orders SET (status, amount) = (DEFAULT, amount + 1) WHERE id < 3 RETURNING *
UPDATE orders SET (status, amount) = ('far too long to fit', 1)
UPDATE orders SET ("größe", amount) = ('wide', random())
UPDATE orders SET "größe" = (SELECT 'wide')
UPDATE orders SET "größe" = (SELECT 'wide'::varchar(3)), amount = (SELECT 3) WHERE id = 1 RETURNING *
UPDATE orders SET status = (SELECT 'far too long to fit'::text)
UPDATE orders SET status = (SELECT repeat('x', 10) || '  ') WHERE id = 99
UPDATE orders SET status = (SELECT 'paid'::text)
UPDATE orders SET amount = (SELECT 'no number')
UPDATE orders SET (amount) = (8) WHERE id = 1
UPDATE orders SET (amount) = ROW(8) WHERE id = 1 RETURNING *
UPDATE orders SET (amount) = (SELECT 9) WHERE id = 1 RETURNING *
UPDATE orders SET ((amount)) = (SELECT 9)
UPDATE orders SET (amount, note) = (SELECT max(qty), 'q' FROM items WHERE order_id = orders.id) RETURNING *
UPDATE orders SET (amount, note) = (SELECT qty, sku FROM items WHERE order_id = 99) WHERE id = 2 RETURNING *
UPDATE orders SET (amount, note) = (SELECT qty, sku FROM items)
UPDATE orders SET (amount, note) = (SELECT qty, sku, order_id FROM items LIMIT 1)
UPDATE orders SET (amount, note) = (SELECT qty FROM items LIMIT 1)
UPDATE orders SET (amount, note) = (SELECT * FROM (SELECT 3, 'z') q) WHERE id = 3 RETURNING *
UPDATE orders SET (amount, note) = (SELECT nextval('drawn'), 'once') RETURNING *
UPDATE orders SET (amount, note) = (SELECT nextval('drawn') + orders.id - orders.id, 'each') RETURNING *
UPDATE orders SET (amount, note) = (WITH w AS (SELECT 4 AS a) SELECT a, 'w' FROM w), created = now() - now() + '2020-01-01Z' WHERE id = 4 RETURNING *
UPDATE orders SET (amount, note) = ((SELECT qty, sku FROM items ORDER BY qty LIMIT 1)) WHERE id = 4 RETURNING *
UPDATE orders SET (note, created) = (SELECT sku, NULL FROM items LIMIT 1), amount = nextval('drawn'), "größe" = 'abc' WHERE id = 2 RETURNING *
UPDATE orders SET (note, amount) = (nextval('drawn'), nextval('drawn') * 2) WHERE id = 2 RETURNING *
UPDATE orders SET (note, amount) = (SELECT 'a', 1), (created, "größe") = (SELECT NULL::timestamptz, 'x'), id = id WHERE id = 2 RETURNING *
UPDATE orders SET amount = 1, amount = random()
UPDATE orders SET (amount, note) = (SELECT 1, 2), amount = 3
UPDATE orders SET amount = sum(amount)
UPDATE orders SET amount = count(*)
UPDATE orders SET amount = row_number() OVER ()
UPDATE orders SET amount = generate_series(1, 2)
UPDATE orders SET amount = nothing((SELECT 1))
UPDATE orders SET amount = (SELECT 1), nothing = 2
UPDATE orders SET amount = CASE id WHEN 1 THEN 11 WHEN 2 THEN 12 ELSE (SELECT 13) END /* ) */ WHERE id < 4 RETURNING *
UPDATE orders SET amount = -- why, not
 (SELECT 14) WHERE id = 1
UPDATE orders SET amount = (SELECT min(o.amount) FROM orders o WHERE o.id > orders.id) RETURNING *
UPDATE orders SET amount = (SELECT 15), "Paid?" = CASE WHEN random() < 2 THEN 'yes' END WHERE id = 1 RETURNING *
UPDATE ONLY orders AS "O" SET amount = "O".amount + length((SELECT 'four')) WHERE "O".id = 2 RETURNING "O".*
UPDATE orders SET amount = lower(random()::text)::numeric WHERE false
WITH w AS (UPDATE orders SET amount = (SELECT 16) WHERE id = 1 RETURNING *) SELECT * FROM w
INSERT INTO orders (id, amount) VALUES (1, 1), (2, 2) ON CONFLICT (id) DO UPDATE SET amount = orders.amount + (SELECT excluded.amount) RETURNING *
INSERT INTO orders (id, amount) VALUES (1, 1), (2, 2) ON CONFLICT (id) DO UPDATE SET amount = nextval('drawn') WHERE orders.id = 2 RETURNING *
INSERT INTO orders (id, amount) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET (amount, note) = (SELECT excluded.amount + 7, orders.note || 'c') RETURNING *
INSERT INTO orders (id, amount) VALUES (1, (SELECT 20)), (7, 3) ON CONFLICT (id) DO UPDATE SET (amount, note) = (excluded.amount + 7, (SELECT 'row')) RETURNING *
INSERT INTO orders AS o (id, amount) SELECT id, 3 FROM orders ON CONFLICT (id) DO UPDATE SET (amount) = (SELECT max(i.amount) FROM orders i WHERE i.id <= o.id) RETURNING *
EXPLAIN (COSTS OFF, TIMING OFF, SUMMARY OFF, ANALYZE, BUFFERS OFF, FORMAT XML) UPDATE orders SET amount = (SELECT 17) WHERE false
DELETE FROM orders WHERE id = 4
"""  # noqa: E501
"""Said by old speakers."""


async def test_a_client_cannot_tell_one_assignment_of_several_columns(pair: Pair, database: Any) -> None:
    database.sql(DRAWN)
    pair.any_order = True
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    reasons = []
    for sql in said_by(pair.side, UPDATES.replace("not\n ", "not ")):
        if sql.startswith("EXPLAIN"):
            assert pair.planner.plan(sql.encode()).mirrored
            continue
        reasons.append(await run(pair, sql.replace("-- why, not", "/* why, not */")))
    assert reasons.count("dual_write") >= len(reasons) - 14, reasons
    drawn = "SELECT last_value FROM {}.drawn"
    assert await pair.migrated.fetchval(drawn.format("public")) == await pair.plain.fetchval(
        drawn.format("plain")
    )


PARAMETERS: list[tuple[str, tuple[Any, ...]]] = [
    ("UPDATE orders SET (status, amount) = ($1, $2) WHERE id = $3 RETURNING *", ("paid", 5, 1)),
    ("UPDATE orders SET (note, amount) = ROW($1, $2 + (SELECT 1)) WHERE id = $3 RETURNING *", ("n", 5, 1)),
    ("UPDATE orders SET (note, amount) = (SELECT $1::text, $2::int) WHERE id = $3 RETURNING *", ("n", 5, 1)),
    ("UPDATE orders SET note = $1, amount = (SELECT $2::int) WHERE id = $3 RETURNING *", ("n", 7, 2)),
    ("UPDATE orders SET amount = random(1, $1) WHERE id = $2 RETURNING *", (1, 2)),
]


async def test_parameters_get_the_same_types(pair: Pair) -> None:
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    for sql, arguments in PARAMETERS:
        (said,) = said_by(pair.side, sql)
        assert await run(pair, said, *arguments) == "dual_write"


LONG = "x" * 9000


async def test_a_long_constant_is_sent_once(old: Pair, database: Any) -> None:
    database.sql(
        "ALTER TABLE public.orders ALTER status TYPE text; ALTER TABLE plain.orders ALTER status TYPE text"
    )
    await old.run("INSERT INTO orders (id, status) VALUES (1, 'new')")
    plan = await old.run(f"UPDATE orders SET \"Paid?\" = '{LONG}', note = 'n' WHERE id = 1 RETURNING *")
    assert plan.mirrored
    assert plan.text.count(LONG.encode()) == 1


@pytest.mark.parametrize("volatility", ["VOLATILE", "STABLE", "IMMUTABLE"])
async def test_an_expression_is_evaluated_once_for_each_row(
    old: Pair, database: Any, volatility: str
) -> None:
    database.sql(
        "CREATE SEQUENCE public.calls; CREATE FUNCTION public.lies(numeric) RETURNS numeric LANGUAGE plpgsql"
        f" {volatility} AS $$ BEGIN RETURN nextval('public.calls'); END $$;"
    )
    (rows,) = statements(ROWS)
    await old.run(rows)
    for sql in (
        "UPDATE orders SET amount = lies(amount)",
        "UPDATE orders SET (amount, note) = (lies(amount), 'x')",
        "UPDATE orders SET (amount, note) = (SELECT lies(orders.id), 'x')",
        "INSERT INTO orders (id) VALUES (1), (2), (3), (4) ON CONFLICT (id) DO UPDATE SET amount = lies(orders.amount)",
        "MERGE INTO orders USING items ON items.order_id = 1 AND sku = 'b'"
        " WHEN MATCHED THEN UPDATE SET amount = lies(id)",
    ):
        before = await old.migrated.fetchval("SELECT nextval('calls')")
        plan = old.planner.plan(sql.encode())
        assert (plan.mirrored, plan.guarded) == (True, False)
        await old.migrated.execute(plan.text.decode())
        assert await old.migrated.fetchval("SELECT last_value FROM calls") == before + 4, plan.text
        assert len(await old.migrated.fetch("SELECT DISTINCT amount FROM orders")) == 4
        assert not await old.migrated.fetch("SELECT 1 FROM orders o WHERE NOT dualwire.consistent(o)")


CONCURRENT = [
    # (what one session does first, what the other then waits with, the status and amount that are right)
    ("status = 'paid'", "amount = (SELECT 7)", ("paid", 7)),
    ("status = 'paid'", "(amount, note) = (SELECT 7, 'x')", ("paid", 7)),
    ("amount = amount + (SELECT 1)", "amount = amount + random(10, 10)", ("new", 12)),
    ("amount = amount + 1", "(amount, note) = (SELECT orders.amount + 10, 'x')", ("new", 12)),
    ("(amount, status) = (SELECT 5, 'sent')", "(amount) = ROW(amount * (SELECT 3))", ("sent", 15)),
    ("status = (SELECT 'paid')", "(status, note) = (SELECT orders.status || '', 'x')", ("paid", 1)),
]


@pytest.mark.parametrize(("first", "second", "expected"), CONCURRENT)
async def test_a_concurrent_change_of_the_same_row_is_not_lost(
    old: Pair, database: Any, first: str, second: str, expected: tuple[str, int]
) -> None:
    await old.run("INSERT INTO orders (id, status, amount) VALUES (1, 'new', 1)")
    repairs = await old.repairs()
    one, two = (
        old.planner.plan(f"UPDATE orders SET {items} WHERE id = 1 RETURNING status, amount".encode())
        for items in (first, second)
    )
    async with database.connection() as other:
        async with old.migrated.transaction():
            await old.migrated.execute(one.text.decode())
            waiting = asyncio.ensure_future(other.fetchrow(two.text.decode()))
            pid = other.get_server_pid()
            while not await old.migrated.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
                await asyncio.sleep(0.01)
        row = await asyncio.wait_for(waiting, 10)
    assert (row["status"], int(row["amount"])) == expected
    assert not await old.migrated.fetch("SELECT 1 FROM orders o WHERE NOT dualwire.consistent(o)")
    assert await old.repairs() == repairs


NAMES = TableModel(
    schema="public",
    name="people",
    oid=1,
    columns=tuple(
        Column(name, kind, kind)
        for name, kind in (
            ("id", "integer"),
            ("first", "text"),
            ("last", "text"),
            ("whole", "text"),
            ("m", "smallint"),
        )
    ),
    primary_key=("id",),
    old=tuple(LogicalColumn(name, name) for name in ("id", "first", "last")),
    new=(LogicalColumn("id", "id"), LogicalColumn("whole", "whole")),
    up=Direction((Mirror("whole", "public.up", ("first", "last")),)),
    mark="m",
)
PEOPLE = """
CREATE FUNCTION public.up(text, text) RETURNS text LANGUAGE sql IMMUTABLE RETURN $1 || ' ' || $2;
CREATE TABLE people (id int PRIMARY KEY, first text, last text, whole text, m smallint);
INSERT INTO people VALUES (1, 'a', 'b', 'a b', 1);
"""


DRAWING = replace(
    NAMES,
    columns=(
        replace(NAMES.columns[0], default="nextval('public.drawn'::regclass)", default_kind="volatile"),
        replace(NAMES.columns[1], default="(gen_random_uuid())::text", default_kind="volatile"),
        *NAMES.columns[2:],
    ),
    up=Direction((Mirror("whole", "public.up", ("first", "last", "id")),)),
)
"""The defaults of two sources give another value each time."""


@pytest.mark.parametrize(
    ("sql", "tag", "drawn"),
    [
        ("INSERT INTO people (last) VALUES ('a'), ('b')", "INSERT 0 2", 2),
        ("INSERT INTO people (last, id) VALUES ('a', DEFAULT), ('b', 70), ('c', DEFAULT)", "INSERT 0 3", 2),
        ("INSERT INTO people VALUES (DEFAULT, DEFAULT, 'x')", "INSERT 0 1", 1),
        (
            "INSERT INTO people (last) SELECT q::text FROM generate_series(1, 5) q ORDER BY q DESC",
            "INSERT 0 5",
            5,
        ),
        ("INSERT INTO people (last, first) SELECT 'x', random()", "INSERT 0 1", 1),
        ("INSERT INTO people DEFAULT VALUES", "INSERT 0 1", 1),
        (
            "INSERT INTO people (id, last) VALUES (1, 'n') ON CONFLICT (id) DO UPDATE SET first = DEFAULT",
            "INSERT 0 1",
            0,
        ),
        ("UPDATE people SET id = DEFAULT, first = DEFAULT", "UPDATE 1", 1),
        ("UPDATE people SET (id, last) = (DEFAULT, 'z')", "UPDATE 1", 1),
        (
            "MERGE INTO people USING (VALUES (1)) v ON true WHEN MATCHED THEN UPDATE SET id = DEFAULT",
            "MERGE 1",
            1,
        ),
    ],
)
async def test_volatile_defaults_are_evaluated_once_for_each_row(
    database: Any, sql: str, tag: str, drawn: int
) -> None:
    database.sql(
        PEOPLE + "CREATE SEQUENCE drawn START 100; ALTER TABLE people ALTER id SET DEFAULT nextval('drawn'),"
        " ALTER first SET DEFAULT gen_random_uuid()::text; CREATE FUNCTION public.up(text, text, int) RETURNS text"
        " LANGUAGE sql IMMUTABLE RETURN concat_ws(' ', $1, $2, $3); UPDATE people SET whole = 'a b 1';"
    )
    plan = Planner([DRAWING], "old").plan(sql.encode())
    assert (plan.mirrored, plan.guarded) == (True, False)
    async with database.connection() as connection:
        assert await connection.execute(plan.text.decode()) == tag
        assert await connection.fetchval("SELECT count(*) FROM people WHERE id >= 100") == drawn
        assert await connection.fetchval("SELECT nextval('drawn')") == 100 + drawn
        assert not await connection.fetch(
            "SELECT * FROM people WHERE whole IS DISTINCT FROM concat_ws(' ', first, last, id) OR m IS NULL"
        )


@pytest.mark.parametrize(
    "second",
    [
        "UPDATE people SET last = (SELECT 'Y'::text) WHERE id = 1",
        "UPDATE people SET (last, id) = (SELECT 'Y', 1) WHERE id = 1",
        "UPDATE people SET (last, id) = (SELECT upper('y' || left(first, 0)), 1 FROM people p WHERE p.id = people.id)",
        "INSERT INTO people VALUES (1) ON CONFLICT (id) DO UPDATE SET last = (SELECT 'Y'::text)",
        "MERGE INTO people p USING (VALUES (1)) v(k) ON v.k = p.id"
        " WHEN MATCHED THEN UPDATE SET last = (SELECT 'Y'::text)",
    ],
)
async def test_two_sessions_that_change_different_inputs_of_one_mirror_agree(
    database: Any, second: str
) -> None:
    database.sql(PEOPLE)
    planner = Planner([NAMES], "old")
    one, two = (
        planner.plan(sql.encode())
        for sql in ("UPDATE people SET first = (SELECT 'X'::text) WHERE id = 1", second)
    )
    assert one.mirrored
    assert two.mirrored
    async with database.connection() as first, database.connection() as other:
        async with first.transaction():
            await first.execute(one.text.decode())
            waiting = asyncio.ensure_future(other.execute(two.text.decode()))
            while not await first.fetchval(
                "SELECT cardinality(pg_blocking_pids($1)) > 0", other.get_server_pid()
            ):
                await asyncio.sleep(0.01)
        await asyncio.wait_for(waiting, 10)
        assert tuple(await first.fetchrow("SELECT first, last, whole FROM people")) == ("X", "Y", "X Y")


@pytest.mark.parametrize(
    "sql", ["UPDATE {} SET status = f(1)", "MERGE INTO {} USING a ON true WHEN MATCHED THEN DELETE"]
)
def test_a_statement_on_a_view_or_an_unknown_relation_is_left_alone(sql: str) -> None:
    for name in ("orders_view", "other.orders", '"Orders"', "orders_2024"):
        data = sql.format(name).encode()
        plan = Planner([ORDERS], "new").plan(data)
        assert plan.text is data
        assert (plan.tables, plan.guarded, plan.reason) == ((), False, "no_rule")


def text(sql: str, side: Side = "old") -> str:
    plan = Planner([STATUS], side).plan(sql.encode())
    assert (plan.mirrored, plan.guarded) == (True, False)
    assert plan.fallback is not None
    return plan.text.decode()


CHANGED = '"orders"."status" IS DISTINCT FROM CAST({0} AS text)'
MIRRORS = (
    'CASE WHEN {changed} THEN dualwire.up_3_1(CAST({0} AS text)) ELSE "orders"."_dualwire_new_state" END,'
    ' CASE WHEN {changed} THEN CASE "orders"."_dualwire_mark" WHEN 1 THEN 2::int2 ELSE 1::int2 END'
    ' ELSE "orders"."_dualwire_mark" END'
)


def mirrors(value: str) -> str:
    return MIRRORS.format(value, changed=CHANGED.format(value))


def test_a_volatile_expression_moves_into_one_assignment() -> None:
    row = "_dualwire_rows._dualwire_1"
    assert text("UPDATE orders SET id = 1, status = f(id), data = '1' WHERE id = 2") == (
        'UPDATE orders SET id = 1, ("status", "_dualwire_new_state", "_dualwire_mark") = (SELECT'
        f' {row}, {mirrors(row)} FROM (VALUES (f(id)) OFFSET CASE WHEN "orders".ctid IS NULL THEN 0 ELSE 0 END)'
        " AS _dualwire_rows(_dualwire_1)), data = '1' WHERE id = 2"
    )


def test_a_sub_select_of_several_columns_becomes_a_common_table_expression() -> None:
    row = "_dualwire_query_1._dualwire_2"
    assert text("UPDATE orders SET (id, status) = (SELECT a, b FROM c) WHERE id = 2") == (
        'UPDATE orders SET ("id", "status", "_dualwire_new_state", "_dualwire_mark") ='
        " (WITH _dualwire_query_1(_dualwire_1, _dualwire_2) AS MATERIALIZED (SELECT a, b FROM c)"
        f" SELECT _dualwire_query_1._dualwire_1, {row}, {mirrors(row)}"
        " FROM (VALUES (1)) AS _dualwire_rows(_dualwire_1) LEFT JOIN _dualwire_query_1 ON true) WHERE id = 2"
    )


def test_a_row_of_plain_expressions_stays_and_the_mirrors_are_appended() -> None:
    state, mark = mirrors("'x'").split(" END, CASE")
    for row in ("((1, 'x'))", "ROW(1, 'x')", "(ROW ( 1, 'x' ))", "(DEFAULT, 'x')"):
        assert text(f"UPDATE orders SET (id, status) = {row} WHERE true") == (
            f'UPDATE orders SET (id, status) = {row}, "_dualwire_new_state" = {state} END,'
            f' "_dualwire_mark" = CASE{mark} WHERE true'
        )


def test_the_fallback_of_one_assignment_is_the_clients_text_translated() -> None:
    sql = "UPDATE orders SET (state, data) = (f(state), '1'), id = 2, data = (SELECT state FROM orders x)"
    plan = Planner([STATUS], "new").plan(sql.encode())
    assert plan.fallback is not None
    assert plan.fallback.text.decode() == (
        'UPDATE orders SET ("_dualwire_new_state", data) = (f("orders"."_dualwire_new_state"), \'1\'), id = 2,'
        ' data = (SELECT state FROM (SELECT "id", "_dualwire_new_state" AS "state", "data" FROM orders) x)'
    )


def test_an_item_that_moves_leaves_no_comma_behind() -> None:
    result = text("UPDATE orders SET data = '1', status = f() , id = 3")
    assert result.startswith("UPDATE orders SET data = '1', (\"status\", ")
    assert result.endswith("AS _dualwire_rows(_dualwire_1)) , id = 3")
    planner = Planner([ORDERS], "old")
    two = planner.plan(b"UPDATE orders SET status = f(), note = 'n', amount = g(), id = 3").text.decode()
    assert two.endswith("AS _dualwire_rows(_dualwire_1, _dualwire_2)), note = 'n', id = 3")
    assert two.count("f()") == two.count("g()") == 1
