"""Mappings that lose something, through sidecars of both versions: many to one, partial, raising, volatile.

Whoever wrote a row last is right: the dual write, the guard, verify, repair and rollback follow each row's direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from migrator.errors import Refused
from tests.conftest import Database, SidecarFactory
from tests.migrator.conftest import Migrator

NAME = "0001_items"
TABLE = """
CREATE TABLE items (id integer PRIMARY KEY, status text NOT NULL, code text, note text);
INSERT INTO items VALUES (1, 'new', '10', 'a'), (2, 'paid', '20', 'b'), (3, 'new', NULL, 'c');
"""
MANY_TO_ONE = """
operations:
  - alter_column:
      table: items
      column: status
      type: smallint
      up: CASE status WHEN 'new' THEN 0 WHEN 'paid' THEN 1 ELSE 9 END
      down: CASE status WHEN 0 THEN 'new' WHEN 1 THEN 'paid' ELSE 'other' END
"""
PARTIAL = """
operations:
  - alter_column:
      table: items
      column: code
      type: integer
      up: CAST(code AS integer)
      down: CAST(code AS text)
"""
CHECKED = """
operations:
  - alter_column:
      table: items
      column: code
      nullable: false
      up: nullif(code, '0')
      down: code
      check: {name: code_is_short, constraint: length(code) < 4}
"""
VOLATILE = """
operations:
  - add_column:
      table: items
      column: {name: token, type: text, nullable: true}
      up: md5(random()::text) || status
"""
SAVE = "UPDATE items SET status = $2, code = $3, note = $4 WHERE id = $1"
"""What an ORM sends that saves every column of an object."""


@pytest.fixture
async def migrator(database: Database, tmp_path: Any) -> Migrator:
    made = Migrator(database.dsn, tmp_path)
    await made.init()
    return made


@pytest.fixture
def items(database: Database, migrator: Migrator, sidecar: SidecarFactory) -> Callable[..., Any]:
    """``items(file, until)``: the migration as far as that, and a client of each version (the new one if served)."""

    async def start(text: str, until: Any = "verified") -> tuple[Any, Any, Any]:
        database.sql(TABLE)
        await migrator.start(migrator.file(NAME, text), until)
        proxy = sidecar()
        old = await proxy.connect(version="base")
        new = await proxy.connect(version=NAME) if until in ("verified", "cutover") else None
        return old, new, await database.connect()

    return start


async def _row(direct: Any, key: int, *columns: str) -> tuple[Any, ...]:
    return tuple(await direct.fetchrow(f"SELECT {', '.join(columns)} FROM items WHERE id = $1", key))


async def test_an_orm_that_saves_every_column_keeps_what_only_the_new_shape_holds(
    items: Any, migrator: Migrator
) -> None:
    old, new, direct = await items(MANY_TO_ONE)
    await new.execute("UPDATE items SET status = 7 WHERE id = 1")
    loaded = await old.fetchrow("SELECT * FROM items WHERE id = 1")
    assert loaded["status"] == "other"
    await old.execute(SAVE, 1, loaded["status"], loaded["code"], "touched")
    assert await new.fetchval("SELECT status FROM items WHERE id = 1") == 7
    assert await _row(direct, 1, "_dualwire_mark", "note") == (3, "touched")
    assert (await migrator.verify()).clean


async def test_a_change_by_an_old_speaker_takes_the_row_over(items: Any, migrator: Migrator) -> None:
    old, new, direct = await items(MANY_TO_ONE)
    await new.execute("UPDATE items SET status = 7 WHERE id = 1")
    await old.execute(SAVE, 1, "strange", None, None)
    assert await new.fetchval("SELECT status FROM items WHERE id = 1") == 9
    assert await _row(direct, 1, "status", "_dualwire_mark") == ("strange", 1)
    # The new version reads 9, and saves it with everything else: that is no change.
    await new.execute("UPDATE items SET status = 9, code = 'x' WHERE id = 1")
    assert await old.fetchval("SELECT status FROM items WHERE id = 1") == "strange"
    assert (await migrator.verify()).clean


async def test_writes_past_the_sidecars_keep_what_only_the_other_shape_holds(
    items: Any, migrator: Migrator
) -> None:
    _, new, direct = await items(MANY_TO_ONE)
    await new.execute("UPDATE items SET status = 7 WHERE id = 1")
    await direct.execute(SAVE, 1, "other", "11", "bypass")
    assert await _row(direct, 1, "status", "_dualwire_new_status", "_dualwire_mark") == ("other", 7, 3)
    assert (await migrator.verify()).clean


async def test_repair_never_carries_a_lossy_value_backwards(items: Any, migrator: Migrator) -> None:
    _, new, direct = await items(MANY_TO_ONE)
    await new.execute("UPDATE items SET status = 7 WHERE id = 1")
    await direct.execute("ALTER TABLE items DISABLE TRIGGER USER; UPDATE items SET status = 'broken'")
    await direct.execute("ALTER TABLE items ENABLE ALWAYS TRIGGER zzz_dualwire_guard")
    await direct.execute("ALTER TABLE items ENABLE ALWAYS TRIGGER zzz_dualwire_guard_fill")
    found = await migrator.verify()
    assert sorted(k["key"]["id"] for t in found.tables for k in t.keys) == [1, 2, 3]
    assert (await migrator.verify(repair=True)).clean
    # Row 1 was the new version's, the others the old one's.
    assert await _row(direct, 1, "status", "_dualwire_new_status") == ("other", 7)
    assert await _row(direct, 2, "status", "_dualwire_new_status") == ("broken", 9)


async def test_a_rollback_names_the_rows_whose_value_only_the_new_shape_holds(
    items: Any, migrator: Migrator
) -> None:
    old, new, direct = await items(MANY_TO_ONE)
    await new.execute("UPDATE items SET status = 7 WHERE id = 1")
    await new.execute("UPDATE items SET status = 1 WHERE id = 3")
    await new.close()
    with pytest.raises(Refused) as refused:
        await migrator.rollback()
    assert [item["keys"] for item in refused.value.data["lost"]] == [[{"id": 1}]]
    await migrator.rollback(accept_loss=True)
    assert [r["status"] for r in await direct.fetch("SELECT status FROM items ORDER BY id")] == [
        "other",
        "paid",
        "paid",
    ]
    await old.execute(SAVE, 1, "new", "1", "after")


async def test_an_up_that_raises_never_fails_a_write_in_a_transaction_or_a_pipeline(
    items: Any, migrator: Migrator
) -> None:
    old, _, direct = await items(PARTIAL, "backfilled")
    async with old.transaction():
        await old.execute("UPDATE items SET code = 'no number' WHERE id = 1")
        await old.execute("INSERT INTO items VALUES (4, 'new', 'neither', NULL), (5, 'new', '55', NULL)")
        await old.execute("UPDATE items SET code = '21' WHERE id = 2")
    await old.executemany(
        "INSERT INTO items (id, status, code) VALUES ($1, 'new', $2)", [(6, "6"), (7, "x"), (8, "8")]
    )
    listed = await direct.fetch(
        "SELECT (key->>'id')::int, direction, reason FROM dualwire.problem ORDER BY 1"
    )
    assert [row[0] for row in listed] == [1, 4, 7]
    assert all(row["direction"] == "old" and "integer" in row["reason"] for row in listed)
    rows = await direct.fetch(
        "SELECT id, code, _dualwire_new_code FROM items WHERE id IN (1, 2, 5) ORDER BY 1"
    )
    assert [tuple(row) for row in rows] == [(1, "no number", None), (2, "21", 21), (5, "55", 55)]
    assert not (await migrator.verify()).clean
    await old.execute("UPDATE items SET code = '0' WHERE code IN ('no number', 'neither', 'x')")
    assert (await migrator.verify()).clean


async def test_a_row_that_breaks_the_new_versions_constraints_is_a_problem_and_no_error(
    items: Any, migrator: Migrator
) -> None:
    old, _, direct = await items(CHECKED, "backfilled")
    for code in (None, "0", "far too long"):
        await old.execute("UPDATE items SET code = $1 WHERE id = 1", code)
        assert await direct.fetchval("SELECT count(*) FROM dualwire.problem WHERE key->>'id' = '1'") == 1
        assert await _row(direct, 1, "code", "_dualwire_mark") == (code, None)
    await old.execute("UPDATE items SET code = 'fit' WHERE id IN (1, 3)")
    assert (await migrator.verify()).clean
    assert await direct.fetchval("SELECT count(*) FROM dualwire.problem") == 0
    assert await _row(direct, 1, "code", "_dualwire_new_code") == ("fit", "fit")


async def test_a_volatile_up_is_evaluated_once_and_verified_by_presence(
    items: Any, migrator: Migrator
) -> None:
    old, new, direct = await items(VOLATILE)
    before = await new.fetchval("SELECT token FROM items WHERE id = 1")
    assert before.endswith("new")
    await old.execute(SAVE, 1, "new", "10", "saved")
    assert await new.fetchval("SELECT token FROM items WHERE id = 1") == before
    await old.execute("UPDATE items SET status = 'sent' WHERE id = 1")
    assert (await new.fetchval("SELECT token FROM items WHERE id = 1")).endswith("sent")
    await old.execute("INSERT INTO items (id, status) VALUES (9, 'late')")
    assert (await new.fetchval("SELECT token FROM items WHERE id = 9")).endswith("late")
    assert (await migrator.verify()).clean
    await direct.close()
