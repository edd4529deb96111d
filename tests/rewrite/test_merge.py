"""MERGE of either version's speakers beside the same statement on a plain table."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from orders import CLOSED, ORDERS
from pairs import Pair
from test_derived import DRAWN, run, said_by
from test_evaluated_once import ROWS

from proxy.rewrite.planner import Planner

MERGES = """
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku <> 'b' WHEN MATCHED THEN UPDATE SET amount = i.qty, note = i.sku WHEN NOT MATCHED THEN INSERT (id, amount) VALUES (i.order_id, i.qty) RETURNING merge_action(), *
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku <> 'b' WHEN MATCHED AND i.qty > 4 THEN DELETE WHEN MATCHED THEN DO NOTHING RETURNING merge_action(), o.*
MERGE INTO orders o USING (VALUES (2, 'new'), (11, 'sent')) v(id, s) ON v.id = o.id WHEN MATCHED THEN UPDATE SET note = v.s, amount = CASE WHEN o.amount > 1 THEN 7 ELSE 8 END WHEN NOT MATCHED BY TARGET THEN INSERT VALUES (v.id, DEFAULT, 3) WHEN NOT MATCHED BY SOURCE AND CASE WHEN o.id = 3 THEN true END THEN UPDATE SET amount = 30, note = 'gone' RETURNING merge_action(), o.id, old.amount, new.amount, v.*
MERGE INTO orders o USING (SELECT 12 AS k) v ON v.k = o.id WHEN NOT MATCHED THEN INSERT DEFAULT VALUES
MERGE INTO orders USING items ON items.order_id = orders.id AND sku = 'b' WHEN MATCHED THEN UPDATE SET amount = DEFAULT, "Paid?" = 'yes' RETURNING orders.*
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku = 'b' WHEN MATCHED THEN UPDATE SET (amount, note) = (i.qty + 1, 'row') RETURNING *
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku = 'b' WHEN MATCHED THEN UPDATE SET (amount, note) = (SELECT i.qty + 2 + o.id, o.note || 'x') RETURNING *
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku = 'b' WHEN MATCHED THEN UPDATE SET note = 'y', amount = nextval('drawn') RETURNING *
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku = 'b' WHEN MATCHED THEN UPDATE SET note = 'y', amount = nextval('drawn') WHEN NOT MATCHED BY SOURCE THEN UPDATE SET amount = nextval('drawn') RETURNING *
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku = 'b' WHEN MATCHED THEN UPDATE SET amount = nextval('drawn') WHEN NOT MATCHED BY SOURCE THEN UPDATE SET (note, created) = (SELECT 'u', NULL::timestamptz) RETURNING *
MERGE INTO orders o USING items i ON false WHEN NOT MATCHED AND sku = 'd' THEN INSERT (amount, id) VALUES (nextval('drawn'), 20 + qty) RETURNING *
MERGE INTO orders o USING items i ON false WHEN NOT MATCHED AND sku = 'd' THEN INSERT (amount, id) OVERRIDING SYSTEM VALUE VALUES (qty, 30 + qty) RETURNING *
MERGE INTO orders o USING items i ON false WHEN NOT MATCHED AND sku = 'd' THEN INSERT (amount, id) OVERRIDING USER VALUE VALUES (qty, 1)
MERGE INTO orders o USING items i ON false WHEN NOT MATCHED THEN INSERT (amount, status) VALUES (qty, 'far too long to fit')
MERGE INTO orders o USING items i ON o.id = 1 AND sku = 'b' WHEN MATCHED THEN UPDATE SET "größe" = 'wide'
MERGE INTO orders o USING items i ON o.id = 1 WHEN MATCHED THEN UPDATE SET amount = qty
MERGE INTO orders o USING items i ON false WHEN NOT MATCHED THEN INSERT (amount, id) VALUES (qty)
MERGE INTO orders o USING items i ON false WHEN NOT MATCHED THEN INSERT (amount) VALUES (o.amount)
MERGE INTO orders o USING items i ON false WHEN NOT MATCHED THEN INSERT (nothing) VALUES (1)
MERGE INTO orders o USING orders p ON o.id = p.id WHEN MATCHED AND p.amount > 2 THEN UPDATE SET amount = p.amount + 1, note = p.note RETURNING o.*
WITH w AS (SELECT 1 AS k, 99 AS a) MERGE INTO orders o USING w ON w.k = o.id WHEN MATCHED THEN UPDATE SET amount = w.a RETURNING o.amount, w.*
WITH m AS (MERGE INTO orders o USING items i ON i.order_id = o.id AND sku = 'b' WHEN MATCHED THEN UPDATE SET amount = 5 RETURNING merge_action() AS did, o.id, o.amount) SELECT * FROM m
MERGE INTO ONLY public.orders AS o USING (SELECT DISTINCT order_id FROM items) i ON i.order_id = o.id WHEN MATCHED AND o.amount IS NOT NULL THEN UPDATE SET "Paid?" = 'no', amount = o.amount * 2 WHEN NOT MATCHED THEN INSERT (note, "Paid?") VALUES (CASE WHEN order_id > 1 THEN 'then' END, 'yes') RETURNING WITH (OLD AS was) merge_action() AS a, was.amount, o.note
MERGE INTO orders o USING items i ON i.order_id = o.id WHEN MATCHED AND sku = 'b' THEN DELETE WHEN NOT MATCHED THEN DO NOTHING RETURNING o.*, old.*, new.id
MERGE INTO orders o USING items i ON o.id = 3 AND sku = 'c' WHEN MATCHED THEN UPDATE SET note = 'only' RETURNING old.note, new.note, row_to_json(o)
"""  # noqa: E501


async def test_a_client_cannot_tell_a_merge(pair: Pair, database: Any) -> None:
    database.sql(DRAWN)
    pair.any_order = True
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    reasons = [await run(pair, sql) for sql in said_by(pair.side, MERGES)]
    guarded = [reason for reason in reasons if reason.startswith("guard")]
    assert guarded == ["guard_volatile_expression"] * 3 + ["guard_other"]
    assert reasons.count("dual_write") > 12, reasons


PARAMETERS: list[tuple[str, tuple[Any, ...]]] = [
    (
        "MERGE INTO orders o USING (SELECT $1::int AS k) v ON v.k = o.id"
        " WHEN MATCHED THEN UPDATE SET amount = $2, note = $3"
        " WHEN NOT MATCHED THEN INSERT (id, amount) VALUES (v.k, $2)",
        (1, 5, "n"),
    ),
    (
        "MERGE INTO orders o USING (SELECT $1::int AS k) v ON v.k = o.id"
        " WHEN NOT MATCHED THEN INSERT (id, status) VALUES (v.k, $2) RETURNING *",
        (70, "sent"),
    ),
]


async def test_parameters_of_a_merge_get_the_same_types(pair: Pair) -> None:
    for sql in said_by(pair.side, ROWS):
        await pair.run(sql)
    for sql, arguments in PARAMETERS:
        (said,) = said_by(pair.side, sql)
        assert await run(pair, said, *arguments) == "dual_write"


async def test_the_fallback_of_a_merge_does_the_same(pair: Pair) -> None:
    pair.any_order = True
    for sql in said_by(pair.side, ROWS + MERGES):
        plan = pair.planner.plan(sql.encode())
        if plan.fallback is None or "nextval" in sql:
            continue
        pair.planner.plan = lambda text, plan=plan: plan.fallback  # type: ignore[method-assign]
        await pair.run(sql)
        pair.planner = Planner([ORDERS], pair.side)


async def test_a_merge_sees_what_was_changed_meanwhile(old: Pair, database: Any) -> None:
    await old.run("INSERT INTO orders (id, status, amount) VALUES (1, 'new', 1)")
    repairs = await old.repairs()
    merge = old.planner.plan(
        b"MERGE INTO orders o USING (VALUES (1)) v(k) ON v.k = o.id WHEN MATCHED THEN UPDATE SET"
        b" (amount, note) = (SELECT o.amount + 10, 'x'), status = o.status || (SELECT '') RETURNING status, amount"
    )
    async with database.connection() as other:
        async with old.migrated.transaction():
            plan = old.planner.plan(b"UPDATE orders SET amount = amount + 1, status = 'paid'")
            await old.migrated.execute(plan.text.decode())
            waiting = asyncio.ensure_future(other.fetchrow(merge.text.decode()))
            pid = other.get_server_pid()
            while not await old.migrated.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid):
                await asyncio.sleep(0.01)
        row = await asyncio.wait_for(waiting, 10)
    assert (row["status"], int(row["amount"])) == ("paid", 12)
    assert not await old.migrated.fetch("SELECT 1 FROM orders o WHERE NOT dualwire.consistent(o)")
    assert await old.repairs() == repairs


def sentence(rng: random.Random) -> str:
    """A random MERGE of an old speaker; said otherwise for a new one."""
    values = ["1", "2", "NULL", "v.a", "DEFAULT", "CASE WHEN v.a > 1 THEN 5 ELSE v.a END", "(3)"]
    updated = [*values, "(SELECT v.a)", "o.amount + 1", "coalesce(o.amount, (SELECT 4))"]

    def update() -> str:
        return rng.choice(
            [
                f"UPDATE SET amount = {rng.choice(updated[:7])}",
                f"UPDATE SET note = 'n', amount = {rng.choice(updated)}",
                f"UPDATE SET (note, amount) = (v.n, {rng.choice(updated)}), \"Paid?\" = 'yes'",
                "UPDATE SET (note, amount) = ROW(v.n, v.a)",
                "DELETE",
                "DO NOTHING",
            ]
        )

    def insert() -> str:
        return rng.choice(
            [
                f"INSERT (id, amount) VALUES (v.k, {rng.choice(values)})",
                f"INSERT VALUES (v.k, DEFAULT, {rng.choice(values)})",
                f'INSERT (note, id, "Paid?") VALUES (v.n, v.k, {rng.choice(["DEFAULT", "NULL"])})',
                "DO NOTHING",
            ]
        )

    rows = ", ".join(
        f"({k}, {rng.choice(['1', '2', 'NULL::int'])}, '{rng.choice('xyz')}')"
        for k in sorted(rng.sample(range(1, 15), rng.randint(1, 4)))
    )
    clauses = [f"WHEN MATCHED AND v.a = {rng.randint(1, 2)} THEN {update()}", f"WHEN MATCHED THEN {update()}"]
    clauses += [f"WHEN NOT MATCHED AND CASE WHEN v.n = 'x' THEN true END THEN {insert()}"]
    clauses += [f"WHEN NOT MATCHED THEN {insert()}"]
    clauses += [f"WHEN NOT MATCHED BY SOURCE AND o.id = {rng.randint(1, 14)} THEN UPDATE SET amount = o.id"]
    if rng.random() < 0.3:  # only in one action: see proxy.rewrite.merge
        clauses[0] = "WHEN MATCHED AND v.a = 1 THEN UPDATE SET (note, amount) = (SELECT 'c', 3 WHERE v.k < 5)"
    kept = [clause for clause in clauses if rng.random() < 0.7] or clauses[:1]
    returned = rng.choice(
        ["", " RETURNING *", " RETURNING merge_action(), o.*", " RETURNING old.amount, new.*, v.k"]
    )
    return f"MERGE INTO orders o USING (VALUES {rows}) v(k, a, n) ON v.k = o.id {' '.join(kept)}{returned}"


@pytest.mark.parametrize("seed", range(2))
async def test_random_merges(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    pair.any_order = True
    mirrored = 0
    for _ in range(80):
        (sql,) = said_by(pair.side, sentence(rng))
        mirrored += (await pair.run(sql)).mirrored
    assert mirrored > 40


def test_after_the_point_of_no_return_a_merge_is_only_translated() -> None:
    sql = (
        b"MERGE INTO orders o USING a ON o.state = a.s WHEN NOT MATCHED THEN INSERT (cents) VALUES (random())"
    )
    plan = Planner([CLOSED], "new").plan(sql)
    assert plan.text.endswith(
        b'ON o."_dualwire_new_state" = a.s WHEN NOT MATCHED THEN INSERT'
        b' ("_dualwire_new_cents") VALUES (random())'
    )
    assert (plan.mirrored, plan.guarded) == (False, False)


def test_a_merge_that_writes_nothing_of_the_other_shape_is_left_alone() -> None:
    sql = (
        b"MERGE INTO orders o USING a ON o.id = a.i WHEN MATCHED AND a.x THEN DELETE"
        b" WHEN MATCHED THEN UPDATE SET note = ''"
    )
    plan = Planner([ORDERS], "old").plan(sql)
    assert plan.text is sql
    assert (plan.mirrored, plan.guarded, plan.reason) == (False, False, "passed")


def test_without_a_guard_a_merge_is_mirrored_or_refused() -> None:
    planner = Planner([replace(ORDERS, guard="check")], "new")
    merge = b"MERGE INTO orders o USING a ON o.id = a.i WHEN NOT MATCHED THEN INSERT (cents) VALUES (%s)"
    assert planner.plan(merge % b"a.c").mirrored
    refusal = planner.plan(merge % b"f(a.c)").refusal
    assert refusal is not None
    assert refusal.sqlstate == "0A000"
