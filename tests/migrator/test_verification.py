"""Verification finds what is wrong, names it, and repairs each row in its own direction only."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.errors import Differences
from tests.migrator.conftest import Migrator

SETUP = """
CREATE TABLE items (id int PRIMARY KEY, size text);
INSERT INTO items SELECT i, CASE WHEN i % 2 = 0 THEN 'big' ELSE 'small' END FROM generate_series(1, 30) i;
"""
SIZES = """
operations:
  - alter_column:
      table: items
      column: size
      type: int
      up: CASE size WHEN 'big' THEN 2 ELSE 1 END
      down: CASE size WHEN 2 THEN 'big' ELSE 'small' END
"""


@pytest.fixture
async def items(db: Any, migrator: Migrator) -> Migrator:
    await db.execute(SETUP)
    await migrator.start(migrator.file("0001_sizes", SIZES), "backfilled")
    return migrator


async def break_behind_the_guard(db: Any, *statements: str) -> None:
    for trigger in ("zzz_dualwire_guard", "zzz_dualwire_guard_fill"):
        await db.execute(f"ALTER TABLE items DISABLE TRIGGER {trigger}")
    for statement in statements:
        await db.execute(statement)
    for trigger in ("zzz_dualwire_guard", "zzz_dualwire_guard_fill"):
        await db.execute(f"ALTER TABLE items ENABLE ALWAYS TRIGGER {trigger}")


async def test_a_clean_table_has_equal_digests(items: Migrator) -> None:
    result = await items.verify()
    assert result.clean
    [table] = result.tables
    assert (table.rows, table.old, table.new, table.unmarked) == (30, 30, 0, 0)
    assert table.digest == table.expected != 0


async def test_differing_keys_are_named_and_the_phase_stays(items: Migrator, db: Any) -> None:
    await break_behind_the_guard(
        db,
        "UPDATE items SET size = 'big' WHERE id = 3",
        'UPDATE items SET "_dualwire_new_size" = 2, "_dualwire_mark" = 4 WHERE id = 5',
        "INSERT INTO items VALUES (31, 'big')",
    )
    with pytest.raises(Differences, match="3 differing rows, 1 of them never carried over") as caught:
        await items.start(items.directory / "0001_sizes.yaml")
    [table] = caught.value.data["verify"]["tables"]
    assert {k["key"]["id"]: k["what"] for k in table["keys"]} == {
        3: "the shapes differ",
        5: "the shapes differ",
        31: "never carried over",
    }
    assert table["digest"] != table["digest_expected"]
    assert caught.value.exit_code == 4
    assert await db.fetchval("SELECT phase FROM dualwire.migration") == "backfilled"
    assert await db.fetchval("SELECT verified_epoch FROM dualwire.migration") is None


async def test_repair_follows_each_rows_own_direction(items: Migrator, db: Any) -> None:
    await break_behind_the_guard(
        db,
        "UPDATE items SET size = 'big' WHERE id = 3",
        'UPDATE items SET "_dualwire_new_size" = 2, "_dualwire_mark" = 4 WHERE id = 5',
        'UPDATE items SET "_dualwire_new_size" = 7, "_dualwire_mark" = 3 WHERE id = 7',
        "INSERT INTO items VALUES (31, 'big')",
    )
    result = await items.verify(repair=True)
    assert result.clean
    rows = await db.fetch(
        'SELECT id, size, "_dualwire_new_size" FROM items WHERE id IN (3, 5, 7, 31) ORDER BY id'
    )
    assert [tuple(r) for r in rows] == [(3, "big", 2), (5, "big", 2), (7, "small", 7), (31, "big", 2)]


async def test_problems_of_rows_that_are_gone_or_right_again_are_forgotten(items: Migrator, db: Any) -> None:
    await db.execute(
        "INSERT INTO dualwire.problem (migration, table_name, key, direction, reason) VALUES"
        " (1, 'public.items', '{\"id\": 99}', 'old', 'gone'), (1, 'public.items', '{\"id\": 1}', 'old', 'right')"
    )
    assert (await items.verify()).clean
    assert await db.fetchval("SELECT count(*) FROM dualwire.problem") == 0


async def test_a_volatile_up_is_checked_for_presence_not_recomputed(db: Any, migrator: Migrator) -> None:
    await db.execute(SETUP)
    text = """
operations:
  - add_column:
      table: items
      up: gen_random_uuid()
      column: {name: token, type: uuid}
"""
    await migrator.start(migrator.file("0001_token", text))
    before = await db.fetchval('SELECT "_dualwire_new_token" FROM items WHERE id = 1')
    assert before is not None
    await db.execute("UPDATE items SET size = 'huge' WHERE id = 1")
    assert await db.fetchval('SELECT "_dualwire_new_token" FROM items WHERE id = 1') == before
    await db.execute("INSERT INTO items VALUES (31, 'x')")
    assert await db.fetchval('SELECT "_dualwire_new_token" FROM items WHERE id = 31') is not None
    assert (await migrator.verify()).clean


async def test_a_volatile_up_with_sources_follows_changes_of_them(db: Any, migrator: Migrator) -> None:
    await db.execute(SETUP)
    text = """
operations:
  - add_column:
      table: items
      up: size || '-' || floor(random() * 1000000)::text
      column: {name: label, type: text, nullable: true}
"""
    await migrator.start(migrator.file("0001_label", text))
    await db.execute("UPDATE items SET size = 'huge' WHERE id = 1")
    label = await db.fetchval('SELECT "_dualwire_new_label" FROM items WHERE id = 1')
    assert label.startswith("huge-")
    await db.execute("UPDATE items SET \"_dualwire_new_label\" = 'mine' WHERE id = 2")
    row = await db.fetchrow('SELECT "_dualwire_new_label", "_dualwire_mark" FROM items WHERE id = 2')
    assert tuple(row) == ("mine", 3)


async def test_settings_of_a_session_do_not_change_what_up_gives(db: Any, migrator: Migrator) -> None:
    await db.execute(
        "CREATE TABLE items (id int PRIMARY KEY, at timestamptz); INSERT INTO items VALUES (1, '2026-01-01 00:00Z')"
    )
    text = """
operations:
  - alter_column:
      table: items
      column: at
      type: text
      up: at::text
      down: at::timestamptz
"""
    await migrator.start(migrator.file("0001_at", text))
    await db.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'")
    await db.execute("UPDATE items SET at = at + interval '1 h'")
    assert await db.fetchval('SELECT "_dualwire_new_at" FROM items') == "2026-01-01 01:00:00+00"
    assert (await migrator.verify()).clean
