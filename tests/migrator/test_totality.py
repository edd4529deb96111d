"""The catalogue of expressions that cannot fail: what it proves never raises, what can raise it does not prove."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from migrator.errors import Refused
from migrator.expressions import parse_expression
from migrator.totality import ColumnType, prove, prove_cast

COLUMNS = {
    "t": ColumnType("text"),
    "n": ColumnType("integer"),
    "b": ColumnType("bigint", not_null=True),
    "f": ColumnType("boolean"),
    "v": ColumnType("character varying"),
    "m": ColumnType("numeric"),
    "d": ColumnType("date"),
    "j": ColumnType("json"),
}

TOTAL = [
    "t",
    "CASE t WHEN 'a' THEN 1 WHEN 'b' THEN 2 ELSE 0 END",
    "CASE WHEN n > 3 AND NOT f THEN t ELSE 'x' || t END",
    "coalesce(n, 0)",
    "coalesce(t, 'x')",
    "nullif(n, 3)",
    "greatest(n, 5)",
    "n::bigint",
    "n::numeric::text",
    "n IN (1, 2, 3)",
    "t IS NULL OR t = ''",
    "n IS DISTINCT FROM 4",
    "upper(trim(t)) || lower(v)",
    "length(t)",
    "concat(t, n, d)",
    "d::text",
    "b::double precision",
    "'2020-01-01'::date",
    "floor(m)",
    "f IS NOT TRUE",
    "-5",
]
NOT_PROVED = [
    "t::int",
    "n + 1",
    "b::int",
    "n / 2",
    "t::date",
    "substr(t, n)",
    "m::numeric(5,2)",
    "t::varchar(3)",
    "repeat(t, n)",
    "abs(n)",
    "j::text",
    "j = j",
    "t LIKE v",
    "frobnicate(t)",
    "public.upper(t)",
    "d + n",
    "-n",
    "n = ANY (ARRAY[1])",
    "CASE WHEN t::int > 1 THEN 1 END",
    "coalesce(t::int, 0)",
]


@pytest.mark.parametrize("text", TOTAL)
def test_proved(text: str) -> None:
    assert prove(parse_expression(text, "up").node, COLUMNS).total


@pytest.mark.parametrize("text", NOT_PROVED)
def test_not_proved(text: str) -> None:
    assert not prove(parse_expression(text, "up").node, COLUMNS).total


async def test_what_is_proved_never_raises_on_a_server(db: Any) -> None:
    await db.execute(
        "CREATE TABLE x (t text, n int, b bigint NOT NULL, f bool, v varchar, m numeric, d date, j json);"
        " INSERT INTO x VALUES (NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL),"
        " ('', -2147483648, -9223372036854775808, true, '', 'NaN', '-infinity', '{}'),"
        " (repeat('ü%_\\', 50), 2147483647, 9223372036854775807, false, 'x', 1e300, 'infinity', 'null'),"
        " ('a', 0, 1, true, 'b', -0.0001, '4713-01-01 BC', '1')"
    )
    for text in TOTAL:
        await db.fetch(f"SELECT ({text}) FROM x")


async def test_the_proved_type_is_the_servers_type(db: Any) -> None:
    await db.execute("CREATE TABLE x (t text, n int, b bigint, f bool, v varchar, m numeric, d date, j json)")
    for text in TOTAL:
        proof = prove(parse_expression(text, "up").node, COLUMNS)
        actual = await db.fetchval(
            f"SELECT format_type(pg_typeof(({text}))::oid, -1) FROM (VALUES (1)) one LEFT JOIN x ON true"
        )
        assert proof.type in {actual, "unknown"}, text


@pytest.mark.parametrize(
    ("text", "target", "total"),
    [
        ("CASE t WHEN 'a' THEN 1 ELSE 32767 END", "smallint", True),
        ("CASE t WHEN 'a' THEN 1 ELSE 32768 END", "smallint", False),
        ("CASE t WHEN 'a' THEN -32768 END", "smallint", True),
        ("n", "smallint", False),
        ("n", "bigint", True),
        ("t", "character varying", True),
        ("n", "text", True),
        ("b", "integer", False),
        ("t", "integer", False),
        ("NULL", "integer", True),
    ],
)
def test_casts(text: str, target: str, total: bool) -> None:
    assert prove_cast(parse_expression(text, "up").node, target, COLUMNS).total is total


@pytest.mark.parametrize(
    ("text", "not_null"),
    [
        ("CASE t WHEN 'a' THEN 1 ELSE 0 END", True),
        ("CASE t WHEN 'a' THEN 1 END", False),
        ("coalesce(t, 'x')", True),
        ("b", True),
        ("n", False),
        ("nullif(b, 1)", False),
        ("t IS NULL", True),
        ("upper(t)", False),
        ("concat(t)", True),
    ],
)
def test_not_null(text: str, not_null: bool) -> None:
    assert prove(parse_expression(text, "up").node, COLUMNS).not_null is not_null


def test_references_are_replaced_where_they_stand_and_nowhere_else() -> None:
    text = "SELECT CASE WHEN \"We ird\" = 'ü status' THEN Status /* status */ ELSE orders.status || 'x' END -- status"
    expression = parse_expression(text, "up", ["orders"])
    assert expression.names == ("We ird", "status")
    assert expression.replace(lambda name: f"<{name}>") == (
        "CASE WHEN <We ird> = 'ü status' THEN <status> /* status */ ELSE <status> || 'x' END -- status"
    )


@pytest.mark.parametrize(
    "text", ["", "1, 2", "1) OR (1", "$1", "a.b.c", "other.x", "*", "x.*", "(SELECT 1)", "DEFAULT"]
)
def test_what_is_no_row_expression_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        parse_expression(text, "up", ["orders"])


async def test_functions_never_raise_even_where_the_expression_does(db: Any, migrator: Any) -> None:
    await db.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    path = migrator.file(
        "0001_t",
        "operations: [{alter_column: {table: t, column: v, type: 'numeric(4,1)', up: 'v::numeric', down: v::text}}]",
    )
    await migrator.start(path, "expanded")
    rows = await db.fetch(
        "SELECT v, dualwire.up_1_1(v) AS up, dualwire.up_ok_1_1(v) AS ok, dualwire.up_why_1_1(v) AS why"
        " FROM unnest(ARRAY['1.25', 'x', '99999', NULL]) v"
    )
    assert [(r["v"], None if r["up"] is None else str(r["up"]), r["ok"]) for r in rows] == [
        ("1.25", "1.3", True),
        ("x", None, False),
        ("99999", None, False),
        (None, None, True),
    ]
    assert "overflow" in rows[2]["why"]
    assert isinstance(db, asyncpg.Connection)
