"""Whatever the bytes: planning gives a plan, and a rewritten text is still SQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from orders import CLOSED, FROZEN, ORDERS
from virtuals import AFTER_FLIP, BEFORE_FLIP
from virtuals import ORDERS as CONTRACTED

from proxy.rewrite.model import TableModel
from proxy.rewrite.plan import Kind
from proxy.rewrite.planner import Planner
from proxy.sql.parse import MAX_BYTES, Failure, parse

PLANNERS = [
    Planner([ORDERS], "old"),
    Planner([ORDERS], "new"),
    Planner([FROZEN], "old"),
    Planner([CLOSED], "new"),
    Planner([ORDERS], "new", dual_write=False),
    Planner([], "old"),
    Planner([CONTRACTED], "old"),
    Planner([CONTRACTED], "new"),
    Planner([replace(BEFORE_FLIP, name="orders")], "new"),
    Planner([replace(AFTER_FLIP, name="orders"), replace(CONTRACTED, name="items")], "old"),
]

NAMES = st.sampled_from(
    [
        "id",
        "status",
        "state",
        "amount",
        "cents",
        '"Paid?"',
        "paid",
        "größe",
        "place",
        "code",
        "ctid",
        "_dualwire_mark",
        "x",
        '"A b"',
    ]
)
QUALIFIERS = st.sampled_from(["", "", "", "orders.", "o.", "public.orders.", "excluded.", "q.", "new."])
COLUMNS = st.builds("{}{}".format, QUALIFIERS, NAMES)
CONSTANTS = st.sampled_from(
    [
        "1",
        "'a'",
        "NULL",
        "$1",
        "$2::text",
        "e'\\''",
        "$$b, c$$",
        "true",
        "1.5",
        "'é' /* ) */",
        "-1 -- ,\n",
        "DEFAULT",
    ]
)


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(inner, inner)
    return st.one_of(
        two.map(lambda p: f"{p[0]} + {p[1]}"),
        two.map(lambda p: f"({p[0]}, {p[1]})"),
        two.map(lambda p: f"{p[0]} IS DISTINCT FROM {p[1]}"),
        two.map(lambda p: f"CASE WHEN {p[0]} THEN {p[1]} END"),
        two.map(lambda p: f"coalesce({p[0]}, {p[1]})"),
        two.map(lambda p: f"(ARRAY[{p[0]}, {p[1]}])[1]"),
        two.map(lambda p: f"random({p[0]}) BETWEEN 1 AND {p[1]}"),
        two.map(lambda p: f"(SELECT {p[0]} FROM orders WHERE {p[1]})"),
        two.map(lambda p: f"EXISTS (SELECT * FROM orders o, items i WHERE {p[0]} = {p[1]})"),
        two.map(lambda p: f"sum({p[0]}) FILTER (WHERE {p[1]}) OVER (ORDER BY 1)"),
        two.map(lambda p: f"percentile_cont(0.5) WITHIN GROUP (ORDER BY {p[0]}, {p[1]})"),
        inner.map(lambda e: f"extract(year FROM {e})"),
        inner.map(lambda e: f"CAST({e} AS numeric(10, 2))"),
        inner.map(lambda e: f'{e} COLLATE "C"'),
        inner.map(lambda e: f"{e} AT TIME ZONE 'UTC'"),
        st.sampled_from(
            ["row_to_json(o)", "count(o.*)", "(o).status", "(o).*", "ROW(o.*)", "orders", "*", "o.*"]
        ),
    )


EXPRESSIONS = st.recursive(COLUMNS | CONSTANTS, _compound, max_leaves=5)
LISTS = st.lists(EXPRESSIONS, min_size=1, max_size=3).map(", ".join)
TABLES = st.sampled_from(
    [
        "orders",
        "orders o",
        "public.orders AS o",
        '"orders"',
        "ONLY orders",
        "ONLY (orders) o",
        "orders *",
        "items i",
    ]
)
TARGETS = st.sampled_from(["orders", "orders AS o", "public.orders", "items AS o", "orders AS set"])
SAMPLES = st.sampled_from(["", "", " TABLESAMPLE system (10)", " TABLESAMPLE bernoulli (1) REPEATABLE (2)"])
FROM_ITEMS = st.one_of(
    st.builds("{}{}".format, TABLES, SAMPLES),
    st.sampled_from(
        [
            "orders o(a, b)",
            "(SELECT * FROM orders) q",
            "(SELECT 1)",
            "LATERAL (SELECT orders.state) q",
            "(orders o JOIN items i ON o.id = i.id) AS j",
            "orders o NATURAL JOIN items i",
            "orders o JOIN items i USING (id) AS u",
            "orders o LEFT JOIN orders p ON o.state = p.status",
            "generate_series(1, 2) AS q(x)",
            "json_table('[]', '$' COLUMNS (a int)) q",
            "ROWS FROM (f(1), g(2)) WITH ORDINALITY",
            "(VALUES (1, 2)) AS q(id, state)",
        ]
    ),
)
WHERE = st.one_of(st.just(""), EXPRESSIONS.map(" WHERE {}".format))
RETURNING = st.one_of(st.just(""), LISTS.map(" RETURNING {}".format))
GROUP = st.sampled_from(
    ["", "", " GROUP BY o.id", " GROUP BY 1, x", " GROUP BY DISTINCT ROLLUP (o.id)", " GROUP BY (id)"]
)
TAILS = st.sampled_from(
    [
        "",
        "",
        " ORDER BY status, 1",
        " LIMIT 1 FOR UPDATE OF o",
        " FETCH FIRST ROW ONLY",
        " UNION TABLE orders",
    ]
)
SELECTS = st.builds(
    "SELECT {} FROM {}{}{}{}".format,
    LISTS,
    st.lists(FROM_ITEMS, min_size=1, max_size=2).map(", ".join),
    WHERE,
    GROUP,
    TAILS,
)
SETS = st.lists(
    st.one_of(
        st.builds("{} = {}".format, NAMES, EXPRESSIONS),
        st.builds("({0}, note) = ({1}, DEFAULT)".format, NAMES, EXPRESSIONS),
        st.builds("({0}, note) = (SELECT {1}, 2)".format, NAMES, EXPRESSIONS),
        st.builds("{}[1] = {}".format, NAMES, EXPRESSIONS),
    ),
    min_size=1,
    max_size=3,
).map(", ".join)
COLUMN_LISTS = st.one_of(
    st.just(""), st.lists(NAMES, min_size=1, max_size=3).map(lambda n: f" ({', '.join(n)})")
)
CONFLICTS = st.one_of(
    st.sampled_from(
        ["", "", " ON CONFLICT DO NOTHING", " ON CONFLICT (id, lower(state)) WHERE status = 'x' DO NOTHING"]
    ),
    st.builds(" ON CONFLICT (id) DO UPDATE SET {}{}".format, SETS, WHERE),
)
ROWS = st.lists(LISTS.map("({})".format), min_size=1, max_size=2).map(
    lambda rows: f"VALUES {', '.join(rows)}"
)
SOURCES = st.one_of(
    ROWS, ROWS.map("({})".format), SELECTS, st.just("DEFAULT VALUES"), st.just("TABLE orders")
)
OVERRIDING = st.sampled_from(["", "", " OVERRIDING SYSTEM VALUE"])
DML = st.one_of(
    st.builds("INSERT INTO {}{}{} {}{}{}".format, TARGETS, COLUMN_LISTS, OVERRIDING, SOURCES, CONFLICTS, RETURNING),
    st.builds("UPDATE {} SET {}{}{}".format, TARGETS, SETS, WHERE, RETURNING),
    st.builds("UPDATE {} SET {} FROM {}{}{}".format, TARGETS, SETS, FROM_ITEMS, WHERE, RETURNING),
    st.builds("DELETE FROM {} USING {}{}{}".format, TARGETS, FROM_ITEMS, WHERE, RETURNING),
    st.builds(
        "MERGE INTO {} USING {} ON {} WHEN MATCHED THEN UPDATE SET {}"
        " WHEN NOT MATCHED THEN INSERT VALUES ({}){}".format,
        TARGETS, TABLES, EXPRESSIONS, SETS, LISTS, RETURNING,
    ),
)  # fmt: skip
WRAPPED = st.one_of(
    SELECTS,
    DML,
    st.builds("WITH orders AS ({}), y AS MATERIALIZED ({}) SELECT * FROM orders, y".format, SELECTS, DML),
    st.builds("WITH RECURSIVE z(a) AS ({}) {}".format, SELECTS, DML),
    st.builds("EXPLAIN ANALYZE {}".format, DML),
    st.builds("PREPARE p AS {}".format, DML | SELECTS),
    st.builds("DECLARE c CURSOR FOR {}".format, SELECTS),
    st.builds("CREATE TEMP TABLE t AS {}".format, SELECTS),
    st.builds("CREATE VIEW t AS {}".format, SELECTS),
    st.builds("COPY ({}) TO STDOUT".format, SELECTS | DML),
    st.builds("COPY orders{} FROM STDIN".format, COLUMN_LISTS),
    st.builds("COPY public.orders{} TO STDOUT (HEADER)".format, COLUMN_LISTS),
    st.builds("DO $${}$$".format, SELECTS),
)
SQL = st.lists(WRAPPED, min_size=1, max_size=2).map(" ; ".join)


def check(text: bytes) -> None:
    failure = parse(text).failure
    for planner in PLANNERS:
        plan = planner.plan(text)
        assert plan.reason != "internal_error", plan.explanations
        if plan.refusal is not None:
            continue
        if plan.twin is not None and failure is None:
            assert parse(plan.twin).failure is None, plan.twin.decode()
        if not plan.edits:
            assert plan.text is text
        elif failure is None:
            assert parse(plan.text).failure is None, plan.text.decode()
            if plan.fallback is not None:
                assert parse(plan.fallback.text).failure is None, plan.fallback.text.decode()


@given(st.binary(max_size=200))
@example(b"\xff orders")
@example(b"select * from orders\0; drop table orders")
def test_any_bytes_give_a_plan(text: bytes) -> None:
    check(text)


@given(SQL)
@settings(max_examples=150, deadline=None)
def test_statements_give_plans_whose_texts_are_still_sql(text: str) -> None:
    check(text.encode())


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_damaged_statements_give_plans(data: st.DataObject) -> None:
    text = data.draw(SQL).encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    check(text[:start] + data.draw(st.binary(max_size=3)) + text[end:])


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "1+" * 50_000 + "1 FROM orders",
        "SELECT " + "(" * 5_000 + "1" + ")" * 5_000 + " FROM orders",
        "SELECT * FROM " + "(SELECT * FROM " * 150 + "orders" + ") x" * 150,
        "UPDATE orders SET note = " + " || ".join(["note"] * 3_000),
        "UPDATE orders SET status = '" + "x" * MAX_BYTES + "'",
    ],
)
def test_long_and_deep_texts_are_bounded(text: str) -> None:
    for planner in PLANNERS[:2]:
        plan = planner.plan(text.encode())
        assert plan.reason != "internal_error", plan.explanations


@pytest.mark.parametrize(
    ("table", "side", "sent"),
    [(ORDERS, "old", True), (ORDERS, "new", False), (FROZEN, "old", True), (CLOSED, "new", False)],
)
def test_what_cannot_be_looked_into_is_sent_only_where_names_and_columns_are_the_physical_ones(
    table: TableModel, side: str, sent: bool
) -> None:
    text = b"INSERT INTO orders VALUES ('" + b"x" * MAX_BYTES + b"')"
    assert parse(text).failure is Failure.LIMIT
    plan = Planner([table], side).plan(text)  # type: ignore[arg-type]
    assert (plan.kind, plan.refusal is None) == (Kind.UNPARSED, sent)
    assert plan.guarded == (table is ORDERS and sent)
    assert Planner([table], side).plan(text.replace(b"orders", b"others")).refusal is None  # type: ignore[arg-type]
