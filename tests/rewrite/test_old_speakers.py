"""What old speakers' statements become, form by form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from orders import FROZEN

from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel
from proxy.rewrite.plan import Plan
from proxy.rewrite.planner import Planner

STATUS = TableModel(
    schema="public",
    name="orders",
    oid=1,
    columns=(
        Column("id", "bigint", "bigint", not_null=True, default="nextval('s')", default_kind="volatile"),
        Column("status", "text", "text", default="'new'::text", default_kind="stable"),
        Column("data", "json", "json"),
        Column("_dualwire_new_state", "text", "text"),
        Column("_dualwire_mark", "smallint", "smallint"),
    ),
    primary_key=("id",),
    old=(LogicalColumn("id", "id"), LogicalColumn("status", "status"), LogicalColumn("data", "data")),
    new=(
        LogicalColumn("id", "id"),
        LogicalColumn("state", "_dualwire_new_state"),
        LogicalColumn("data", "data"),
    ),
    up=Direction((Mirror("_dualwire_new_state", "dualwire.up_3_1", ("status",)),)),
    down=Direction((Mirror("status", "dualwire.down_3_1", ("_dualwire_new_state",)),)),
    mark="_dualwire_mark",
)


def plan(sql: str, table: TableModel = STATUS, dual_write: bool = True) -> Plan:
    return Planner([table], "old", dual_write).plan(sql.encode())


def text(sql: str, table: TableModel = STATUS) -> str:
    return plan(sql, table).text.decode()


def test_an_update_writes_both_shapes_where_the_column_really_changes() -> None:
    changed = 'o."status" IS DISTINCT FROM CAST(lower($1) AS text)'.replace("o.", '"o".')
    assert text("UPDATE orders o SET status = lower($1) WHERE id = $2") == (
        "UPDATE orders o SET status = lower($1),"
        f' "_dualwire_new_state" = CASE WHEN {changed} THEN dualwire.up_3_1(CAST(lower($1) AS text))'
        ' ELSE "o"."_dualwire_new_state" END,'
        f' "_dualwire_mark" = CASE WHEN {changed} THEN CASE "o"."_dualwire_mark" WHEN 1 THEN 2::int2'
        ' ELSE 1::int2 END ELSE "o"."_dualwire_mark" END WHERE id = $2'
    )


def test_an_insert_writes_both_shapes_of_every_row() -> None:
    assert text("INSERT INTO orders (status, id) VALUES ('a', 1), (DEFAULT, 2) -- two") == (
        'INSERT INTO orders (status, id, "_dualwire_new_state", "_dualwire_mark") VALUES'
        " ('a', 1, dualwire.up_3_1(CAST('a' AS text)), 1::int2),"
        " (DEFAULT, 2, dualwire.up_3_1(CAST('new'::text AS text)), 1::int2) -- two"
    )


def test_a_missing_column_list_is_that_of_the_version_cut_to_the_values() -> None:
    assert text("INSERT INTO orders VALUES (1, 'a')").startswith(
        'INSERT INTO orders ("id", "status", "_dualwire_new_state", "_dualwire_mark") VALUES (1, \'a\', '
    )


def test_the_fallback_leaves_out_the_mirrors_and_keeps_the_lists() -> None:
    fallback = plan("INSERT INTO orders VALUES (1, 'a') RETURNING *").fallback
    assert fallback is not None
    assert fallback.text == (
        b'INSERT INTO orders ("id", "status") VALUES (1, \'a\') RETURNING "orders"."id", "orders"."status",'
        b' "orders"."data"'
    )
    assert (fallback.guarded, fallback.mirrored) == (True, False)


def test_a_mark_asks_whether_the_new_constraints_hold() -> None:
    table = replace(
        STATUS, up=replace(STATUS.up, ok_function="dualwire.up_ok_3_1", ok_sources=("status", "data"))
    )
    assert "CASE WHEN dualwire.up_ok_3_1(CAST('a' AS text), CAST(NULL AS json)) THEN 1::int2 END)" in text(
        "INSERT INTO orders (status) VALUES ('a')", table
    )
    assert 'THEN CASE WHEN dualwire.up_ok_3_1(CAST(\'a\' AS text), "orders"."data") THEN CASE' in text(
        "UPDATE orders SET status = 'a'", table
    )


def test_a_column_that_only_a_constraint_reads_may_take_the_mark_away() -> None:
    table = replace(STATUS, up=replace(STATUS.up, ok_function="dualwire.up_ok_3_1", ok_sources=("data",)))
    assert text("UPDATE orders SET data = '1'", table) == (
        "UPDATE orders SET data = '1', \"_dualwire_mark\" = CASE WHEN"
        ' ("orders"."data"::text IS DISTINCT FROM CAST(\'1\' AS json)::text)'
        ' AND NOT dualwire.up_ok_3_1(CAST(\'1\' AS json)) THEN NULL ELSE "orders"."_dualwire_mark" END'
    )


def test_several_sources_cross_over_when_any_of_them_changes() -> None:
    table = replace(STATUS, up=Direction((Mirror("_dualwire_new_state", "dualwire.up", ("status", "id")),)))
    assert (
        '"_dualwire_new_state" = CASE WHEN "orders"."status" IS DISTINCT FROM CAST(\'a\' AS text) THEN'
        ' dualwire.up(CAST(\'a\' AS text), "orders"."id")'
    ) in text("UPDATE orders SET status = 'a'", table)
    assert (
        ' IS DISTINCT FROM CAST(\'a\' AS text) OR "orders"."id" IS DISTINCT FROM CAST(2 AS bigint) THEN'
        in text("UPDATE orders SET id = 2, status = 'a'", table)
    )


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE orders SET data = '{}' WHERE id = 1",
        "UPDATE orders SET id = id + 1 RETURNING id",
        "DELETE FROM orders WHERE status = 'x' RETURNING status",
        "SELECT id, orders.status, count(*) FROM public.orders GROUP BY 1, 2",
        "SELECT (o).status, o.status FROM orders o JOIN a ON true",
        "TRUNCATE orders",
        "LOCK TABLE orders IN SHARE MODE",
        "CREATE INDEX ON orders (status)",
        "ALTER TABLE orders SET (fillfactor = 50)",
        "COPY orders (id, status) TO STDOUT",
        "WITH orders AS (SELECT 1) SELECT * FROM orders",
        "COMMENT ON COLUMN orders.status IS 'x'",
        "ALTER TABLE items ADD FOREIGN KEY (order_id) REFERENCES orders (id)",
        "CREATE TABLE items (order_id bigint REFERENCES orders)",
    ],
)
def test_what_needs_nothing_is_the_clients_own_object(sql: str) -> None:
    data = sql.encode()
    result = Planner([STATUS], "old").plan(data)
    assert result.text is data
    assert (result.edits, result.refusal, result.guarded) == ((), None, False)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM orders", 'SELECT "orders"."id", "orders"."status", "orders"."data" FROM orders'),
        ("SELECT o.* FROM orders AS o", 'SELECT o."id", o."status", o."data" FROM orders AS o'),
        (
            'SELECT a.x, * FROM a, public.orders "O", (SELECT 1) c',
            'SELECT a.x, "a".*, "O"."id", "O"."status", "O"."data", "c".* FROM a, public.orders "O", (SELECT 1) c',
        ),
        ("TABLE orders", 'SELECT "orders"."id", "orders"."status", "orders"."data" FROM orders'),
        (
            "SELECT * FROM orders JOIN a USING (id)",
            'SELECT * FROM (SELECT "id", "status", "data" FROM orders) AS "orders" JOIN a USING (id)',
        ),
        (
            "SELECT row_to_json(o) FROM ONLY (orders) o",
            'SELECT row_to_json(o) FROM (SELECT "id", "status", "data" FROM ONLY (orders)) o',
        ),
        (
            "SELECT count(o) FROM orders o GROUP BY o.id",
            'SELECT count((SELECT o FROM (SELECT o."id", o."status", o."data") AS o)) FROM orders o GROUP BY o.id',
        ),
        (
            "SELECT public.orders.id FROM public.orders NATURAL JOIN a",
            'SELECT orders.id FROM (SELECT "id", "status", "data" FROM public.orders) AS "orders" NATURAL JOIN a',
        ),
        ("COPY orders FROM STDIN", 'COPY orders ("id", "status", "data") FROM STDIN'),
        ("COPY public.orders TO STDOUT", 'COPY public.orders ("id", "status", "data") TO STDOUT'),
        (
            "CREATE TABLE b AS SELECT * FROM orders",
            'CREATE TABLE b AS SELECT "orders"."id", "orders"."status", "orders"."data" FROM orders',
        ),
        (
            "DECLARE c CURSOR FOR SELECT * FROM orders",
            'DECLARE c CURSOR FOR SELECT "orders"."id", "orders"."status", "orders"."data" FROM orders',
        ),
        (
            "DELETE FROM orders o USING a RETURNING *",
            'DELETE FROM orders o USING a RETURNING "o"."id", "o"."status", "o"."data", "a".*',
        ),
        (
            "DELETE FROM orders RETURNING old.*",
            'DELETE FROM orders RETURNING old."id", old."status", old."data"',
        ),
    ],
)
def test_stars_and_missing_lists_are_spelled_out(sql: str, expected: str) -> None:
    assert text(sql) == expected


def test_lists_are_spelled_out_even_before_any_column_is_added() -> None:
    result = plan("SELECT * FROM orders; INSERT INTO orders VALUES (1)", FROZEN)
    assert result.text.startswith(b'SELECT "orders"."id", "orders"."status", "orders"."amount", ')
    assert result.text.endswith(b'INSERT INTO orders ("id") VALUES (1)')
    assert (result.reason, result.mirrored, result.guarded) == ("expand_star", False, False)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("UPDATE orders SET status = ROW(random())", "guard_volatile_expression"),
        ("UPDATE orders SET (status, data) = ROW(a.*) FROM a", "guard_multi_assignment"),
        ("UPDATE orders SET (status, data) = (SELECT 1)", "guard_multi_assignment"),
        ("UPDATE orders SET (status, data) = ('x')", "guard_multi_assignment"),
        ("UPDATE orders SET status[1] = 'x'", "guard_subscript"),
        ("UPDATE orders SET (status, data[1]) = ('x', '1')", "guard_subscript"),
        ("INSERT INTO orders (status, id) SELECT 'x'", "guard_insert_select"),
        (
            "INSERT INTO orders (status, id) SELECT NULL AS s, 1 FROM a GROUP BY ROLLUP (s)",
            "guard_insert_select",
        ),
        ("INSERT INTO orders (status, id, data) SELECT a.*, $1, b.* FROM a, b", "guard_insert_select"),
        ("INSERT INTO orders SELECT a.*, $1 FROM a", "guard_insert_select"),
        ("INSERT INTO orders (status, nothing) VALUES (random(), 1), ('x', 2)", "guard_volatile_expression"),
        ("INSERT INTO orders VALUES ((x()).*)", "guard_other"),
        ("COPY orders (status) FROM STDIN", "guard_copy"),
        (
            "MERGE INTO orders USING a ON true WHEN MATCHED THEN UPDATE SET status = 'x'"
            " WHEN NOT MATCHED THEN INSERT (status) VALUES (random())",
            "guard_volatile_expression",
        ),
        (
            "MERGE INTO orders USING a ON true WHEN NOT MATCHED THEN INSERT (status) VALUES (1, 2)",
            "guard_other",
        ),
        ("PREPARE p AS INSERT INTO orders SELECT * FROM a", "guard_prepare"),
        ("PREPARE p AS UPDATE orders SET (status, data) = (SELECT * FROM a)", "guard_prepare"),
        ("DO $$ BEGIN UPDATE orders SET status = 'x'; END $$", "guard_code"),
    ],
)
def test_what_cannot_be_mirrored_inline_is_left_to_the_guard(sql: str, reason: str) -> None:
    result = plan(sql)
    assert (result.reason, result.guarded, result.mirrored, result.refusal) == (reason, True, False, None)
    for guard in ("check", "off"):
        refused = plan(sql, replace(STATUS, guard=guard)).refusal
        assert refused is not None
        assert (refused.sqlstate, bool(refused.hint)) == ("0A000", True)
        switched_off = plan(sql, replace(STATUS, guard=guard), dual_write=False)
        assert switched_off.refusal is None


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO orders VALUES (1, 'x')",
        "INSERT INTO orders (status) SELECT random()",
        "UPDATE orders SET status = 'x'",
        "INSERT INTO orders (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET status = excluded.status",
        "MERGE INTO orders USING a ON true WHEN MATCHED THEN UPDATE SET status = 'x'",
        "PREPARE p AS UPDATE orders SET status = $1",
    ],
)
def test_where_triggers_may_overrule_a_statement_the_guard_writes_the_mirrors(sql: str) -> None:
    table = replace(STATUS, inline=False)
    result = plan(sql, table)
    assert (result.reason, result.guarded, result.mirrored) == ("guard_before_trigger", True, False)
    assert b"_dualwire" not in result.text
    assert plan(sql, replace(table, guard="check")).refusal is not None


def test_copy_goes_into_the_versions_view_where_there_is_one() -> None:
    table = replace(STATUS, guard="check", copy_old=("dualwire", "copy_1_1_old"))
    result = plan("COPY public.orders FROM STDIN (FORMAT csv, HEADER match) WHERE id > 1", table)
    assert result.text == (
        b'COPY "dualwire"."copy_1_1_old" ("id", "status", "data") FROM STDIN (FORMAT csv, HEADER match) WHERE id > 1'
    )
    assert (result.reason, result.guarded, result.refusal) == ("copy_view", False, None)
    assert (
        text("COPY orders (status) FROM STDIN", table) == 'COPY "dualwire"."copy_1_1_old" (status) FROM STDIN'
    )
    assert plan("COPY orders FROM STDIN", replace(STATUS, guard="check")).refusal is not None


def test_an_identity_column_that_is_a_source_is_left_to_the_guard() -> None:
    table = replace(STATUS, up=Direction((Mirror("_dualwire_new_state", "dualwire.up", ("status", "id")),)))
    identity = replace(
        table, columns=(replace(STATUS.columns[0], default=None, identity="a"), *STATUS.columns[1:])
    )
    assert plan("INSERT INTO orders (status) VALUES ('x')", identity).reason == "guard_computed_column"


def test_long_constants_are_mirrored_all_the_same() -> None:
    assert plan("UPDATE orders SET status = '" + "x" * 4000 + "'").mirrored


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE orders ADD COLUMN x int",
        "ALTER TABLE public.orders RENAME TO x",
        "ALTER TABLE orders RENAME status TO x",
        "DROP TABLE a, public.orders",
        "CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION f()",
        "DROP TRIGGER t ON orders",
        "CREATE RULE r AS ON INSERT TO orders DO NOTHING",
        "CREATE VIEW v AS SELECT * FROM orders",
        "CREATE MATERIALIZED VIEW v AS SELECT id FROM orders",
        "CREATE FUNCTION f() RETURNS bigint RETURN (SELECT max(id) FROM orders)",
        "CREATE TABLE x (LIKE orders)",
        "SELECT 1; DROP TABLE orders",
    ],
)
def test_ddl_on_the_table_is_refused(sql: str) -> None:
    result = plan(sql)
    assert result.refusal is not None
    assert result.refusal.sqlstate == "0A000"
    assert "a migration is in progress on public.orders" in result.refusal.message
    assert result.reason == "refused_ddl"


def test_a_text_of_many_statements_is_planned_as_one() -> None:
    result = plan("BEGIN; UPDATE orders SET status = 'é'; SELECT * FROM orders; COMMIT")
    assert (result.statements, result.mirrored, result.kind.value) == (4, True, "write")
    assert b"CAST('\xc3\xa9' AS text)" in result.text
    assert result.text.endswith(
        b'SELECT "orders"."id", "orders"."status", "orders"."data" FROM orders; COMMIT'
    )


def test_names_follow_the_search_path() -> None:
    planner = Planner([replace(STATUS, shadows=("mine",))], "old")
    star = b"SELECT * FROM orders"
    assert planner.plan(star, ("other", "public")).tables == ("public.orders",)
    assert planner.plan(star, ("mine", "public")).tables == ()
    assert planner.plan(star, ("public", "mine")).tables == ("public.orders",)
    assert planner.plan(star, ("other",)).tables == ()
    assert planner.plan(b"SELECT * FROM public.orders", ("mine",)).tables == ("public.orders",)
    assert planner.plan(star, ("public",), frozenset({"orders"})).tables == ()
    assert planner.plan(b'SELECT * FROM "Orders"').tables == ()
    assert planner.plan(b"CREATE TEMP TABLE orders (a int); SELECT * FROM orders").tables == ()
    assert planner.plan(b'SELECT * FROM ORDERS, "orders" x, U&"orde\\0072s" y').reason == "expand_star"


def test_explanations_are_sentences() -> None:
    for sentence in plan("INSERT INTO orders VALUES (1, 'a') RETURNING *").explanations:
        assert sentence.endswith(".")
