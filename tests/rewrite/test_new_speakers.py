"""What new speakers' statements become, form by form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from orders import CLOSED
from test_old_speakers import STATUS

from proxy.rewrite.model import TableModel
from proxy.rewrite.plan import Plan
from proxy.rewrite.planner import Planner

DERIVED = '(SELECT "id", "_dualwire_new_state" AS "state", "data" FROM orders)'


def plan(sql: str, table: TableModel = STATUS, dual_write: bool = True) -> Plan:
    return Planner([table], "new", dual_write).plan(sql.encode())


def text(sql: str, table: TableModel = STATUS) -> str:
    return plan(sql, table).text.decode()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM orders", f'SELECT * FROM {DERIVED} AS "orders"'),
        ("SELECT state FROM orders o(a, b)", f"SELECT state FROM {DERIVED} o(a, b)"),
        ("SELECT * FROM ONLY orders AS o", f"SELECT * FROM {DERIVED.replace('FROM', 'FROM ONLY')} AS o"),
        (
            "SELECT public.orders.state FROM public.orders",
            f'SELECT orders.state FROM {DERIVED.replace("FROM ", "FROM public.")} AS "orders"',
        ),
        (
            "SELECT public.orders.* FROM public.orders",
            f'SELECT orders.* FROM {DERIVED.replace("FROM ", "FROM public.")} AS "orders"',
        ),
        ("TABLE orders", f'SELECT * FROM {DERIVED} AS "orders"'),
        (
            "SELECT *, ctid FROM orders o",
            f'SELECT "o"."id", "o"."state", "o"."data", ctid FROM {DERIVED.replace(" FROM", ", ctid FROM")} o',
        ),
        (
            "SELECT 1 FROM orders o TABLESAMPLE system (1) REPEATABLE (2) WHERE true",
            'SELECT 1 FROM (SELECT "id", "_dualwire_new_state" AS "state", "data" FROM orders'
            " TABLESAMPLE system (1) REPEATABLE (2)) o  WHERE true",
        ),
        (
            "SELECT o.id, max(o.state), o.state FROM orders o GROUP BY o.id",
            f'SELECT o.id, max(o.state), o.state FROM {DERIVED} o GROUP BY "o"."state", o.id',
        ),
        ("COPY orders TO STDOUT", f"COPY {DERIVED.replace('FROM', 'FROM ONLY')} TO STDOUT"),
        (
            "COPY orders (state) TO STDOUT",
            'COPY (SELECT "_dualwire_new_state" AS "state" FROM ONLY orders) TO STDOUT',
        ),
        (
            "DELETE FROM orders o WHERE state = 'x' RETURNING *, state, lower(state)",
            'DELETE FROM orders o WHERE "o"."_dualwire_new_state" = \'x\' RETURNING "o"."id",'
            ' "o"."_dualwire_new_state" AS "state", "o"."data", "o"."_dualwire_new_state" AS "state",'
            ' lower("o"."_dualwire_new_state") AS "lower"',
        ),
        (
            "UPDATE orders SET data = '1' WHERE orders.state = 'x'",
            "UPDATE orders SET data = '1' WHERE orders.\"_dualwire_new_state\" = 'x'",
        ),
    ],
)
def test_names_of_the_version_become_physical_ones(sql: str, expected: str) -> None:
    assert text(sql) == expected


def test_an_update_writes_the_old_shape_as_well() -> None:
    changed = '"orders"."_dualwire_new_state" IS DISTINCT FROM CAST("orders"."_dualwire_new_state" || \'x\' AS text)'
    assert text("UPDATE orders SET state = state || 'x'") == (
        'UPDATE orders SET "_dualwire_new_state" = "orders"."_dualwire_new_state" || \'x\', "status" = CASE WHEN'
        f' {changed} THEN dualwire.down_3_1(CAST("orders"."_dualwire_new_state" || \'x\' AS text))'
        f' ELSE "orders"."status" END, "_dualwire_mark" = CASE WHEN {changed} THEN CASE "orders"."_dualwire_mark"'
        ' WHEN 3 THEN 4::int2 ELSE 3::int2 END ELSE "orders"."_dualwire_mark" END'
    )


def test_an_insert_writes_the_old_shape_as_well_and_always_the_mark() -> None:
    assert text("INSERT INTO orders VALUES (1, 'a')") == (
        'INSERT INTO orders ("id", "_dualwire_new_state", "status", "_dualwire_mark")'
        " VALUES (1, 'a', dualwire.down_3_1(CAST('a' AS text)), 3::int2)"
    )
    fallback = plan("INSERT INTO orders VALUES (1, 'a')").fallback
    assert fallback is not None
    assert fallback.text == (
        b'INSERT INTO orders ("id", "_dualwire_new_state", "_dualwire_mark") VALUES (1, \'a\', 3::int2)'
    )


def test_an_upsert_is_translated_in_all_its_parts() -> None:
    result = text(
        "INSERT INTO orders (id, state) VALUES (1, 'a') ON CONFLICT (state, lower(state)) WHERE state = 'x'"
        " DO UPDATE SET state = excluded.state WHERE orders.state <> excluded.state"
    )
    assert (
        'ON CONFLICT ("_dualwire_new_state", lower("_dualwire_new_state")) WHERE "_dualwire_new_state" = \'x\''
        ' DO UPDATE SET "_dualwire_new_state" = excluded."_dualwire_new_state", "status" = CASE WHEN'
    ) in result
    assert result.endswith('WHERE orders."_dualwire_new_state" <> excluded."_dualwire_new_state"')


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            "INSERT INTO orders SELECT * FROM a UNION (SELECT * FROM d ORDER BY 1)",
            'INSERT INTO orders ("id", "_dualwire_new_state", "data", "_dualwire_mark")'
            " SELECT *, 3::int2 FROM a UNION (SELECT *, 3::int2 FROM d ORDER BY 1)",
        ),
        (
            "INSERT INTO orders TABLE a ON CONFLICT DO NOTHING",
            'INSERT INTO orders ("id", "_dualwire_new_state", "data", "_dualwire_mark")'
            " SELECT *, 3::int2 FROM (TABLE a) AS _dualwire_rows ON CONFLICT DO NOTHING",
        ),
        (
            "INSERT INTO orders (state) VALUES (random()::text) LIMIT 1",
            'INSERT INTO orders ("_dualwire_new_state", "_dualwire_mark") VALUES (random()::text, 3::int2) LIMIT 1',
        ),
        (
            "MERGE INTO orders o USING a ON o.state = a.s WHEN MATCHED THEN UPDATE SET state = 'x'"
            " WHEN NOT MATCHED THEN INSERT VALUES (a.i, a.s) WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
            'MERGE INTO orders o USING a ON o."_dualwire_new_state" = a.s'
            " WHEN MATCHED THEN UPDATE SET \"_dualwire_new_state\" = 'x' WHEN NOT MATCHED THEN"
            ' INSERT ("id", "_dualwire_new_state", "_dualwire_mark") VALUES (a.i, a.s, 3::int2)'
            ' WHEN NOT MATCHED THEN INSERT ("_dualwire_mark") VALUES (3::int2)',
        ),
        (
            "PREPARE p AS INSERT INTO orders (state) VALUES ($1)",
            'PREPARE p AS INSERT INTO orders ("_dualwire_new_state", "_dualwire_mark") VALUES ($1, 3::int2)',
        ),
    ],
)
def test_rows_that_the_guard_completes_carry_the_mark_of_a_new_speaker(sql: str, expected: str) -> None:
    result = plan(sql, replace(STATUS, inline=False))
    assert result.text.decode() == expected
    assert (result.guarded, result.mirrored) == (True, False)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE orders SET status = 'x'",
        "UPDATE orders SET data = status::json",
        "UPDATE orders o SET data = '1' WHERE o.status = 'x'",
        "INSERT INTO orders (status) VALUES ('x')",
        "INSERT INTO orders (id) VALUES (1) ON CONFLICT (status) DO NOTHING",
        "DELETE FROM orders WHERE id IN (SELECT 1 WHERE status = 'x')",
        "DELETE FROM orders RETURNING status",
        "DELETE FROM orders RETURNING _dualwire_mark",
        "COPY orders (status) TO STDOUT",
    ],
)
def test_a_column_that_the_version_does_not_have_does_not_exist(sql: str) -> None:
    result = plan(sql)
    assert result.refusal is not None
    assert result.refusal.sqlstate == "42703"
    assert "status" in result.refusal.message or '"_dualwire_mark"' in result.refusal.message


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM orders USING items WHERE status = 'x'",
        "DELETE FROM orders WHERE EXISTS (SELECT 1 FROM items WHERE state = 'x')",
        "UPDATE orders SET data = (SELECT status FROM items)",
    ],
)
def test_a_name_that_could_be_anothers_is_refused(sql: str) -> None:
    result = plan(sql)
    assert result.refusal is not None
    assert (result.refusal.sqlstate, result.reason) == ("0A000", "refused_ambiguous")
    assert "Qualify" in result.refusal.hint


def test_a_name_that_is_surely_anothers_is_left_alone() -> None:
    sql = "UPDATE orders SET data = '1' WHERE id IN (SELECT state FROM (SELECT 1 AS state) x)"
    assert plan(sql).refusal is None
    assert text(sql) == sql


@pytest.mark.parametrize(
    "sql",
    [
        "COPY orders FROM STDIN",
        "CREATE INDEX ON orders (state)",
        "COMMENT ON COLUMN orders.state IS 'x'",
        "GRANT SELECT (state) ON orders TO public",
        "ANALYZE orders (state)",
        "DO $$ BEGIN UPDATE orders SET status = 'x'; END $$",
        "CREATE TABLE x (s text REFERENCES orders (state))",
        "ALTER TABLE x ADD FOREIGN KEY (s) REFERENCES orders (state)",
        "INSERT INTO orders SELECT FROM other",
        "SELECT *, o.ctid FROM orders o JOIN a USING (id)",
    ],
)
def test_what_is_not_translated_is_refused_with_a_hint(sql: str) -> None:
    result = plan(sql)
    assert result.refusal is not None
    assert (result.refusal.sqlstate, bool(result.refusal.hint)) == ("0A000", True)


@pytest.mark.parametrize(
    "sql",
    [
        "TRUNCATE orders",
        "LOCK orders",
        "VACUUM orders",
        "GRANT SELECT ON orders TO public",
        "CREATE TABLE x (o bigint REFERENCES orders (id))",
        "ALTER TABLE x ADD FOREIGN KEY (o) REFERENCES orders (id)",
        "UPDATE orders SET data = '1' WHERE id = 1",
    ],
)
def test_what_names_no_translated_column_passes(sql: str) -> None:
    data = sql.encode()
    assert Planner([STATUS], "new").plan(data).text is data


def test_a_merge_is_translated_and_mirrored_in_each_action() -> None:
    changed = '"o"."_dualwire_new_state" IS DISTINCT FROM CAST(a.s AS text)'
    assert text(
        "MERGE INTO orders o USING a ON o.id = a.i WHEN MATCHED AND state = 'x' THEN DELETE"
        " WHEN MATCHED THEN UPDATE SET state = a.s WHEN NOT MATCHED BY SOURCE THEN DO NOTHING"
        " WHEN NOT MATCHED THEN INSERT (state) VALUES (a.s) RETURNING merge_action(), old.state"
    ) == (
        'MERGE INTO orders o USING a ON o.id = a.i WHEN MATCHED AND "o"."_dualwire_new_state" = \'x\' THEN DELETE'
        f' WHEN MATCHED THEN UPDATE SET "_dualwire_new_state" = a.s, "status" = CASE WHEN {changed} THEN'
        f' dualwire.down_3_1(CAST(a.s AS text)) ELSE "o"."status" END, "_dualwire_mark" = CASE WHEN {changed} THEN'
        ' CASE "o"."_dualwire_mark" WHEN 3 THEN 4::int2 ELSE 3::int2 END ELSE "o"."_dualwire_mark" END'
        " WHEN NOT MATCHED BY SOURCE THEN DO NOTHING WHEN NOT MATCHED THEN"
        ' INSERT ("_dualwire_new_state", "status", "_dualwire_mark")'
        " VALUES (a.s, dualwire.down_3_1(CAST(a.s AS text)), 3::int2)"
        ' RETURNING merge_action(), old."_dualwire_new_state" AS "state"'
    )


def test_what_an_inserting_action_says_is_never_taken_for_the_targets() -> None:
    result = text(
        "MERGE INTO orders o USING a ON o.id = a.i WHEN NOT MATCHED AND state > 'a' THEN INSERT VALUES (1, state)"
    )
    assert "AND state > 'a' THEN" in result
    assert "VALUES (1, state, dualwire.down_3_1(CAST(state AS text)), 3::int2)" in result


def test_a_merge_may_read_the_table() -> None:
    assert text("MERGE INTO a USING orders o ON o.state = a.s WHEN MATCHED THEN UPDATE SET s = o.state") == (
        f"MERGE INTO a USING {DERIVED} o ON o.state = a.s WHEN MATCHED THEN UPDATE SET s = o.state"
    )


def test_after_the_point_of_no_return_names_are_translated_and_nothing_is_mirrored() -> None:
    result = plan("INSERT INTO orders (state) VALUES ('paid') RETURNING *", CLOSED)
    assert result.text.startswith(b"INSERT INTO orders (\"_dualwire_new_state\") VALUES ('paid') RETURNING ")
    assert (result.mirrored, result.guarded, result.reason) == (False, False, "translated")
    assert text("COPY orders FROM STDIN", CLOSED).startswith('COPY orders ("id", "_dualwire_new_state", ')
    assert text("UPDATE orders SET state = random()::text::order_state", CLOSED) == (
        'UPDATE orders SET "_dualwire_new_state" = random()::text::order_state'
    )


def test_with_dual_writes_switched_off_rows_still_say_who_wrote_them() -> None:
    result = plan("INSERT INTO orders (state) VALUES ('a')", dual_write=False)
    assert result.text == (
        b'INSERT INTO orders ("_dualwire_new_state", "_dualwire_mark") VALUES (\'a\', 3::int2)'
    )
    assert (result.reason, result.guarded) == ("guard_dual_write_off", True)
    bare = plan("UPDATE orders SET state = 'a'", replace(STATUS, guard="off"), dual_write=False)
    assert bare.refusal is None
