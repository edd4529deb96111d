"""Rows that become a derived table: INSERT ... SELECT, and VALUES whose expressions may not be written down twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from orders import ORDERS
from pairs import Pair, outcome, statements
from test_old_speakers import STATUS

from proxy.rewrite.model import Side, TableModel
from proxy.rewrite.planner import Planner

FROM_QUERIES = """
INSERT INTO orders (amount, note) SELECT qty, sku FROM items
INSERT INTO orders (status, amount, "Paid?") SELECT 'paid', 12.345, NULL
INSERT INTO orders (status, amount) SELECT U&'s!0065nt' UESCAPE '!' AS s, '7' FROM items WHERE qty > 1 RETURNING *
INSERT INTO orders ("größe") SELECT 'wide'
INSERT INTO orders ("größe", status) SELECT 'wide'::text, 'new'
INSERT INTO orders ("größe", status) SELECT 'wide'::varchar(3), 'new' RETURNING *
INSERT INTO orders (status) SELECT 'far too long to fit' WHERE false
INSERT INTO orders (status) SELECT repeat('x', 11)
INSERT INTO orders (status) SELECT repeat('x', 10) || '   ' RETURNING status
INSERT INTO orders (amount) SELECT 'no number'
INSERT INTO orders (amount) SELECT q / 3.0 FROM generate_series(1, 4) q RETURNING amount
INSERT INTO orders (amount) SELECT 999999999.0
INSERT INTO orders (status, amount) SELECT 'x'
INSERT INTO orders (status) SELECT 'x', 2
INSERT INTO orders (status) SELECT 'new' UNION ALL SELECT 'paid'
INSERT INTO orders (status) SELECT 'new' UNION SELECT NULL UNION ALL (SELECT 'paid' ORDER BY 1) RETURNING status
INSERT INTO orders (amount) SELECT '1' UNION ALL SELECT '2'
INSERT INTO orders (amount) SELECT '1' UNION ALL SELECT 2.125 RETURNING *
INSERT INTO orders (amount, status) SELECT DISTINCT 5, 'new' FROM items
INSERT INTO orders (amount) SELECT DISTINCT '5'
INSERT INTO orders (amount, status) SELECT DISTINCT ON (order_id) qty, 'new' FROM items ORDER BY order_id, qty DESC
INSERT INTO orders (amount, status) SELECT sum(qty), 'new' FROM items GROUP BY order_id HAVING sum(qty) > 1 ORDER BY 1
INSERT INTO orders (amount, note) SELECT qty, sku FROM items ORDER BY sku DESC RETURNING id, note, amount
INSERT INTO orders (amount, note) SELECT qty, sku FROM items ORDER BY qty LIMIT 2 OFFSET 1 RETURNING *
INSERT INTO orders (amount, note) SELECT qty, sku FROM items ORDER BY qty FETCH FIRST 1 ROW WITH TIES RETURNING *
INSERT INTO orders (amount, note) SELECT qty, 'n' FROM items WHERE sku = 'c' FOR UPDATE
INSERT INTO orders (amount, note) (SELECT qty, 'n' FROM items WHERE sku = 'c')
INSERT INTO orders(amount, note)(((SELECT qty, 'n' FROM items ORDER BY sku)))RETURNING *
INSERT INTO orders(amount, note) (SELECT qty, 'n' FROM items LIMIT 1) -- the end
INSERT INTO orders (amount) VALUES (1), (2.5) ORDER BY 1 DESC RETURNING *
INSERT INTO orders (amount) (VALUES (1), (2.5)) LIMIT 1
INSERT INTO orders (note, amount) WITH w AS (SELECT 3 AS a) SELECT 'n', a FROM w RETURNING *
WITH w AS (SELECT 3 AS a) INSERT INTO orders (note, amount) SELECT 'n', a FROM w RETURNING *
WITH w AS (INSERT INTO orders (note, amount) SELECT 'n', 4 RETURNING *) SELECT * FROM w
INSERT INTO orders (note, amount) SELECT sku, qty FROM items UNION ALL SELECT note, amount FROM orders WHERE id < 3
INSERT INTO orders (note, amount) SELECT sku, qty FROM items UNION ALL VALUES ('v', 1.25)
INSERT INTO orders (note, amount) SELECT * FROM (VALUES ('v', 1.25), ('w', 2)) v RETURNING *
INSERT INTO orders (note, amount, status) SELECT *, 'sent' FROM (SELECT sku, qty FROM items) q
INSERT INTO orders (status, note, amount) SELECT 'sent', x.* FROM unnest('{a,b}'::text[], '{1,2}'::int[]) x
INSERT INTO orders (note, amount) SELECT * FROM unnest('{a,b}'::text[], '{1,2}'::int[])
INSERT INTO orders (note) SELECT sku AS returning FROM items AS i RETURNING note AS returning
INSERT INTO orders (id, amount) SELECT 1, 3 ON CONFLICT (id) DO UPDATE SET amount = excluded.amount RETURNING *
INSERT INTO orders (id, amount, note) SELECT i.order_id, i.qty, i.sku FROM items i JOIN items conflict ON conflict.sku = i.sku ON CONFLICT DO NOTHING
INSERT INTO orders (id, note) SELECT 1, 'q' ON CONFLICT (id) DO UPDATE SET note = excluded.note, amount = random() * 0 + 5
INSERT INTO orders SELECT 200, DEFAULT
INSERT INTO orders (note, amount) SELECT (SELECT max(sku) FROM items), (SELECT count(*) FROM items) RETURNING *
INSERT INTO orders (note, amount) SELECT row_number() OVER (ORDER BY sku), qty FROM items
INSERT INTO orders (note, amount) SELECT 'x', generate_series(1, 3) RETURNING *
INSERT INTO orders (created, amount) SELECT '2020-01-01Z', 1 RETURNING *
INSERT INTO orders (created, amount) SELECT 1, 1
INSERT INTO orders (id, nothing) SELECT 1, 2
INSERT INTO orders (amount, amount) SELECT 1, 2
INSERT INTO orders (note, amount) SELECT 'x', nextval('drawn') FROM items RETURNING *
INSERT INTO orders (note, amount) SELECT random()::text, random() * 100 FROM items ORDER BY random() RETURNING note, amount
INSERT INTO orders (id, amount) OVERRIDING SYSTEM VALUE SELECT 500, 1 RETURNING *
INSERT INTO orders (id, amount) OVERRIDING USER VALUE SELECT 501, 2 RETURNING *
INSERT INTO orders (note, amount) SELECT 'x', qty FROM items ORDER BY 1, 2 RETURNING *
INSERT INTO orders (note, amount) SELECT 'x' AS n, qty FROM items ORDER BY n, qty RETURNING *
INSERT INTO orders (note, amount) SELECT DISTINCT ON (n) 'x' AS n, qty FROM items ORDER BY n, qty RETURNING *
INSERT INTO orders (note, amount) SELECT 'x', max(qty) FROM items GROUP BY 1 RETURNING *
INSERT INTO orders (created, amount) SELECT '2020-01-01Z', 1 ORDER BY 1
INSERT INTO orders (note, amount, status) SELECT a.*, b.*, 'new' FROM (SELECT 'n'::text) a, (SELECT 5) b RETURNING *
INSERT INTO orders (status, note, amount) SELECT 'new', a.*, b.* FROM (SELECT 'n'::text) a, (SELECT 5) b RETURNING *
INSERT INTO orders (note, amount) SELECT n, a FROM (SELECT random()::text, random() * 100 FROM items) q(n, a) RETURNING note, amount
"""  # noqa: E501
"""Said by old speakers; the new speakers' differ in the names."""

VALUES = """
INSERT INTO orders (amount) VALUES (nextval('drawn')) RETURNING *
INSERT INTO orders (status, amount, note) VALUES ('paid', nextval('drawn'), NULL), (NULL, 2.345, 'x') RETURNING *
INSERT INTO orders (status, amount, note) VALUES ('paid', random() * 100, NULL), (DEFAULT, DEFAULT, 5::text) RETURNING amount
INSERT INTO orders VALUES (DEFAULT, 'new', random() * 100) RETURNING amount
INSERT INTO orders VALUES (DEFAULT, DEFAULT, random() * 100, 'yes', 'é', 'abc'), (DEFAULT, DEFAULT, 1.5, 'no', 'ü', 'äöü') RETURNING *
INSERT INTO orders (id, status, "größe", amount) VALUES (DEFAULT, 'new', 'wide', random())
INSERT INTO orders (id, status, "größe", amount) VALUES (DEFAULT, 'new', 'wide', random()), (DEFAULT, 'new', 'abc', random())
INSERT INTO orders (status, amount) VALUES (repeat('x', 11), random())
INSERT INTO orders (status, amount) VALUES ('far too long', random()), ('new', 1)
INSERT INTO orders (note, amount) VALUES ('x', (SELECT sum(qty) FROM items)), ('y', (SELECT -1)) RETURNING *
INSERT INTO orders (note, amount) VALUES ('x', (SELECT amount FROM orders WHERE id = 1)) RETURNING *
INSERT INTO orders (id, amount) VALUES (1, (SELECT 6)) ON CONFLICT (id) DO UPDATE SET amount = excluded.amount RETURNING *
INSERT INTO orders (id, amount) VALUES (1, (SELECT 6)), (400, random()) ON CONFLICT DO NOTHING RETURNING id
INSERT INTO orders (note, amount) VALUES ('x', sum(1))
INSERT INTO orders (created, amount) VALUES ('2020-01-01Z', random()), ('2021-01-01Z'::timestamptz, 2) RETURNING *
INSERT INTO orders (created, amount) VALUES ('someday', random())
INSERT INTO orders AS o (note, amount) VALUES ('x' /* ) */, (SELECT 2)) -- ;
INSERT INTO orders (note, amount) (VALUES ('x', (SELECT 2)))
INSERT INTO orders (note, amount) VALUES (1, (SELECT 2)), ('2', 3), (3.5, 4) RETURNING *
INSERT INTO orders (amount, note) VALUES ((SELECT 2), 'x', 3)
INSERT INTO orders (amount) VALUES ((SELECT 2)), (random() + 5) ORDER BY 1 LIMIT 1 RETURNING *
INSERT INTO orders (id, amount) OVERRIDING SYSTEM VALUE VALUES (600, random()), (601, 2) RETURNING id
INSERT INTO orders (id, amount) OVERRIDING USER VALUE VALUES (600, (SELECT 3)), (601, 2) RETURNING *
INSERT INTO orders (id, amount) OVERRIDING USER VALUE VALUES (DEFAULT, 2), (601, 2) RETURNING *
"""  # noqa: E501


def said_by(side: Side, text: str) -> list[str]:
    """The statements in one version's words; a new speaker's amounts are whole numbers."""
    if side == "new":
        text = text.replace("(status", "(state").replace("status,", "state,").replace(", status", ", state")
        text = text.replace("RETURNING status", "RETURNING state").replace("'far too long to fit'", "'none'")
        text = text.replace("amount", "cents").replace('"Paid?"', "paid").replace("'yes'", "'t'")
        text = text.replace("'no'", "'f'")
    return statements(text)


DRAWN = "CREATE SEQUENCE public.drawn; CREATE SEQUENCE plain.drawn;"


async def run(pair: Pair, sql: str, *arguments: Any) -> str:
    """Like a sidecar: the original is tried first, and what it says of itself counts."""
    for connection in (pair.migrated, pair.plain):
        await connection.execute("SELECT setseed(0.25)")
    plan = pair.planner.plan(sql.encode())
    if plan.mirrored and plan.fallback is not None:
        rejection = await outcome(pair.migrated, "EXPLAIN " + plan.fallback.text.decode(), arguments)
        if rejection[0] == "error":
            assert await outcome(pair.plain, sql, arguments) == rejection, sql
            return plan.reason
    return (await pair.run(sql, *arguments)).reason


@pytest.mark.parametrize("text", [FROM_QUERIES, VALUES], ids=["select", "values"])
async def test_a_client_cannot_tell_a_derived_insert(pair: Pair, database: Any, text: str) -> None:
    database.sql(DRAWN)
    reasons = [await run(pair, sql) for sql in said_by(pair.side, text)]
    assert reasons.count("dual_write") > len(reasons) * 0.7, reasons
    drawn = "SELECT last_value FROM {}.drawn"
    assert await pair.migrated.fetchval(drawn.format("public")) == await pair.plain.fetchval(
        drawn.format("plain")
    )


async def test_rows_of_a_table_of_the_same_columns_need_no_list(pair: Pair, database: Any) -> None:
    for schema in ("public", "plain"):
        database.sql(
            f"CREATE TABLE {schema}.saved AS SELECT * FROM plain.orders;"
            f"CREATE TABLE {schema}.longer AS SELECT *, 1 AS more, 2 AS still, 3 AS and_more, 4 AS most, 5 AS x"
            f" FROM plain.orders; INSERT INTO {schema}.saved (id, note) VALUES (1, 'a'), (2, 'b')"
        )
    assert (await pair.run("INSERT INTO orders SELECT * FROM saved RETURNING *")).mirrored
    assert (await pair.run("INSERT INTO orders (TABLE saved LIMIT 1) ON CONFLICT DO NOTHING")).mirrored
    await pair.run("INSERT INTO orders SELECT * FROM longer")
    if pair.side == "old":  # fewer columns are no error without a list, so the prober chooses the fallback
        plan = pair.planner.plan(b"INSERT INTO orders SELECT * FROM nothing_of_it")
        assert plan.fallback is not None
        assert plan.fallback.text == b"INSERT INTO orders SELECT * FROM nothing_of_it"


PARAMETERS: list[tuple[str, tuple[Any, ...]]] = [
    ("INSERT INTO orders (status, amount) SELECT $1, $2 RETURNING *", ("paid", 5)),
    (
        "INSERT INTO orders (status, amount, note) SELECT $1, qty, $2 FROM items WHERE sku = $3",
        ("new", "n", "c"),
    ),
    ("INSERT INTO orders (status, amount) SELECT $1, $2 FROM items ORDER BY sku LIMIT $3", ("paid", None, 2)),
    ("INSERT INTO orders (note) SELECT $1 UNION ALL SELECT $2", ("a", "b")),
    ("INSERT INTO orders (note, amount) SELECT DISTINCT $1, qty FROM items", ("a",)),
    ('INSERT INTO orders ("größe", amount) SELECT $1, 2', ("äöü",)),
    ("INSERT INTO orders (note, amount) VALUES ($1, (SELECT $2::int)) RETURNING *", ("x", 3)),
    (
        "INSERT INTO orders (note, amount) VALUES ($1, random()), ($2, $3) RETURNING amount",
        ("x", "y", 5),
    ),
    (
        "INSERT INTO orders (note, amount) SELECT * FROM unnest(($1)::text[], ($2)::int[])",
        (["a", "b"], [1, 2]),
    ),
    (
        "INSERT INTO orders (amount, note) SELECT p0::INTEGER, p1::VARCHAR FROM (VALUES ($1, $2, 0), ($3, $4, 1))"
        " AS imp_sen(p0, p1, sen_counter) ORDER BY sen_counter RETURNING orders.id, orders.id AS id__1",
        ("1", "a", "2", "b"),
    ),
]


async def test_parameters_of_unknown_types_get_the_same_types(pair: Pair) -> None:
    for sql, arguments in PARAMETERS:
        (said,) = said_by(pair.side, sql)
        assert await run(pair, said, *arguments) == "dual_write"


async def test_a_parameter_too_long_for_its_column_is_refused_not_cut(old: Pair) -> None:
    for sql in (
        'INSERT INTO orders ("größe", status) SELECT $1, $2',
        'INSERT INTO orders ("größe", status) VALUES ($1, (SELECT $2::text))',
        "INSERT INTO orders (\"größe\", status) VALUES ($1, (SELECT $2::text)), ('a', 'b')",
    ):
        await run(old, sql, "wide", "new")
        await run(old, sql, "abc", "far too long to fit")


DOMAINS = """
CREATE DOMAIN public.short AS varchar(3);
CREATE TYPE public.pair AS (a varchar(3), b int);
ALTER TABLE public.orders ADD s public.short, ADD p public.pair;
ALTER TABLE plain.orders ADD s public.short, ADD p public.pair;
"""


async def test_what_domains_and_composites_hold_is_not_cut(old: Pair, database: Any) -> None:
    database.sql(DOMAINS)
    for sql, state in (
        ("INSERT INTO orders (s, amount) SELECT 'abcd', 1", "22001"),
        ("INSERT INTO orders (s, amount) SELECT 'abcd'::text, 1", "22001"),
        ("INSERT INTO orders (s, amount) VALUES ('abcd', (SELECT 1))", "22001"),
        ("INSERT INTO orders (s, amount) VALUES ('abcd', (SELECT 1)), ('a', 2)", "22001"),
        ("INSERT INTO orders (s, amount) SELECT $1, 1", "22001"),
        ("INSERT INTO orders (p, amount) SELECT '(abcd,1)', 1", "22001"),
    ):
        plan = old.planner.plan(sql.encode())
        arguments = ("abcd",) if "$1" in sql else ()
        assert await outcome(old.migrated, plan.text.decode(), arguments) == ("error", state), sql
        assert await outcome(old.plain, sql, arguments) == ("error", state), sql


async def test_a_new_speakers_query_fills_an_old_column_that_takes_no_null(new: Pair, database: Any) -> None:
    database.sql("ALTER TABLE public.orders ALTER status DROP DEFAULT, ALTER status SET NOT NULL")
    for sql in (
        "INSERT INTO orders (state, cents) SELECT 'paid', 5 RETURNING *",
        "INSERT INTO orders (state, cents) VALUES ('sent', (SELECT 7)) RETURNING *",
        "INSERT INTO orders (cents, state) SELECT * FROM unnest('{1,2}'::bigint[], '{new,sent}'::order_state[])",
    ):
        assert (await new.run(sql)).mirrored


async def test_expressions_are_evaluated_once_whatever_their_volatility_says(
    old: Pair, database: Any
) -> None:
    database.sql(
        "CREATE SEQUENCE public.calls; CREATE FUNCTION public.lies(int) RETURNS bigint LANGUAGE plpgsql STABLE"
        " AS $$ BEGIN RETURN nextval('public.calls'); END $$;"
    )
    for sql in (
        "INSERT INTO orders (amount) SELECT lies(qty) FROM items",
        "INSERT INTO orders (amount) SELECT a FROM (SELECT lies(qty) FROM items) q(a)",
        "INSERT INTO orders (amount) VALUES (lies((SELECT 0)))",
    ):
        before = await old.migrated.fetchval("SELECT nextval('calls')")
        plan = old.planner.plan(sql.encode())
        assert plan.mirrored
        await old.migrated.execute(plan.text.decode())
        rows = 1 if "VALUES" in sql else 4
        assert await old.migrated.fetchval("SELECT last_value FROM calls") == before + rows, plan.text
        assert not await old.migrated.fetch("SELECT 1 FROM orders o WHERE NOT dualwire.consistent(o)")


async def test_the_fallback_of_a_derived_insert_does_the_same(new: Pair) -> None:
    for sql in (
        "INSERT INTO orders (state, cents) SELECT 'paid', 5 RETURNING *",
        "INSERT INTO orders (cents, note) SELECT 1, 'a' UNION ALL VALUES (2, 'b')",
        "INSERT INTO orders (id, note) (TABLE pairs) ON CONFLICT DO NOTHING",
        "INSERT INTO orders (id, note) OVERRIDING SYSTEM VALUE TABLE pairs ON CONFLICT DO NOTHING",
        "INSERT INTO orders VALUES (DEFAULT, 'new', (SELECT 5), DEFAULT), (DEFAULT, 'new', 6, DEFAULT)",
        "INSERT INTO orders (id, state, cents, paid) VALUES (DEFAULT, DEFAULT, (SELECT 5), DEFAULT) RETURNING *",
    ):
        for connection in (new.migrated, new.plain):
            await connection.execute("CREATE TEMP TABLE IF NOT EXISTS pairs AS SELECT 70 AS id, 'n' AS note")
        plan = new.planner.plan(sql.encode())
        text = plan.fallback.text if plan.fallback is not None else plan.text
        expected = await outcome(new.plain, sql)
        assert await outcome(new.migrated, text.decode()) == expected, text
        await new.check()


def texts(sql: str, side: Side = "old", table: TableModel = STATUS) -> tuple[str, str]:
    plan = Planner([table], side).plan(sql.encode())
    assert (plan.reason, plan.mirrored, plan.guarded) == ("dual_write", True, False)
    assert any("becomes a derived table" in sentence for sentence in plan.explanations)
    assert plan.fallback is not None
    return plan.text.decode(), plan.fallback.text.decode()


def test_a_query_becomes_a_derived_table() -> None:
    assert texts("INSERT INTO orders (id, state) SELECT a, b FROM c ORDER BY d RETURNING id", "new") == (
        'INSERT INTO orders (id, "_dualwire_new_state", "status", "_dualwire_mark") SELECT'
        " _dualwire_rows._dualwire_1, _dualwire_rows._dualwire_2,"
        " dualwire.down_3_1(CAST(_dualwire_rows._dualwire_2 AS text)), 3::int2"
        " FROM (SELECT a, b FROM c ORDER BY d OFFSET 0) AS _dualwire_rows(_dualwire_1, _dualwire_2) RETURNING id",
        'INSERT INTO orders (id, "_dualwire_new_state", "_dualwire_mark") SELECT a, b, 3::int2 FROM c ORDER BY d'
        " RETURNING id",
    )


def test_what_has_no_type_of_its_own_stays_in_the_outer_list() -> None:
    assert texts("INSERT INTO orders SELECT $1, 'x' LIMIT 1; COMMIT") == (
        'INSERT INTO orders ("id", "status", "_dualwire_new_state", "_dualwire_mark") SELECT $1, \'x\','
        " dualwire.up_3_1(CAST('x' AS text)), 1::int2"
        " FROM (SELECT NULL, NULL LIMIT 1) AS _dualwire_rows(_dualwire_1, _dualwire_2); COMMIT",
        'INSERT INTO orders ("id", "status") SELECT $1, \'x\' LIMIT 1; COMMIT',
    )


def test_rows_of_values_are_cast_cell_by_cell_and_defaults_are_left_out() -> None:
    assert texts("INSERT INTO orders (id, status) VALUES (DEFAULT, f($1)), (DEFAULT, DEFAULT) -- two") == (
        'INSERT INTO orders ("status", "_dualwire_new_state", "_dualwire_mark") SELECT _dualwire_rows._dualwire_2,'
        " dualwire.up_3_1(CAST(_dualwire_rows._dualwire_2 AS text)), 1::int2"
        " FROM (VALUES (NULL, CAST(f($1) AS text)), (NULL, CAST('new'::text AS text)) OFFSET 0)"
        " AS _dualwire_rows(_dualwire_1, _dualwire_2) -- two",
        "INSERT INTO orders (id, status) VALUES (DEFAULT, f($1)), (DEFAULT, DEFAULT) -- two",
    )


def test_a_long_constant_is_written_down_once() -> None:
    text, _ = texts("INSERT INTO orders (status) VALUES ('" + "x" * 10_000 + "')")
    assert text.count("xxxx") == 2_500
    assert "CAST('xxx" in text


def test_without_a_guard_no_width_is_taken_on_trust() -> None:
    bare = replace(ORDERS, guard="off")
    refused = Planner([bare], "old").plan(b"INSERT INTO orders (note, amount) SELECT * FROM a").refusal
    assert refused is not None
    assert Planner([bare], "old").plan(b"INSERT INTO orders (note, amount) SELECT b, c FROM a").mirrored


KEYED = replace(
    STATUS, up=replace(STATUS.up, mirrors=(replace(STATUS.up.mirrors[0], sources=("status", "id")),))
)
"""A mirror depends on a column with a volatile default."""

ROW = (
    "_dualwire_rows._dualwire_1, _dualwire_rows._dualwire_2,"
    " dualwire.up_3_1(CAST(_dualwire_rows._dualwire_1 AS text), CAST(_dualwire_rows._dualwire_2 AS bigint)), 1::int2"
)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            "INSERT INTO orders (status) SELECT a FROM b ORDER BY c",
            'INSERT INTO orders ("status", "id", "_dualwire_new_state", "_dualwire_mark")'
            f" SELECT {ROW} FROM (SELECT _dualwire_rows.*, nextval('s') FROM (SELECT a FROM b ORDER BY c OFFSET 0)"
            " AS _dualwire_rows(_dualwire_1) OFFSET 0) AS _dualwire_rows(_dualwire_1, _dualwire_2)",
        ),
        (
            "INSERT INTO orders VALUES (DEFAULT, 'x')",
            'INSERT INTO orders ("status", "id", "_dualwire_new_state", "_dualwire_mark") SELECT \'x\','
            " _dualwire_rows._dualwire_3,"
            " dualwire.up_3_1(CAST('x' AS text), CAST(_dualwire_rows._dualwire_3 AS bigint)),"
            " 1::int2 FROM (SELECT _dualwire_rows.*, nextval('s') FROM (VALUES (NULL, NULL) OFFSET 0)"
            " AS _dualwire_rows(_dualwire_1, _dualwire_2) OFFSET 0)"
            " AS _dualwire_rows(_dualwire_1, _dualwire_2, _dualwire_3)",
        ),
        (
            "INSERT INTO orders (status, id) VALUES ('x', DEFAULT), ('y', 3)",
            'INSERT INTO orders (status, id, "_dualwire_new_state", "_dualwire_mark")'
            f" SELECT {ROW} FROM (VALUES (CAST('x' AS text), CAST(nextval('s') AS bigint)),"
            " (CAST('y' AS text), CAST(3 AS bigint)) OFFSET 0) AS _dualwire_rows(_dualwire_1, _dualwire_2)",
        ),
        (
            "INSERT INTO orders DEFAULT VALUES RETURNING id",
            'INSERT INTO orders ("id", "_dualwire_new_state", "_dualwire_mark") SELECT _dualwire_rows._dualwire_1,'
            " dualwire.up_3_1(CAST('new'::text AS text), CAST(_dualwire_rows._dualwire_1 AS bigint)), 1::int2"
            " FROM (SELECT nextval('s') OFFSET 0) AS _dualwire_rows(_dualwire_1) RETURNING id",
        ),
    ],
)
def test_a_volatile_default_of_a_source_is_spelled_out_and_evaluated_once(sql: str, expected: str) -> None:
    result, fallback = texts(sql, table=KEYED)
    assert result == expected
    assert fallback == sql.replace("orders VALUES", 'orders ("id", "status") VALUES')


def test_rows_that_mix_default_and_values_of_an_identity_column_are_left_to_the_guard() -> None:
    identity = replace(STATUS.columns[0], default=None, default_kind="none", identity="d")
    table = replace(STATUS, columns=(identity, *STATUS.columns[1:]))
    mixed = b"INSERT INTO orders (id, status) VALUES (DEFAULT, random()), (2, 'x')"
    plan = Planner([table], "old").plan(mixed)
    assert (plan.reason, plan.guarded) == ("guard_volatile_expression", True)
    assert "Only the server knows the value of column id: it is computed." in plan.explanations[0]
    assert Planner([table], "old").plan(mixed.replace(b"(2, ", b"(DEFAULT, ")).mirrored
