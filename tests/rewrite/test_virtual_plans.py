"""What stands behind virtual columns is found by its indexes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from virtuals import AFTER_FLIP, accounts_schema, outcome

from proxy.rewrite.planner import Planner

FILLED = """
INSERT INTO dualwire.accounts_new (id, name, total) SELECT n, 'name ' || n, n FROM generate_series(1, 20000) n;
INSERT INTO public.owners SELECT n, 'o' FROM generate_series(1, 20000, 100) n;
CREATE INDEX ON public.owners (account_id);
VACUUM ANALYZE dualwire.accounts_new;
VACUUM ANALYZE public.owners;
"""


@pytest.fixture(scope="module")
def many(cluster: Any) -> Iterator[Any]:
    """A connection to a database with a table of 20,000 rows that replaced one with an integer key."""
    cluster.create_database("virtual_plans")
    try:
        cluster.primary.sql(accounts_schema("old"), database="virtual_plans")
        for statement in FILLED.strip().splitlines():
            cluster.primary.sql(statement, database="virtual_plans")
        with psycopg.connect(cluster.primary.dsn(database="virtual_plans"), autocommit=True) as connection:
            yield connection
    finally:
        cluster.drop_database("virtual_plans")


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM accounts WHERE id = $1",
        "SELECT name FROM public.accounts AS a WHERE a.id = $1",
        "SELECT * FROM accounts WHERE id IN ($1, $2)",
        "SELECT * FROM accounts WHERE id = ANY (ARRAY[$1::integer, 5])",
        "SELECT * FROM accounts WHERE id BETWEEN $1 AND $1 + 10",
        "SELECT * FROM accounts WHERE $1 = id AND name <> ''",
        "SELECT * FROM accounts WHERE id = '77'",
        "SELECT * FROM accounts ORDER BY id LIMIT 3",
        "SELECT id, name FROM accounts ORDER BY 1 DESC LIMIT 3",
        "SELECT id AS key FROM accounts ORDER BY key LIMIT 3",
        "SELECT * FROM accounts WHERE id > $1 ORDER BY id LIMIT 3",
        "SELECT * FROM accounts WHERE (id, name) > ($1, '') ORDER BY id, name LIMIT 3",
        "SELECT a.*, o.owner FROM accounts a JOIN owners o ON o.account_id = a.id WHERE o.account_id = $1",
        "SELECT o.owner FROM owners o, accounts a WHERE a.id = o.account_id AND a.id = $1",
        "SELECT owner FROM owners o WHERE EXISTS (SELECT FROM accounts WHERE id = o.account_id) AND account_id = $1",
        "SELECT a.name FROM accounts a WHERE a.id IN (SELECT account_id FROM owners WHERE account_id < $1)",
        "SELECT owner FROM owners WHERE account_id IN (SELECT a.id FROM accounts a) AND account_id = $1",
        "SELECT owner FROM owners WHERE account_id < $1 AND account_id IN (SELECT id FROM accounts WHERE balance >= 0)",
        "SELECT row_to_json(a) FROM accounts a WHERE a.id = $1",
        "SELECT max(id) FROM accounts",
        "SELECT coalesce(min(a.id), 0) AS least FROM accounts a WHERE a.id > $1",
        "SELECT count(*), max(owner) FROM accounts JOIN owners ON account_id = accounts.id WHERE id = $1 GROUP BY id",
        "SELECT * FROM accounts WHERE id = $1 FOR UPDATE",
        "UPDATE accounts SET balance = balance + 1 WHERE id = $1",
        "UPDATE accounts a SET kind = o.owner FROM owners o WHERE o.account_id = a.id AND o.account_id = $1",
        "DELETE FROM accounts WHERE id = $1 RETURNING *",
        "DELETE FROM accounts USING owners WHERE account_id = id AND accounts.id = $1",
    ],
)
def test_the_index_on_what_stands_behind_a_virtual_column_is_used(many: Any, text: str) -> None:
    plan = Planner([AFTER_FLIP], "old").plan(text.encode())
    assert plan.twin is not None
    _, types = outcome(many, plan.twin.decode(), None, ())
    names = [many.execute("SELECT %s::regtype::text", (oid,)).fetchone()[0] for oid in types]
    declared = f"({', '.join(names)})" if names else ""
    many.execute(f"PREPARE p{declared} AS {plan.text.decode()}".encode())
    try:
        given = f"({', '.join(['77', '88'][: len(names)])})" if names else ""
        explained = "\n".join(row[0] for row in many.execute(f"EXPLAIN EXECUTE p{given}".encode()))
    finally:
        many.execute("DEALLOCATE p")
    assert "accounts_new_pkey" in explained, f"{plan.text.decode()}\n{explained}"
    assert "Seq Scan on accounts_new" not in explained, f"{plan.text.decode()}\n{explained}"
