"""Errors where the rows are in another table than the client names, and where its columns are gone."""

from __future__ import annotations

import re

import pytest

from tests.regressions import raw
from tests.replies import test_errors
from tests.replies.conftest import COMPAT, FLIPPED, REPLACED, Migrating
from tests.replies.test_errors import said

ITEMS = {
    "not null": "INSERT INTO items (id, code) VALUES (9, NULL)",
    "check": "INSERT INTO items (id, code, qty) VALUES (9, 'x', 0)",
    "check by update": "UPDATE items SET qty = -qty WHERE id = 2",
    "unique": "INSERT INTO items (id, code) VALUES (9, 'a')",
    "unique by update": "UPDATE items SET code = 'b' WHERE id = 1",
    "primary key": "INSERT INTO items (id, code) VALUES (1, 'x')",
    "primary key by update": "UPDATE items SET id = 2 WHERE id = 1",
    "foreign key": "INSERT INTO items (id, code, customer) VALUES (9, 'x', 99)",
    "foreign key from another table": "DELETE FROM items WHERE id = 1",
    "foreign key to the table": "INSERT INTO notes VALUES (9, 99)",
    "too long": "UPDATE items SET code = 'much too long' WHERE id = 1",
    "no number": "INSERT INTO items (id, code) VALUES ('x', 'x')",
    "undefined column": "SELECT id, colour FROM items",
    "undefined column with a hint": "SELECT i.cod FROM items AS i",
    "undefined column to set": "UPDATE items SET colour = 1 WHERE id = 1",
    "undefined column in WHERE of UPDATE": "UPDATE items SET qty = 1 WHERE cod = 'a'",
    "ambiguous": "SELECT id FROM items JOIN notes ON notes.item = items.id",
    "types": "SELECT * FROM items WHERE id = 'x'::text",
    "types in UPDATE": "UPDATE items SET id = now()",
    "division": "UPDATE items SET qty = 1 / (id - 1) WHERE id = 1",
    "twice": "UPDATE items SET id = 1, id = 2",
    "syntax": "INSERT INTO items (id) VALUE (1)",
    "not ASCII before it": "UPDATE items SET note = 'ä€ü', id = 3 WHERE colour = 'ß'",
}
SHOWN = r"Failing row contains \(id, code, amount, customer, note\) = \(.*\)\."
OLD_ONLY = {"out of range": "INSERT INTO items (id, code) VALUES (3000000000, 'x')"}


async def same(migrating: Migrating, side: str, sql: str) -> None:
    """The error that a client is told equals that of a server which has this version only."""
    through, native = await migrating.both(side)
    for request in (raw.query(sql), raw.extended(sql)):
        expected, got = said(await native.ask(request)), said(await through.ask(request))
        assert len(expected) == 1, "the case is no error"
        if migrating.case is COMPAT and "Failing row" in expected[0].get("D", ""):
            # What is gone cannot be shown.
            del expected[0]["D"]
            assert re.fullmatch(SHOWN, got[0].pop("D", SHOWN.replace("\\", "")))
        assert got == expected


@pytest.mark.parametrize("fleet", [REPLACED, FLIPPED], ids=["verified", "cutover"], indirect=True)
@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("name", [*ITEMS, *OLD_ONLY])
async def test_an_error_names_the_table_that_the_client_knows(
    migrating: Migrating, side: str, name: str
) -> None:
    if side == "new" and name in OLD_ONLY:
        pytest.skip("no error in this version")
    await same(migrating, side, {**ITEMS, **OLD_ONLY}[name])


@pytest.mark.parametrize("fleet", [COMPAT], ids=["compat"], indirect=True)
@pytest.mark.parametrize("name", test_errors.OLD)
async def test_an_error_is_that_of_a_version_whose_columns_are_gone(migrating: Migrating, name: str) -> None:
    await same(migrating, "old", test_errors.OLD[name])
