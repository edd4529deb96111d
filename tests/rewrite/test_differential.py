"""Against a real server: what a client of either version gets from the rewritten statement on the physical
table is what it gets from its own statement on a plain table of its version; and both shapes agree afterwards.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from orders import COMPLETED, ITEMS, ORDERS, REFERENCE_NEW, SWAPPED
from pairs import Pair, outcome, statements

from proxy.rewrite.model import Side
from proxy.rewrite.planner import Planner

OLD_STATEMENTS = """
INSERT INTO orders (status, amount, "Paid?") VALUES ('new', 12.345, 'yes')
INSERT INTO orders VALUES (DEFAULT, 'paid', 1, 'no', 'ünïcödé', 'ab', now() - now() + '2020-01-01Z'), (DEFAULT, DEFAULT, 2.5, NULL, 'x', NULL, NULL)
INSERT INTO orders (amount) VALUES (7) RETURNING *
INSERT INTO public.orders AS o (status, note) VALUES (' Sent ', 'q') RETURNING o.*, o.id + 1, status
INSERT INTO orders DEFAULT VALUES RETURNING id, status
INSERT INTO orders (id, status) VALUES (1, 'sent') ON CONFLICT DO NOTHING
INSERT INTO orders (id, status, amount) VALUES (1, 'sent', 3) ON CONFLICT (id) DO UPDATE SET status = excluded.status, amount = orders.amount + excluded.amount RETURNING *
INSERT INTO orders (id, status) VALUES (2, 'paid'), (77, 'new') ON CONFLICT (id) DO UPDATE SET status = excluded.status WHERE orders.status <> excluded.status RETURNING orders.*
INSERT INTO orders (status) VALUES ('far too long to fit')
INSERT INTO orders ("größe") VALUES ('wide')
INSERT INTO orders (amount) VALUES ('no number')
INSERT INTO orders (status, amount) VALUES ('x')
INSERT INTO orders (id, status, amount) SELECT order_id + 100, 'paid', qty FROM items WHERE order_id = 9 RETURNING *
INSERT INTO orders SELECT 200, 'sent', 3.5
INSERT INTO orders (status, amount) VALUES ('nonsense', 99999999)
INSERT INTO orders (note, status) VALUES ((SELECT max(sku) FROM items), (SELECT 'paid'))
UPDATE orders SET status = 'paid' WHERE id = 1
UPDATE orders SET status = status, amount = amount, note = 'same'
UPDATE orders SET "Paid?" = 'yes', amount = amount * 1.5 WHERE id IN (2, 3) RETURNING *
UPDATE "orders" AS "O" SET "status" = /*+ hint */ upper("O"."status") -- why not
UPDATE orders o SET amount = i.qty + o.amount, note = i.sku FROM items i WHERE i.order_id = o.id AND i.sku <> 'b' RETURNING *
UPDATE orders SET status = DEFAULT WHERE id = 3 RETURNING status
UPDATE orders SET (status, amount) = ('sent', 4) WHERE id = 2
UPDATE orders SET (status, amount) = (SELECT 'paid', 5) WHERE id = 2 RETURNING orders.*
UPDATE orders SET amount = (SELECT sum(qty) FROM items WHERE order_id = orders.id) WHERE id = 1
UPDATE orders SET amount = CASE WHEN random() < 2 THEN 5.55 END WHERE id = 1
UPDATE orders SET status = 'much too long a value'
UPDATE ONLY orders SET status = 'sent' WHERE status IS DISTINCT FROM 'sent' AND id < 3
UPDATE orders SET amount = NULL, "Paid?" = NULL WHERE id = 3
UPDATE orders SET note = 'untouched' WHERE id = 1 RETURNING row_to_json(orders)
WITH moved AS (UPDATE orders SET status = 'new' WHERE id = 2 RETURNING *), gone AS (DELETE FROM orders WHERE id = 3 RETURNING *) SELECT * FROM moved UNION ALL SELECT * FROM gone
MERGE INTO orders o USING items i ON i.order_id = o.id AND i.sku = 'c' WHEN MATCHED THEN UPDATE SET status = 'paid' WHEN NOT MATCHED AND i.sku = 'd' THEN INSERT VALUES (900, 'new', 1)
DELETE FROM orders USING items WHERE items.order_id = orders.id AND items.sku = 'c' RETURNING *
DELETE FROM orders WHERE id = 77 RETURNING orders.*
SELECT * FROM orders ORDER BY id
SELECT o.*, 1 AS one FROM orders o ORDER BY id DESC LIMIT 2
SELECT *, o.id FROM items i JOIN orders o ON o.id = i.order_id ORDER BY 2, 1
SELECT * FROM orders JOIN (SELECT order_id AS id, sku FROM items) x USING (id) ORDER BY id, sku
SELECT * FROM orders NATURAL JOIN (SELECT order_id AS id, sku FROM items) x ORDER BY id, sku
SELECT row_to_json(o) FROM orders o ORDER BY id
SELECT row_to_json(o), count(*) FROM orders o GROUP BY o.id ORDER BY o.id
SELECT o.*, count(*) FROM orders o LEFT JOIN items ON order_id = o.id GROUP BY o.id ORDER BY o.id
SELECT count(o) FROM orders o
SELECT (o).status, (o).id FROM orders o ORDER BY id
SELECT (o).* FROM orders o ORDER BY id
TABLE orders ORDER BY id
SELECT x.* FROM (SELECT * FROM orders) x ORDER BY id
WITH w AS (SELECT * FROM orders) SELECT * FROM w ORDER BY 1
SELECT * FROM orders WHERE status = 'sent' UNION SELECT * FROM orders ORDER BY id
SELECT EXISTS (SELECT * FROM orders), ARRAY(SELECT status FROM orders ORDER BY id)
SELECT * FROM orders a, orders b WHERE a.id = b.id ORDER BY a.id
SELECT * FROM orders AS o(x, y) ORDER BY x
SELECT * FROM orders ORDER BY id FOR UPDATE SKIP LOCKED
SELECT status AS s, * FROM orders ORDER BY s, id
SELECT id, nothing FROM orders
"""  # noqa: E501

NEW_STATEMENTS = """
INSERT INTO orders (state, cents, paid) VALUES ('new', 1235, true)
INSERT INTO orders VALUES (DEFAULT, 'paid', 100, false, 'ünïcödé', 'ab', '2020-01-01Z'), (DEFAULT, DEFAULT, 250, NULL, 'x', NULL, NULL)
INSERT INTO orders (cents) VALUES (7) RETURNING *
INSERT INTO public.orders AS o (state, note) VALUES ('sent', 'q') RETURNING o.*, o.id + 1, state, o.state, upper(state::text), state::text
INSERT INTO orders DEFAULT VALUES RETURNING id, state, paid
INSERT INTO orders (id, state) VALUES (1, 'sent') ON CONFLICT DO NOTHING
INSERT INTO orders (id, state, cents) VALUES (1, 'sent', 3) ON CONFLICT (id) DO UPDATE SET state = excluded.state, cents = orders.cents + excluded.cents RETURNING *
INSERT INTO orders (id, state) VALUES (2, 'paid'), (77, 'new') ON CONFLICT (id) DO UPDATE SET state = excluded.state WHERE orders.state <> excluded.state RETURNING orders.*
INSERT INTO orders (state) VALUES ('nonsense')
INSERT INTO orders (cents) VALUES ('no number')
INSERT INTO orders (state, cents) VALUES ('new')
INSERT INTO orders (id, state, cents) SELECT order_id + 100, 'paid', qty FROM items WHERE order_id = 9 RETURNING *
INSERT INTO orders SELECT 200, 'sent', 350, true, 'n', 'g', '2021-01-01Z'
INSERT INTO orders (id, state) SELECT 201, 'sent'::order_state UNION ALL (SELECT 202, 'new' ORDER BY 1)
INSERT INTO orders (note, state) VALUES ((SELECT max(sku) FROM items), (SELECT 'paid'::order_state))
UPDATE orders SET state = 'paid' WHERE id = 1
UPDATE orders SET state = state, cents = cents, note = 'same'
UPDATE orders SET paid = true, cents = cents * 2 WHERE id IN (2, 3) RETURNING *
UPDATE orders SET paid = NOT paid OR cents > 5 WHERE state = 'new' OR orders.cents < 50
UPDATE "orders" AS "O" SET "state" = /*+ hint */ "O"."state" -- why not
UPDATE orders o SET cents = i.qty + o.cents, note = i.sku FROM items i WHERE i.order_id = o.id AND i.sku <> 'b' RETURNING *
UPDATE orders SET state = DEFAULT, paid = DEFAULT WHERE id = 3 RETURNING state
UPDATE orders SET (state, cents) = ('sent', 4) WHERE id = 2
UPDATE orders SET (state, cents) = (SELECT 'paid'::order_state, 5) WHERE id = 2 RETURNING orders.*
UPDATE orders SET cents = (SELECT sum(qty) FROM items WHERE order_id = orders.id) WHERE id = 1
UPDATE orders SET cents = CASE WHEN random() < 2 THEN 5 END WHERE id = 1
UPDATE ONLY orders SET state = 'sent' WHERE state IS DISTINCT FROM 'sent' AND id < 3
UPDATE orders SET cents = NULL, paid = NULL WHERE id = 3
UPDATE orders SET note = 'untouched' WHERE id = 1 RETURNING row_to_json(orders)
UPDATE orders SET note = x.s FROM (SELECT id AS i, state::text AS s FROM orders) x WHERE x.i = orders.id AND state = 'sent' RETURNING note
UPDATE orders SET status = 'paid'
UPDATE orders SET note = status
DELETE FROM orders WHERE status = 'x'
SELECT status FROM orders
SELECT o.status FROM orders o
INSERT INTO orders (status) VALUES ('paid')
INSERT INTO orders (id) VALUES (1) RETURNING status
WITH moved AS (UPDATE orders SET state = 'new' WHERE id = 2 RETURNING *), gone AS (DELETE FROM orders WHERE state = 'sent' RETURNING *) SELECT * FROM moved UNION ALL SELECT * FROM gone ORDER BY 1
DELETE FROM orders USING items WHERE items.order_id = orders.id AND items.sku = 'c' AND orders.state <> 'unknown' RETURNING *
DELETE FROM orders WHERE id = 77 RETURNING orders.*
SELECT * FROM orders ORDER BY id
SELECT o.*, 1 AS one FROM orders o WHERE o.state = 'new' ORDER BY id DESC LIMIT 2
SELECT *, o.id FROM items i JOIN orders o ON o.id = i.order_id ORDER BY 2, 1
SELECT * FROM orders JOIN (SELECT order_id AS id, sku FROM items) x USING (id) ORDER BY id, sku
SELECT * FROM orders NATURAL JOIN (SELECT order_id AS id, sku FROM items) x ORDER BY id, sku
SELECT row_to_json(o) FROM orders o ORDER BY id
SELECT o.*, count(*) FROM orders o LEFT JOIN items ON order_id = o.id GROUP BY o.id ORDER BY o.id
SELECT o.id, o.state, max(sku) FROM orders o LEFT JOIN items ON order_id = o.id GROUP BY 1 HAVING count(o.cents) >= 0 ORDER BY o.id
SELECT state, sum(cents) FROM orders GROUP BY state ORDER BY state
SELECT count(o) FROM orders o
SELECT (o).state, (o).id FROM orders o ORDER BY id
SELECT (o).* FROM orders o ORDER BY id
TABLE orders ORDER BY id
SELECT x.* FROM (SELECT * FROM orders) x ORDER BY id
WITH w AS (SELECT * FROM orders) SELECT * FROM w ORDER BY 1
SELECT * FROM orders WHERE state = 'sent' UNION SELECT * FROM orders ORDER BY id
SELECT EXISTS (SELECT * FROM orders), ARRAY(SELECT state FROM orders ORDER BY id)
SELECT * FROM orders a, orders b WHERE a.id = b.id ORDER BY a.id
SELECT * FROM orders AS o(x, y) ORDER BY x
SELECT * FROM orders ORDER BY id FOR UPDATE SKIP LOCKED
SELECT id FROM orders o ORDER BY id FOR NO KEY UPDATE OF o
SELECT o.state, i.* FROM orders o LEFT JOIN LATERAL (SELECT sku FROM items WHERE order_id = o.id AND o.cents > 0 ORDER BY sku LIMIT 1) i ON true ORDER BY o.id
SELECT (SELECT max(state) FROM orders x WHERE x.id <= o.id) FROM orders o ORDER BY id
SELECT state AS s, * FROM orders ORDER BY s, id
SELECT tableoid = 'orders'::regclass AS mine, * FROM orders ORDER BY id
SELECT orders.ctid IS NOT NULL, orders.* FROM orders ORDER BY id
"""  # noqa: E501


async def test_an_old_speaker_sees_a_plain_table_of_the_old_version(old: Pair) -> None:
    reasons = {(await old.run(sql)).reason for sql in statements(OLD_STATEMENTS)}
    assert {"dual_write", "expand_star"} <= reasons
    assert not any(reason.startswith("guard") for reason in reasons)


async def test_a_new_speaker_sees_a_plain_table_of_the_new_version(new: Pair) -> None:
    reasons = {(await new.run(sql)).reason for sql in statements(NEW_STATEMENTS)}
    assert {"dual_write", "translated", "refused_undefined_column"} <= reasons


async def test_parameters_keep_their_types_and_values(old: Pair) -> None:
    await old.run('INSERT INTO orders (status, amount, "größe") VALUES ($1, $2, $3)', "paid", 5, "é")
    await old.run("INSERT INTO orders VALUES ($1, $2), ($3, $4) RETURNING *", 50, "new", 51, "sent")
    await old.run("UPDATE orders SET status = $1, amount = amount + $2 WHERE id = $3", "sent", 2, 50)
    await old.run(
        "INSERT INTO orders (id, status) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET status = $2 RETURNING *",
        50,
        "new",
    )
    await old.run("UPDATE orders SET status = coalesce($1, status), note = $2 WHERE id = 50", None, "n")


async def test_parameters_of_new_speakers_keep_their_types_and_values(new: Pair) -> None:
    await new.run('INSERT INTO orders (state, cents, "größe") VALUES ($1, $2, $3)', "paid", 5, "é")
    await new.run("UPDATE orders SET state = $1, cents = cents + $2 WHERE state = $3", "sent", 2, "paid")
    await new.run("UPDATE orders o SET paid = $1 WHERE o.paid IS NOT TRUE RETURNING o.paid, paid", True)
    await new.run("SELECT * FROM orders WHERE state = $1 AND cents > $2 ORDER BY id LIMIT $3", "sent", 1, 1)


async def test_saving_an_unchanged_column_keeps_what_only_the_new_shape_can_hold(old: Pair) -> None:
    await old.run("INSERT INTO orders (id, status, amount) VALUES (1, 'paid', 1)")
    connection = old.migrated
    await connection.execute(
        "SET session_replication_role = replica;"
        "UPDATE orders SET status = 'unknown', _dualwire_new_state = 'unknown', _dualwire_mark = 3;"
        "UPDATE orders SET _dualwire_new_cents = 101, amount = 1.01, \"Paid?\" = 'no';"
        "RESET session_replication_role"
    )
    plan = old.planner.plan(b"UPDATE orders SET status = status, amount = 1.01, note = 'saved'")
    await connection.execute(plan.text.decode())
    row = await connection.fetchrow("SELECT * FROM orders")
    assert (row["_dualwire_mark"], row["_dualwire_new_cents"], row["note"]) == (3, 101, "saved")


async def test_every_write_toggles_the_mark(old: Pair) -> None:
    await old.run("INSERT INTO orders (id, status) VALUES (1, 'new')")
    marks = []
    for status in ("paid", "sent", "nonsense", "new"):
        await old.run(f"UPDATE orders SET status = '{status}' WHERE id = 1")
        marks.append(await old.migrated.fetchval("SELECT _dualwire_mark FROM orders"))
    assert marks == [2, 1, None, 1]


async def test_after_the_swap_the_order_of_columns_stays_that_of_the_version(database: Any) -> None:
    database.sql(SWAPPED + REFERENCE_NEW + ITEMS.format(schema="public") + ITEMS.format(schema="plain"))
    planner = Planner([COMPLETED], "old")
    async with database.connection() as swapped, database.connection() as plain:
        await plain.execute("SET search_path = plain, public")
        for sql in statements(NEW_STATEMENTS):
            plan = planner.plan(sql.encode())
            assert plan.refusal is None, plan.refusal
            assert (plan.mirrored, plan.guarded) == (False, False)
            expected = await outcome(plain, sql.replace("public.orders", "plain.orders"))
            assert await outcome(swapped, plan.text.decode()) == expected, plan.text.decode()
    copied = planner.plan(b"COPY orders FROM STDIN (FORMAT csv)").text.decode()
    assert copied == (
        'COPY orders ("id", "state", "cents", "paid", "note", "größe", "created") FROM STDIN (FORMAT csv)'
    )


async def test_without_dual_writes_the_guard_carries_everything_over(new: Pair) -> None:
    new.planner = Planner([ORDERS], "new", dual_write=False)
    for sql in statements(NEW_STATEMENTS):
        plan = await new.run(sql)
        assert not plan.mirrored


async def test_the_fallback_of_a_mirrored_statement_does_the_same(old: Pair) -> None:
    for sql in statements(OLD_STATEMENTS)[:20]:
        plan = old.planner.plan(sql.encode())
        text = plan.fallback.text if plan.fallback is not None else plan.text
        expected = await outcome(old.plain, sql.replace("public.orders", "plain.orders"))
        assert await outcome(old.migrated, text.decode()) == expected
        await old.check()


async def test_copy_gives_and_takes_the_columns_of_the_version(old: Pair, database: Any) -> None:
    await old.run("INSERT INTO orders (id, status, amount) VALUES (1, 'paid', 1)")
    planned = old.planner.plan(b"COPY orders TO STDOUT (FORMAT csv, HEADER)").text.decode()
    assert database.sql(planned) == database.sql("COPY plain.orders TO STDOUT (FORMAT csv, HEADER)")
    planner = Planner([ORDERS], "new")
    shown = database.sql(planner.plan(b"COPY orders TO STDOUT (FORMAT csv, HEADER)").text.decode())
    assert shown.splitlines() == ["id,state,cents,paid,note,größe,created", "1,paid,100,f,,,"]


def sentence(rng: random.Random, side: Side) -> str:
    """A random write in the words of one version."""
    if side == "old":
        cells = {
            "status": [
                "'new'",
                "'PAID'",
                "' sent'",
                "'odd'",
                "NULL",
                "lower('SENT')",
                "'too long for it'",
                "random()::varchar(3)",
            ],
            "amount": ["1", "2.345", "NULL", "10 / 4.0", "'7.5'", "99999999.99", "1e9", "coalesce(NULL, 3)"],
            '"Paid?"': ["'yes'", "'no'", "NULL", "'y' || ''", "U&'yes'", "E'n\\x6f'"],
            "note": ["'a'", "$$b$$", "'é'", "NULL", "(SELECT 'q')"],
        }
    else:
        cells = {
            "state": [
                "'new'",
                "'paid'",
                "'sent'",
                "'odd'",
                "NULL",
                "'unknown'",
                "coalesce(NULL, 'paid')::order_state",
            ],
            "cents": [
                "1",
                "2.5",
                "NULL",
                "'7'",
                "99999",
                "1e5",
                "greatest(1, 2)",
                "(SELECT 3)",
                "ceil(random())",
            ],
            "paid": ["true", "false", "NULL", "'t'", "1 < 2", "1 IS DISTINCT FROM 2"],
            "note": ["'a'", "$$b$$", "'é'", "NULL", "(SELECT 'q')"],
        }
    names = rng.sample(sorted(cells), rng.randint(1, 4))
    key = rng.randint(1, 12)
    table = rng.choice(["orders", '"orders"', "public.orders"])
    ending = rng.choice(["", " RETURNING *", " RETURNING id, " + names[0], " RETURNING orders.*"])
    if rng.random() < 0.5:
        rows = ", ".join(
            "(" + ", ".join([str(key + at), *(rng.choice([*cells[name], "DEFAULT"]) for name in names)]) + ")"
            for at in range(rng.randint(1, 3))
        )
        sets = ", ".join(f"{name} = excluded.{name}" for name in names)
        conflict = rng.choice(
            [
                " ON CONFLICT DO NOTHING",
                f" ON CONFLICT (id) DO UPDATE SET {sets}",
                " ON CONFLICT (id) DO NOTHING",
            ]
        )
        if rng.random() < 0.4:
            leaves = [
                f"SELECT {key + at}, {', '.join(rng.choice(cells[name]) for name in names)}"
                for at in range(rng.randint(1, 2))
            ]
            tail = rng.choice(["", " ORDER BY 1 DESC", " LIMIT 1"])
            rows = f"{rng.choice([' UNION ALL ', ' EXCEPT ']).join(leaves)}{tail}"
            return f"INSERT INTO {table} (id, {', '.join(names)}) {rows}{conflict}{ending}"
        return f"INSERT INTO {table} (id, {', '.join(names)}) VALUES {rows}{conflict}{ending}"
    sets = ", ".join(f"{name} = {rng.choice([*cells[name], name, 'DEFAULT'])}" for name in names)
    return f"UPDATE {table} SET {sets} WHERE id = {key}{ending}"


def _comparable(sql: str) -> bool:
    return "random()::varchar" not in sql


@pytest.mark.parametrize("seed", range(3))
async def test_random_writes_of_old_speakers(old: Pair, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(120):
        sql = sentence(rng, "old")
        if _comparable(sql):
            await old.run(sql)


@pytest.mark.parametrize("seed", range(3))
async def test_random_writes_of_new_speakers(new: Pair, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(120):
        await new.run(sentence(rng, "new"))
