"""Columns of which nothing is left: what is written to them is refused, or given up where that was agreed to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from virtuals import ORDERS

from proxy.rewrite.codec import table_from_json, table_to_json
from proxy.rewrite.model import Direction
from proxy.rewrite.planner import Planner

REFUSED = replace(ORDERS, up=Direction())
AGREED = replace(
    REFUSED, virtuals=tuple(replace(v, discards=v.column.name == "legacy") for v in ORDERS.virtuals)
)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("INSERT INTO orders (note, legacy) VALUES ('n', 'abc')", "INSERT INTO orders (note) VALUES ('n')"),
        ("INSERT INTO orders (legacy) VALUES ($1)", 'INSERT INTO orders ("id") VALUES (DEFAULT)'),
        (
            "UPDATE orders SET legacy = 'x', note = 'n' WHERE id = 1",
            "UPDATE orders SET note = 'n' WHERE id = 1",
        ),
        ("UPDATE orders SET legacy = $1", 'UPDATE orders SET "{0}" = "orders"."{0}"'),
        (
            "UPDATE orders AS o SET (legacy) = ROW('y') WHERE id = 1",
            'UPDATE orders AS o SET "{0}" = "o"."{0}" WHERE id = 1',
        ),
    ],
)
def test_what_nothing_holds_any_more(text: str, sent: str) -> None:
    first = next(c.name for c in ORDERS.columns if c.name not in ORDERS.primary_key)
    assert Planner([AGREED], "old").plan(text.encode()).text.decode() == sent.format(first)
    refusal = Planner([REFUSED], "old").plan(text.encode()).refusal
    assert refusal is not None
    assert refusal.sqlstate == "0A000"


def test_the_agreement_is_published() -> None:
    assert table_from_json(table_to_json(AGREED)) == AGREED
