"""What a client is told of parameters and columns is its version's: names, types, modifiers, and rows alike."""

from __future__ import annotations

import pytest

from proxy.session.cure import shape
from proxy.wire import messages as m
from tests.regressions import raw
from tests.replies.conftest import Migrating

OLD = [
    "SELECT * FROM orders ORDER BY id",
    "SELECT o.*, customers.status FROM orders AS o JOIN customers ON customers.id = o.customer ORDER BY 1",
    "SELECT status, code, amount * 2, upper(code) FROM orders WHERE status = $1 ORDER BY id",
    "SELECT orders FROM orders WHERE code = $1",
    "UPDATE orders SET status = $1, code = $2 WHERE id = $3 RETURNING *",
    "INSERT INTO orders (id, status, amount) VALUES ($1, $2, $3) RETURNING status, amount",
    "INSERT INTO orders VALUES ($1, $2, $3, $4, $5, $6)",
    "DELETE FROM orders WHERE status = $1 AND customer = $2 RETURNING orders.*",
    "WITH o AS (UPDATE orders SET note = $1 WHERE id = $2 RETURNING *) SELECT * FROM o",
    "SELECT count(*), min(status) FROM orders GROUP BY status",
]
NEW = [
    "SELECT * FROM orders ORDER BY id",
    "SELECT o.*, customers.status FROM orders AS o JOIN customers ON customers.id = o.buyer ORDER BY 1",
    "SELECT state, sku, amount * 2, upper(sku) FROM orders WHERE state = $1 ORDER BY id",
    "SELECT orders FROM orders WHERE sku = $1",
    "UPDATE orders SET state = $1, sku = $2 WHERE id = $3 RETURNING *",
    "INSERT INTO orders (id, state, amount) VALUES ($1, $2, $3) RETURNING state, amount",
    "INSERT INTO orders VALUES ($1, $2, $3, $4, $5, $6)",
    "DELETE FROM orders WHERE state = $1 AND buyer = $2 RETURNING orders.*",
    "WITH o AS (UPDATE orders SET note = $1 WHERE id = $2 RETURNING *) SELECT * FROM o",
    "SELECT count(*), min(state) FROM orders GROUP BY state",
]
ROW_TYPES = ("SELECT orders FROM",)
"""A whole row's type is the table's own on a server, and an anonymous record where the version has other columns."""


@pytest.mark.parametrize(
    ("side", "sql"),
    [("old", sql) for sql in OLD] + [("new", sql) for sql in NEW],
    ids=lambda value: value[:50],
)
async def test_a_statement_is_described_as_its_version_has_it(
    migrating: Migrating, side: str, sql: str
) -> None:
    through, native = await migrating.both(side)
    request = raw.parse(sql) + raw.describe() + raw.SYNC
    got, expected = await through.ask(request), await native.ask(request)
    assert raw.kinds(got) == raw.kinds(expected)
    assert got[1] == expected[1]  # the parameters
    if expected[2][0] == m.ROW_DESCRIPTION and not sql.startswith(ROW_TYPES):
        assert shape(got[2]) == shape(expected[2])
    if "$1" not in sql:
        got, expected = await through.query(sql), await native.query(sql)
        assert [f for f in got if f[0] != m.ROW_DESCRIPTION] == [
            f for f in expected if f[0] != m.ROW_DESCRIPTION
        ]
