"""The examples of docs/rewriting.md: every kind of statement, as each version says it.

What becomes of an example is not written here: it is asked of the planner, and where it stands in the document follows
from that. An example whose outcome changes moves by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.rewrite.reasons import Reason
from tests.docs.example import (
    NEW,
    NEW_OF_REPLACED,
    OLD,
    OLD_GONE,
    OLD_SWITCHED_OFF,
    OLD_TRIGGERED,
    OLD_UNGUARDED,
    State,
)


@dataclass(frozen=True)
class Example:
    """One statement of a client."""

    kind: str
    sql: str
    state: State
    search_path: tuple[str, ...] = ("public",)


def _examples(state: State, **statements: str | tuple[str, ...]) -> tuple[Example, ...]:
    return tuple(
        Example(kind.replace("_", " "), sql, state)
        for kind, listed in statements.items()
        for sql in ((listed,) if isinstance(listed, str) else listed)
    )


EXAMPLES: tuple[Example, ...] = (
    *_examples(
        OLD,
        INSERT=(
            "INSERT INTO orders (id, status, note) VALUES ($1, $2, $3) RETURNING *",
            "INSERT INTO orders VALUES (1, 0, 'ann', NULL), (2, 1, 'bob', NULL)",
        ),
        INSERT_of_a_volatile_value="INSERT INTO orders (id, status) VALUES (1, floor(random() * 3))",
        INSERT_of_a_query="INSERT INTO orders (id, status) SELECT id, 0 FROM customers WHERE email = $1",
        INSERT_ON_CONFLICT="INSERT INTO orders (id, status) VALUES (1, 0)"
        " ON CONFLICT (id) DO UPDATE SET status = excluded.status",
        INSERT_DEFAULT_VALUES="INSERT INTO orders DEFAULT VALUES",
        UPDATE=(
            "UPDATE orders SET status = $1 WHERE id = $2",
            "UPDATE orders AS o SET status = o.status + 1 FROM customers AS c WHERE c.email = o.customer",
            "UPDATE orders SET note = 'seen' WHERE status = 1",
        ),
        UPDATE_to_a_volatile_value="UPDATE orders SET status = floor(random() * 3)",
        UPDATE_of_several_columns_at_once="UPDATE orders SET (status, note) = (SELECT 1, 'x')",
        UPDATE_of_a_part_of_a_column="UPDATE tickets SET tags[1] = 'urgent' WHERE id = 1",
        INSERT_with_a_volatile_default="INSERT INTO tickets (id, tags) VALUES (1, '{}')",
        INSERT_into_a_table_with_an_identity_column="INSERT INTO visits (page) VALUES ('home')",
        INSERT_of_a_part_of_a_column="INSERT INTO tickets (id, tags[1]) VALUES (1, 'urgent')",
        INSERT_of_a_query_whose_columns_are_not_known="INSERT INTO orders SELECT * FROM incoming",
        INSERT_of_a_composite_value="INSERT INTO orders VALUES (($1::orders).*)",
        DELETE="DELETE FROM orders WHERE status = 2 RETURNING *",
        TRUNCATE="TRUNCATE orders",
        MERGE="MERGE INTO orders USING customers AS c ON c.email = orders.customer"
        " WHEN MATCHED THEN UPDATE SET status = 1",
        MERGE_that_inserts_a_volatile_value="MERGE INTO orders AS o USING customers AS c ON c.id = o.id"
        " WHEN NOT MATCHED THEN INSERT (id, status) VALUES (c.id, floor(random() * 3))",
        MERGE_with_a_volatile_default="MERGE INTO tickets AS t USING customers AS c ON c.id = t.id"
        " WHEN NOT MATCHED THEN INSERT (id) VALUES (c.id)",
        UPDATE_from_a_composite_value="UPDATE orders SET (status, note) = ROW(incoming.*) FROM incoming",
        INSERT_of_columns_that_cannot_be_counted="INSERT INTO orders SELECT a.*, b.*, NULL FROM a, b",
        SELECT=("SELECT * FROM orders WHERE status = 1", "SELECT id, status FROM orders"),
        SELECT_of_whole_rows="SELECT orders FROM orders",
        SELECT_FOR_UPDATE="SELECT * FROM orders WHERE id = 1 FOR UPDATE",
        COPY_FROM="COPY orders FROM STDIN",
        COPY_FROM_into_a_table_without_a_view="COPY tickets FROM STDIN",
        COPY_TO="COPY orders TO STDOUT",
        WITH="WITH changed AS (UPDATE orders SET status = 1 RETURNING *) SELECT count(*) FROM changed",
        PREPARE="PREPARE one AS UPDATE orders SET status = $1 WHERE id = $2",
        DO="DO $$ BEGIN UPDATE orders SET status = 1; END $$",
        EXPLAIN="EXPLAIN UPDATE orders SET status = 1",
        CREATE_TABLE_AS="CREATE TABLE archive AS SELECT * FROM orders",
        DECLARE="DECLARE c CURSOR FOR SELECT * FROM orders",
        LOCK="LOCK TABLE orders IN SHARE MODE",
        a_table_that_is_not_migrated="UPDATE others SET a = 1",
        a_text_that_does_not_parse="UPDATE orders SET",
        several_statements="SELECT 1; UPDATE orders SET status = 1; DELETE FROM orders WHERE id = 9",
        DDL_on_the_table=(
            "ALTER TABLE orders ADD COLUMN extra int",
            "CREATE INDEX ON orders (note)",
            "DROP TABLE orders",
        ),
    ),
    *_examples(
        NEW,
        INSERT=(
            "INSERT INTO orders (id, state, buyer) VALUES ($1, $2, $3) RETURNING *",
            "INSERT INTO orders VALUES (1, 'new', 'ann', NULL)",
        ),
        INSERT_of_a_query="INSERT INTO orders (id, state) SELECT id, 'new' FROM customers WHERE mail = $1",
        INSERT_ON_CONFLICT="INSERT INTO orders (id, state) VALUES (1, 'new')"
        " ON CONFLICT (id) DO UPDATE SET state = excluded.state",
        UPDATE=(
            "UPDATE orders SET state = $1 WHERE buyer = $2",
            "UPDATE orders AS o SET state = 'paid' FROM customers AS c WHERE c.mail = o.buyer",
        ),
        UPDATE_to_a_volatile_value="UPDATE orders SET state = 's' || floor(random() * 3)",
        DELETE="DELETE FROM orders WHERE state = 'sent' RETURNING *",
        MERGE="MERGE INTO orders USING customers AS c ON c.mail = orders.buyer"
        " WHEN MATCHED THEN UPDATE SET state = 'paid'",
        SELECT=(
            "SELECT * FROM orders WHERE state = 'new'",
            "SELECT o.state, c.mail FROM orders AS o JOIN customers AS c ON c.mail = o.buyer",
        ),
        SELECT_GROUP_BY="SELECT o.*, count(*) FROM orders AS o JOIN customers AS c ON c.mail = o.buyer GROUP BY o.id",
        SELECT_of_system_columns="SELECT ctid, xmin, * FROM orders",
        SELECT_of_whole_rows="SELECT orders FROM orders",
        SELECT_TABLESAMPLE="SELECT id FROM orders TABLESAMPLE system (10)",
        SELECT_FOR_UPDATE="SELECT * FROM orders AS o WHERE id = 1 FOR UPDATE OF o",
        UPDATE_of_a_column_of_the_old_version="UPDATE orders SET status = 1",
        COPY_FROM="COPY orders (id, state) FROM STDIN",
        COPY_TO="COPY orders TO STDOUT (HEADER)",
        PREPARE="PREPARE one AS SELECT * FROM orders WHERE state = $1",
        a_field_of_a_whole_row="DELETE FROM orders WHERE (orders).state = 'new'",
        names_that_cannot_be_told_apart="UPDATE orders SET note = 'x' FROM others() AS o WHERE status = 1",
        a_view_of_the_table="CREATE VIEW v AS SELECT * FROM orders",
    ),
    *_examples(
        OLD_GONE,
        INSERT="INSERT INTO orders (id, status) VALUES ($1, $2)",
        UPDATE="UPDATE orders SET status = $1 WHERE status = $2 RETURNING id, status",
        DELETE="DELETE FROM orders WHERE status = 2",
        SELECT="SELECT * FROM orders WHERE status = 1 ORDER BY status",
        COPY_FROM="COPY orders FROM STDIN",
        COPY_TO="COPY orders TO STDOUT",
        UPDATE_of_several_columns_at_once="UPDATE orders SET (status, note) = (SELECT 1, 'x')",
    ),
    *_examples(
        NEW_OF_REPLACED,
        INSERT="INSERT INTO items (id, code) VALUES ($1, $2) RETURNING id",
        UPDATE="UPDATE items SET qty = qty + 1 WHERE id = $1",
        SELECT="SELECT id, qty FROM items WHERE id = 7",
    ),
    *_examples(OLD_SWITCHED_OFF, UPDATE="UPDATE orders SET status = $1 WHERE id = $2"),
    *_examples(OLD_TRIGGERED, UPDATE="UPDATE orders SET status = $1 WHERE id = $2"),
    *_examples(
        OLD_UNGUARDED,
        UPDATE="UPDATE orders SET status = $1 WHERE id = $2",
        UPDATE_from_a_composite_value="UPDATE orders SET (status, note) = ROW(incoming.*) FROM incoming",
    ),
)

ELSEWHERE: Mapping[Reason, str] = {
    Reason.REFUSED_BY_SERVER: "Told by the sidecar after the server was asked.",
    Reason.GUARD_BREAKER: "Told by the sidecar from counting errors.",
    Reason.GUARD_UNPARSED: "An old speaker's text of more than 4 MiB, or nested too deeply, that names the table.",
    Reason.REFUSED_UNPARSED: "The same of a new speaker, whose names would have to be translated.",
    Reason.INTERNAL_ERROR: "None is known.",
}
"""Reasons that no example gives, and why."""
