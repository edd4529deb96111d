"""Virtual columns and other relations in statements of every other kind, with parameters, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pairs import statements
from virtuals import AFTER_FLIP, BEFORE_FLIP, ORDERS, SCHEMA, VirtualPair, accounts_schema

from proxy.rewrite.model import TableModel
from proxy.rewrite.planner import Planner


@pytest.fixture
def orders(database: Any) -> Iterator[VirtualPair]:
    database.sql(SCHEMA)
    pair = VirtualPair(database.dsn, ORDERS, "old")
    yield pair
    pair.close()


@pytest.fixture
def accounts(database: Any) -> Iterator[VirtualPair]:
    database.sql(accounts_schema("old"))
    pair = VirtualPair(database.dsn, AFTER_FLIP, "old")
    yield pair
    pair.close()


def planned(model: TableModel, text: str) -> str:
    plan = Planner([model], "old").plan(text.encode())
    assert plan.refusal is None, plan.refusal
    return plan.text.decode()


def refusal(model: TableModel, text: str) -> Any:
    found = Planner([model], "old").plan(text.encode()).refusal
    assert found is not None, text
    return found


def test_parameters_keep_their_types_and_values(orders: VirtualPair) -> None:
    run = orders.run
    run(
        "INSERT INTO orders (status, amount, first, code, kind) VALUES ($1, $2, $3, $4, $5)",
        *["paid", "5", "x", "abc", "gift"],
    )
    run("INSERT INTO orders VALUES ($1, $2), ($3, $4) RETURNING *", "50", "new", "51", "sent")
    run("INSERT INTO orders (status, place) SELECT $1, $2 RETURNING status, place", "paid", "a,b")
    run("INSERT INTO orders (place) VALUES ($1 || ',1'), ($2) RETURNING place", "Oslo", "Bonn")
    run(
        "UPDATE orders SET status = $1, amount = amount + $2, first = $3 WHERE id = $4 RETURNING *",
        "sent",
        "2",
        None,
        "1",
    )
    run("UPDATE orders SET place = $1 || random()::int * 0 WHERE code = $2 RETURNING place", "p", "abc")
    run(
        "UPDATE orders SET (status, place) = ($1, $2) WHERE status = $3 AND code = $4",
        "new",
        "q",
        "sent",
        "abc",
    )
    run(
        "INSERT INTO orders (id, status) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET status = $2 RETURNING *",
        "50",
        "paid",
    )
    run(
        "SELECT * FROM orders WHERE code = $1 OR code = ANY ($2) OR status LIKE $3 ORDER BY id",
        "abc",
        "{x}",
        "p%",
    )
    run("INSERT INTO orders (code) VALUES ($1)", "wide")
    run("DELETE FROM orders WHERE amount > $1 AND $2 = kind", "1", "gift")


def test_what_changes_is_evaluated_as_often_as_it_was(orders: VirtualPair) -> None:
    orders.run("INSERT INTO orders (id, place) VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    for connection in (orders.migrated, orders.plain):
        connection.execute("CREATE TEMP SEQUENCE counted")
    place = "'x,' || nextval('counted')"
    orders.run(f"UPDATE orders SET place = {place}")
    orders.run(
        f"UPDATE orders SET (place, amount) = ({place}, nextval('counted')) WHERE id > 1 RETURNING place, amount"
    )
    orders.run(f"UPDATE orders SET (place, note) = (SELECT {place}, 'n') RETURNING place")
    orders.run(f"UPDATE orders SET (place, note) = (SELECT {place}, orders.note) RETURNING place")
    orders.run(
        f"UPDATE orders SET (place, note) = (SELECT {place}, 'n'), first = lpad('q', 1 + (random() * 0)::int)"
    )
    orders.run("UPDATE orders SET place = count(*)")
    orders.run("UPDATE orders SET place = generate_series(1, 2)::text")
    orders.run("UPDATE orders SET (place, note) = (SELECT sku, sku FROM items)")


def test_only_real_changes_reach_the_columns_that_the_table_has(orders: VirtualPair) -> None:
    orders.run("INSERT INTO orders (id, first, last, amount) VALUES (1, 'Ada', 'L', 5)")
    orders.migrated.execute("UPDATE orders SET name = 'Ada L of London', cents = 501")
    text = orders.planner.plan(
        b"UPDATE orders SET first = 'Ada', last = last, amount = 5.01, note = 'saved'"
    ).text
    orders.migrated.execute(text)
    assert orders.migrated.execute("SELECT name, cents, note FROM orders").fetchone() == (
        "Ada L of London",
        501,
        "saved",
    )


def test_a_value_that_nothing_in_the_table_holds_is_refused(orders: VirtualPair) -> None:
    for text in (
        "INSERT INTO orders (legacy) VALUES ('abc')",
        "INSERT INTO orders (legacy) SELECT 'abc'",
        "UPDATE orders SET legacy = 'x'",
        "UPDATE orders SET (legacy, note) = ('x', 'y')",
        "UPDATE orders SET (legacy, note) = (SELECT 'x', 'y')",
    ):
        assert refusal(ORDERS, text).sqlstate == "0A000"
    orders.run("INSERT INTO orders (legacy, note) VALUES (DEFAULT, 'n')")
    orders.run("INSERT INTO orders (legacy) VALUES (DEFAULT)")


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO orders (status) VALUES ('new') ON CONFLICT (status) DO NOTHING",
        "INSERT INTO orders (status) VALUES ('new') ON CONFLICT (lower(status)) DO NOTHING",
        "UPDATE orders SET status[1] = 'x'",
        "MERGE INTO orders o USING items i ON o.id = i.order_id WHEN NOT MATCHED THEN INSERT (place) VALUES (many(1))",
        "MERGE INTO orders o USING items i ON true WHEN MATCHED AND o.id = 1 THEN UPDATE SET place = many(1)"
        " WHEN MATCHED THEN UPDATE SET place = many(2)",
        "COPY orders FROM STDIN",
        "DO $$ BEGIN UPDATE orders SET status = 'new'; END $$",
        "ALTER TABLE orders ADD COLUMN x integer",
        "CREATE VIEW v AS SELECT * FROM orders",
    ],
)
def test_what_has_no_translation_is_refused(text: str) -> None:
    assert refusal(ORDERS, text).sqlstate == "0A000"


MERGES = """
INSERT INTO orders (id, status, place, first) VALUES (1, 'new', 'Rome,1', 'Ada'), (2, 'paid', 'Oslo', NULL), (3, 'sent', NULL, 'B')
MERGE INTO orders o USING items i ON o.id = i.order_id AND i.sku <> 'b' WHEN MATCHED AND o.status = 'new' THEN UPDATE SET status = 'paid', amount = i.qty, note = o.place WHEN MATCHED THEN UPDATE SET first = CASE WHEN o.first IS NULL THEN i.sku ELSE 'z' END, last = 'L' WHEN NOT MATCHED AND i.sku = 'd' THEN INSERT (id, status, place) VALUES (i.order_id, 'sent', i.sku || ',9')
MERGE INTO public.orders USING (SELECT 90 AS n) x ON id = n WHEN NOT MATCHED THEN INSERT VALUES (n, 'new', 4.5, 'q', DEFAULT, 'r') RETURNING merge_action(), orders.*
MERGE INTO orders USING (SELECT 91 AS n) x ON id = n WHEN NOT MATCHED THEN INSERT DEFAULT VALUES RETURNING id, status
MERGE INTO orders o USING items i ON o.id = i.order_id WHEN NOT MATCHED BY SOURCE AND o.status = 'sent' THEN DELETE WHEN NOT MATCHED BY SOURCE THEN UPDATE SET place = many(o.id::int), amount = 1
MERGE INTO orders o USING items i ON o.id = i.order_id AND i.sku = 'c' WHEN MATCHED THEN UPDATE SET (first, note) = (SELECT max(sku), 'sub' FROM items WHERE order_id = o.id), amount = 3 RETURNING o.first, o.amount, note
MERGE INTO orders o USING items i ON o.code = i.sku WHEN NOT MATCHED AND i.sku = 'c' THEN INSERT (code, kind) VALUES (i.sku, 'gift') RETURNING code, kind
MERGE INTO orders o USING items i ON o.code = i.sku WHEN MATCHED THEN UPDATE SET code = upper(o.code), status = DEFAULT RETURNING o.code, old.code, status
MERGE INTO orders o USING items i ON o.code = i.sku WHEN MATCHED THEN UPDATE SET cents = 1
"""  # noqa: E501


def test_merge_writes_virtual_columns(orders: VirtualPair) -> None:
    for text in statements(MERGES):
        orders.run(text)


def test_merge_into_another_relation(accounts: VirtualPair) -> None:
    for text in (
        "INSERT INTO accounts (name, balance) VALUES ('ann', 1), ('bob', 2)",
        "MERGE INTO accounts a USING owners o ON a.id = o.account_id AND o.owner <> 'cy' WHEN MATCHED THEN UPDATE SET"
        " kind = o.owner, balance = balance + 1 WHEN NOT MATCHED AND owner = 'dot' THEN INSERT (id, name) VALUES"
        " (account_id, owner) RETURNING a.*",
        "MERGE INTO accounts USING owners ON id = account_id AND owner = 'dot' WHEN MATCHED THEN DELETE RETURNING id",
        "MERGE INTO accounts USING accounts AS x ON accounts.id = x.id + 1 WHEN MATCHED THEN UPDATE SET id = x.id + 70",
    ):
        accounts.run(text)


def test_statements_around_others(accounts: VirtualPair) -> None:
    accounts.run("INSERT INTO accounts (name, balance) VALUES ('ann', 1), ('bob', 2), ('cy', 3)")
    for text in (
        "BEGIN",
        "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM accounts WHERE id > 1 ORDER BY id",
        "FETCH 1 FROM c",
        "DECLARE d CURSOR FOR SELECT * FROM accounts WHERE id = 2 FOR UPDATE",
        "FETCH 1 FROM d",
        "UPDATE accounts SET balance = 7 WHERE CURRENT OF d RETURNING *",
        "LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE",
        "COMMIT",
        "FETCH ALL FROM c",
        "PREPARE p (integer) AS SELECT * FROM accounts WHERE id = $1",
        "EXECUTE p (2)",
        "PREPARE w AS UPDATE accounts SET balance = $1 WHERE id = $2 RETURNING *",
        "EXECUTE w (9, 3)",
        "PREPARE i AS INSERT INTO accounts (name, balance) VALUES ($1, $2) RETURNING id, balance",
        "EXECUTE i ('dot', 4)",
        "CREATE TEMP TABLE kept AS SELECT * FROM accounts WHERE id = 1",
        "SELECT *, pg_typeof(id) FROM kept",
        "SELECT * INTO TEMP kept2 FROM accounts",
        "VACUUM accounts",
        "ANALYZE public.accounts",
        "TRUNCATE ONLY accounts",
        "SELECT count(*) FROM accounts",
    ):
        accounts.run(text)


def test_copy_takes_the_rows_from_the_other_relation(accounts: VirtualPair, database: Any) -> None:
    accounts.run("INSERT INTO accounts (name, balance) VALUES ('ann', 1), ('bob', 2)")
    for text in (
        "COPY accounts TO STDOUT (HEADER)",
        "COPY public.accounts (balance, id) TO STDOUT CSV HEADER",
    ):
        plain = text.replace("public.", "").replace("accounts", "plain.accounts")
        assert database.sql(planned(AFTER_FLIP, text)) == database.sql(plain)


def test_rows_of_copy_go_through_the_versions_view() -> None:
    model = replace(AFTER_FLIP, copy_old=("dualwire", "copy_accounts"))
    assert planned(model, "COPY accounts FROM STDIN (FORMAT binary)") == (
        'COPY "dualwire"."copy_accounts" ("id", "name", "balance", "kind") FROM STDIN (FORMAT binary)'
    )
    assert planned(model, "COPY public.accounts (name, id) FROM STDIN WHERE id > 1") == (
        'COPY "dualwire"."copy_accounts" (name, id) FROM STDIN WHERE id > 1'
    )


def test_what_cannot_be_about_another_relation_is_refused() -> None:
    for text in (
        "COMMENT ON TABLE accounts IS 'x'",
        "GRANT SELECT ON accounts TO public",
        "CREATE TABLE t (a integer REFERENCES accounts)",
        "CREATE TRIGGER t AFTER INSERT ON accounts EXECUTE FUNCTION f()",
    ):
        assert refusal(AFTER_FLIP, text).sqlstate == "0A000"


def test_the_text_over_twins_differs_in_the_tables_only() -> None:
    def twin(text: str, model: TableModel = AFTER_FLIP) -> str | None:
        found = Planner([model], "old").plan(text.encode()).twin
        return None if found is None else found.decode()

    named = '"dualwire"."twin_accounts"'
    assert twin(
        "SELECT public.accounts.id, a.* FROM public.accounts, accounts a /* c */ WHERE a.id = $1"
    ) == (f'SELECT accounts.id, a.* FROM {named} AS "accounts", {named} a /* c */ WHERE a.id = $1')
    assert twin("TABLE accounts") == f"TABLE {named}"
    assert twin("SELECT * FROM ONLY (accounts) TABLESAMPLE system (1)") == (
        f'SELECT * FROM ONLY ({named}) AS "accounts" TABLESAMPLE system (1)'
    )
    assert twin("INSERT INTO accounts AS x VALUES (1) RETURNING x.id") == (
        f"INSERT INTO {named} AS x VALUES (1) RETURNING x.id"
    )
    assert twin("UPDATE public.accounts * SET name = $1 RETURNING public.accounts.*") == (
        f'UPDATE {named} * AS "accounts" SET name = $1 RETURNING accounts.*'
    )
    assert twin("WITH accounts AS (SELECT 1 AS id) SELECT * FROM accounts, public.accounts b") == (
        f"WITH accounts AS (SELECT 1 AS id) SELECT * FROM accounts, {named} b"
    )
    assert twin("EXPLAIN SELECT * FROM accounts") is None
    assert twin("SELECT 1 FROM owners") is None
    assert twin("SELECT * FROM accounts", BEFORE_FLIP) is None
