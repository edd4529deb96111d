"""Table models survive the way through the routing state, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orders import CLOSED, FROZEN, ORDERS

from proxy.rewrite.codec import table_from_json, table_to_json
from proxy.rewrite.model import Column, Direction, LogicalColumn, Mirror, TableModel, Virtual

TEXTS = st.text(min_size=1, max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> TableModel:
    names = draw(st.lists(TEXTS, min_size=1, max_size=5, unique=True))
    some = st.lists(st.sampled_from(names), max_size=3).map(tuple)
    logical = st.lists(st.builds(LogicalColumn, TEXTS, st.sampled_from(names)), max_size=4).map(tuple)
    mirror = st.builds(Mirror, st.sampled_from(names), TEXTS, some, st.booleans())
    direction = st.builds(Direction, st.lists(mirror, max_size=2).map(tuple), st.none() | TEXTS, some)
    columns = tuple(
        draw(
            st.builds(
                Column,
                st.just(name),
                TEXTS,
                TEXTS,
                st.booleans(),
                st.none() | st.text(max_size=5),
                st.sampled_from(["none", "stable", "volatile"]),
                st.sampled_from(["", "a", "d"]),
                st.booleans(),
            )
        )
        for name in names
    )
    pair = st.none() | st.tuples(TEXTS, TEXTS)
    virtuals = st.builds(
        Virtual,
        st.builds(Column, TEXTS, TEXTS, TEXTS),
        TEXTS,
        some,
        st.none() | st.sampled_from(names),
        st.none() | TEXTS,
    )
    return TableModel(
        schema=draw(TEXTS),
        name=draw(TEXTS),
        oid=draw(st.integers(1, 2**32 - 1)),
        columns=columns,
        primary_key=draw(some),
        old=draw(logical),
        new=draw(logical),
        up=draw(direction),
        down=draw(direction),
        mark=draw(st.none() | st.sampled_from(names)),
        guard=draw(st.sampled_from(["sync", "check", "off"])),
        shadows=tuple(draw(st.lists(TEXTS, max_size=2))),
        virtuals=tuple(draw(st.lists(virtuals, max_size=2))),
        relation=draw(pair),
        twin_old=draw(pair),
        twin_new=draw(pair),
        copy_old=draw(pair),
        copy_new=draw(pair),
        inline=draw(st.booleans()),
        labels=tuple(draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=2))),
    )


@given(tables())
def test_a_table_survives_the_round_trip(table: TableModel) -> None:
    assert table_from_json(json.loads(json.dumps(table_to_json(table)))) == table


@pytest.mark.parametrize("table", [ORDERS, FROZEN, CLOSED])
def test_real_tables_survive_the_round_trip(table: TableModel) -> None:
    assert table_from_json(json.loads(json.dumps(table_to_json(table)))) == table


def _damaged(path: tuple[Any, ...], value: Any) -> Any:
    document = json.loads(json.dumps(table_to_json(ORDERS)))
    node = document
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), "red", "table: unknown key 'colour'"),
        (("mark",), ..., "table: missing key 'mark'"),
        (("oid",), "1", "table.oid: expected int"),
        (("oid",), True, "table.oid: expected int"),
        (("guard",), "loose", "table.guard: expected one of 'sync', 'check', 'off'"),
        (("columns", 0, "identity"), "x", r"table.columns\[0\].identity: expected one of"),
        (("columns", 1, "colour"), 1, r"table.columns\[1\]: unknown key 'colour'"),
        (("old", 0), ["id"], r"table.old\[0\]: expected \[name, column\]"),
        (("up", "mirrors", 0, "sources"), [1], r"expected a list of strings"),
        (("up",), None, "up: expected an object"),
        (("mark",), "nowhere", "table public.orders: no such column: nowhere"),
        (("down", "mirrors", 0, "target"), "nowhere", "no such column: nowhere"),
        (("new", 1), ["state", "nowhere"], "no such column: nowhere"),
    ],
)
def test_what_is_not_understood_is_rejected(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_from_json(_damaged(path, value))


@pytest.mark.parametrize("document", [None, [], "x", {}])
def test_what_is_no_document_is_rejected(document: Any) -> None:
    with pytest.raises(ValueError, match="table"):
        table_from_json(document)
