"""Statements inside others: PREPARE, whose text no prober tries, and EXPLAIN, CREATE TABLE AS, cursors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from orders import ORDERS
from pairs import Pair, outcome
from test_derived import DRAWN, said_by
from test_evaluated_once import ROWS

from proxy.rewrite.model import Guard
from proxy.rewrite.planner import Planner

PREPARED = [
    ("p1", "INSERT INTO orders (id, status, amount) VALUES ($1, $2, $3) RETURNING *", "10, 'paid', 5"),
    ("p2", "INSERT INTO orders (id, status, amount) VALUES ($1, $2, 1.5 + $3), (11, $2, 2)", "12, 'new', 1"),
    (
        "p3",
        "INSERT INTO orders (id, amount, note) SELECT $1, qty, $2 FROM items WHERE sku = $3",
        "13, 'n', 'c'",
    ),
    ("p4", "UPDATE orders SET amount = $1, note = $2 WHERE id = $3 RETURNING *", "6, 'x', 1"),
    ("p5", "UPDATE orders SET amount = amount + $1 WHERE amount < $2", "2, 100"),
    ("p6", "UPDATE orders SET amount = ($1)::int + 1, status = coalesce($2, status) WHERE id = 2", "6, NULL"),
    ("p7", "UPDATE orders SET (amount, note) = ($1, $2) WHERE id = 2 RETURNING *", "7, 'r'"),
    ("p8", "UPDATE orders SET (amount, note) = (SELECT $1::int, $2) WHERE id = 2 RETURNING *", "7, 'q'"),
    ("p9", "INSERT INTO orders (id, amount) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET amount = $1", "8"),
    (
        "p10 (int, text, numeric)",
        "UPDATE orders SET amount = $3 / 2, status = lower($2) WHERE id = $1",
        "2, 'NEW', 8",
    ),
    ("p11 (text, unknown)", "UPDATE orders SET note = $1, amount = $2 WHERE id = 2 RETURNING *", "'t', 9"),
    ("p12", 'UPDATE orders SET "größe" = $1', "'wide'"),
    ("p13", "UPDATE orders SET amount = $1 WHERE id = $1", "3"),
    ("p14", "UPDATE orders SET amount = $1, note = $1", "3"),
    (
        "p15",
        "MERGE INTO orders o USING (SELECT $1::int AS k) v ON v.k = o.id WHEN MATCHED THEN UPDATE SET amount = $2"
        " WHEN NOT MATCHED THEN INSERT (id, amount) VALUES (v.k, $2)",
        "20, 4",
    ),
    ("p16", "WITH w AS (UPDATE orders SET amount = $1 WHERE id = 1 RETURNING *) SELECT * FROM w", "4"),
    ("p17", "DELETE FROM orders WHERE id = $1 RETURNING *", "11"),
    ("p18", "SELECT * FROM orders WHERE id = $1", "1"),
    ("p19", "INSERT INTO orders (amount) VALUES ($1 || '')", "5"),
]


@pytest.mark.parametrize("guard", ["sync", "check"])
async def test_a_client_cannot_tell_what_was_prepared(pair: Pair, guard: Guard) -> None:
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    mirrored = 0
    guarded = pair.planner
    for name, sql, arguments in PREPARED:
        (said,) = said_by(pair.side, sql)
        pair.planner = Planner([replace(ORDERS, guard=guard)], pair.side)
        if pair.planner.plan(f"PREPARE {name} AS {said}".encode()).refusal is not None:
            pair.planner = guarded
        plan = await pair.run(f"PREPARE {name} AS {said}")
        mirrored += plan.mirrored
        execute = f"EXECUTE {name.split()[0]} ({arguments})"
        for sql in (f"CREATE TEMP TABLE t AS {execute}", f"EXPLAIN (ANALYZE) {execute}", execute):
            if sql != execute and name not in ("p4", "p18"):
                continue
            assert pair.planner.plan(sql.encode()).edits == ()
            repairs = await pair.repairs()
            expected = await outcome(pair.plain, sql)
            got = await outcome(pair.migrated, sql)
            assert got == expected or sql.startswith("EXPLAIN"), said
            await pair.check()
            assert plan.guarded or await pair.repairs() == repairs, said
    assert mirrored == (0 if guard == "sync" else 16 if pair.side == "old" else 15)


@pytest.mark.parametrize(
    ("sql", "mirrored"),
    [
        ("PREPARE p AS UPDATE orders SET status = $1", True),
        ("PREPARE p AS UPDATE orders SET status = lower($1)", True),
        ("PREPARE p AS INSERT INTO orders (status) VALUES (lower($1))", True),
        ("PREPARE p (text) AS INSERT INTO orders (status) VALUES (lower($1))", True),
        (
            "PREPARE p AS MERGE INTO orders USING a ON true WHEN NOT MATCHED THEN INSERT (status) VALUES (f($1))",
            False,
        ),
        (
            "PREPARE p AS MERGE INTO orders USING a ON true WHEN NOT MATCHED THEN INSERT (status) VALUES ($1 || '')",
            False,
        ),
        (
            "PREPARE p (text) AS MERGE INTO orders USING a ON true"
            " WHEN NOT MATCHED THEN INSERT (status) VALUES ($1 || '')",
            True,
        ),
        ("PREPARE p AS INSERT INTO orders (status, amount) SELECT * FROM a", False),
    ],
)
def test_what_is_prepared_is_mirrored_where_its_types_are_sure(sql: str, mirrored: bool) -> None:
    plan = Planner([replace(ORDERS, guard="check")], "old").plan(sql.encode())
    assert (plan.mirrored, plan.refusal is None) == (mirrored, mirrored)
    assert plan.text.count(b"lower($1)") <= (1 if "(text)" not in sql else 9)


@pytest.mark.parametrize("statement", [sql for _, sql, _ in PREPARED])
def test_what_is_prepared_names_nothing_that_a_rollback_takes_away(statement: str) -> None:
    plan = Planner([ORDERS], "old").plan(f"PREPARE p AS {statement}".encode())
    assert (plan.mirrored, plan.refusal) == (False, None)
    assert b"_dualwire" not in plan.text
    if plan.guarded:
        assert plan.reason == "guard_prepare"
    # Only what PREPARE has in it: the next statement of the same text is mirrored again.
    plan = Planner([ORDERS], "old").plan(f"PREPARE p AS {statement}; UPDATE orders SET amount = 1".encode())
    assert plan.mirrored


async def test_explain_analyze_writes_both_shapes(pair: Pair, database: Any) -> None:
    database.sql(DRAWN)
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    for sql in said_by(
        pair.side,
        """
INSERT INTO orders (id, amount) VALUES (30, 1)
INSERT INTO orders (id, amount) SELECT 31, qty FROM items LIMIT 1
UPDATE orders SET amount = amount + 1
UPDATE orders SET amount = nextval('drawn')
MERGE INTO orders o USING items i ON i.order_id = o.id AND sku = 'c' WHEN MATCHED THEN UPDATE SET amount = qty
DELETE FROM orders WHERE id = 30
SELECT * FROM orders
""",
    ):
        repairs = await pair.repairs()
        plan = pair.planner.plan(f"EXPLAIN (ANALYZE, COSTS OFF) {sql}".encode())
        assert not plan.guarded
        await pair.migrated.execute(plan.text.decode())
        await pair.plain.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {sql}")
        await pair.check()
        assert await pair.repairs() == repairs


async def test_tables_made_of_queries_have_the_versions_columns(pair: Pair) -> None:
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    for name, sql in (
        ("a", "CREATE TEMP TABLE a AS SELECT * FROM orders ORDER BY id"),
        ("b", "SELECT o.*, 1 AS one INTO TEMP b FROM orders o ORDER BY id"),
        ("c", "CREATE TEMP TABLE c AS TABLE orders WITH NO DATA"),
        ("d", "CREATE TEMP TABLE d (x, y) AS SELECT amount, status FROM orders ORDER BY id"),
    ):
        (said,) = said_by(pair.side, sql)
        await pair.run(said)
        assert await outcome(pair.migrated, f"TABLE {name}") == await outcome(pair.plain, f"TABLE {name}")


async def test_rows_are_written_through_a_cursor(pair: Pair) -> None:
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    async with pair.migrated.transaction(), pair.plain.transaction():
        for sql in said_by(
            pair.side,
            """
DECLARE c CURSOR FOR SELECT * FROM orders WHERE amount > 0 ORDER BY id FOR UPDATE
FETCH 2 FROM c
UPDATE orders SET amount = 40 WHERE CURRENT OF c RETURNING *
UPDATE orders SET amount = amount + (SELECT 2) WHERE CURRENT OF c RETURNING *
MOVE 1 FROM c
DELETE FROM orders WHERE CURRENT OF c RETURNING *
CLOSE c
""",
        ):
            assert not (await pair.run(sql)).guarded
