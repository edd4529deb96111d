"""The guard: whatever writes past the sidecars, both shapes are right when the transaction ends, or it is listed.

`items` retypes `code` (text) to `number` (integer) with an up that fails for anything but digits and a new value
that the old shape can hold only as text; `status` is a total up with a lossy down.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from tests.migrator.conftest import Migrator

TABLES = """
CREATE TABLE items (id int PRIMARY KEY, status text NOT NULL, note text, code text);
INSERT INTO items VALUES (1, 'new', 'a', '10'), (2, 'paid', 'b', '20'), (3, 'new', 'c', NULL);
"""

MIGRATION = """
operations:
  - alter_column:
      table: items
      column: status
      type: smallint
      up: CASE status WHEN 'new' THEN 0 WHEN 'paid' THEN 1 ELSE 9 END
      down: CASE status WHEN 0 THEN 'new' WHEN 1 THEN 'paid' ELSE 'other' END
  - rename_column: {table: items, from: status, to: state}
  - alter_column:
      table: items
      column: code
      type: integer
      name: number
      up: CAST(code AS integer)
      down: CAST(number AS text)
"""

STATE, NUMBER, MARK = "_dualwire_new_state", "_dualwire_new_number", "_dualwire_mark"


@pytest.fixture
async def items(db: Any, migrator: Migrator) -> Any:
    """The table in phase backfilled, and a function that gives one row."""
    await db.execute(TABLES)
    await migrator.start(migrator.file("0001_items", MIGRATION), "backfilled")

    async def row(key: int) -> tuple[Any, ...]:
        record = await db.fetchrow(
            f'SELECT status, "{STATE}", code, "{NUMBER}", "{MARK}" FROM items WHERE id = $1', key
        )
        return tuple(record)

    return row


async def problems(db: Any) -> list[tuple[Any, ...]]:
    rows = await db.fetch("SELECT key->>'id', direction, reason FROM dualwire.problem ORDER BY 1")
    return [tuple(r) for r in rows]


async def repairs(db: Any) -> int:
    value = await db.fetchval(
        "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM dualwire.guard_repairs_1"
    )
    return int(value)


async def test_backfilled_rows_are_marked_old(db: Any, items: Any) -> None:
    assert await items(1) == ("new", 0, "10", 10, 1)
    assert await items(3) == ("new", 0, None, None, 1)
    assert await problems(db) == []


async def test_an_insert_that_knows_only_the_old_shape_is_carried_over(db: Any, items: Any) -> None:
    await db.execute("INSERT INTO items VALUES (10, 'paid', 'x', '77')")
    assert await items(10) == ("paid", 1, "77", 77, 1)


async def test_copy_is_carried_over(db: Any, items: Any) -> None:
    await db.copy_records_to_table("items", records=[(11, "paid", "5")], columns=["id", "status", "code"])
    assert await items(11) == ("paid", 1, "5", 5, 1)


async def test_an_insert_that_gives_only_the_new_shape_is_carried_back(db: Any, items: Any) -> None:
    await db.execute("ALTER TABLE items ALTER status DROP NOT NULL")
    await db.execute(f'INSERT INTO items (id, "{STATE}", "{NUMBER}") VALUES (12, 1, 5)')
    assert await items(12) == ("paid", 1, "5", 5, 3)


async def test_changed_old_columns_are_carried_over(db: Any, items: Any) -> None:
    await db.execute("UPDATE items SET status = 'paid', code = '11' WHERE id = 1")
    assert await items(1) == ("paid", 1, "11", 11, 2)
    await db.execute("UPDATE items SET status = 'what' WHERE id = 1")
    assert await items(1) == ("what", 9, "11", 11, 1)


async def test_changed_new_columns_are_carried_back(db: Any, items: Any) -> None:
    await db.execute(f'UPDATE items SET "{STATE}" = 1, "{NUMBER}" = 12 WHERE id = 1')
    assert await items(1) == ("paid", 1, "12", 12, 3)


async def test_a_value_that_only_the_new_shape_holds_survives_a_write_of_another_column(
    db: Any, items: Any
) -> None:
    await db.execute(f'UPDATE items SET "{STATE}" = 5 WHERE id = 1')
    assert await items(1) == ("other", 5, "10", 10, 3)
    before = await repairs(db)
    await db.execute("UPDATE items SET note = 'z', status = status WHERE id = 1")
    assert await items(1) == ("other", 5, "10", 10, 3)
    assert await repairs(db) == before


async def test_a_rewritten_write_does_not_fire_the_guard(db: Any, items: Any) -> None:
    before = await repairs(db)
    await db.execute(f'UPDATE items SET status = \'paid\', "{STATE}" = 1, "{MARK}" = 2 WHERE id = 1')
    await db.execute(f'UPDATE items SET status = \'other\', "{STATE}" = 7, "{MARK}" = 3 WHERE id = 2')
    await db.execute(f'INSERT INTO items (id, status, "{STATE}", "{MARK}") VALUES (20, \'new\', 0, 1)')
    assert await repairs(db) == before


async def test_both_changed_and_consistent_is_right_in_the_direction_that_agrees(db: Any, items: Any) -> None:
    await db.execute(f"UPDATE items SET status = 'other', \"{STATE}\" = 6 WHERE id = 1")
    assert await items(1) == ("other", 6, "10", 10, 3)
    await db.execute(f"UPDATE items SET status = 'what', \"{STATE}\" = 9 WHERE id = 1")
    assert await items(1) == ("what", 9, "10", 10, 1)
    assert await problems(db) == []


async def test_both_changed_and_inconsistent_is_a_problem_and_loses_nothing(db: Any, items: Any) -> None:
    await db.execute(f"UPDATE items SET status = 'paid', \"{STATE}\" = 6 WHERE id = 1")
    assert await items(1) == ("paid", 6, "10", 10, None)
    assert await problems(db) == [("1", "old", "both shapes were changed and do not agree")]
    await db.execute("UPDATE items SET status = 'new' WHERE id = 1")
    assert await items(1) == ("new", 0, "10", 10, 1)
    assert await problems(db) == []


async def test_a_sidecars_write_that_a_before_trigger_changes_follows_its_mark(db: Any, items: Any) -> None:
    await db.execute(
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.status := 'paid'; RETURN NEW; END $$;"
        " CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION shout()"
    )
    await db.execute(f'UPDATE items SET status = \'what\', "{STATE}" = 9, "{MARK}" = 2 WHERE id = 1')
    assert await items(1) == ("paid", 1, "10", 10, 1)
    await db.execute(f'INSERT INTO items (id, status, "{STATE}", "{MARK}") VALUES (21, \'new\', 0, 1)')
    assert (await items(21))[:2] == ("paid", 1)
    await db.execute("INSERT INTO items VALUES (22, 'new')")
    assert (await items(22))[:2] == ("paid", 1)


async def test_a_copied_mark_deceives_nobody(db: Any, items: Any) -> None:
    await db.execute(
        """
        DO $$ DECLARE r items; BEGIN
            SELECT * INTO r FROM items WHERE id = 1;
            r.id := 30; r.status := 'paid';
            INSERT INTO items VALUES (r.*);
        END $$
        """
    )
    assert await items(30) == ("paid", 1, "10", 10, 2)
    await db.execute(f'UPDATE items SET "{STATE}" = 5 WHERE id = 2')
    await db.execute(
        """
        DO $$ DECLARE r items; BEGIN
            SELECT * INTO r FROM items WHERE id = 2;
            r.id := 31; r.status := 'new';
            INSERT INTO items VALUES (r.*);
        END $$
        """
    )
    assert (await items(31))[:2] == ("new", 0)
    await db.execute("INSERT INTO items SELECT 32, status, note, code FROM items WHERE id = 2")
    assert (await items(32))[:2] == ("other", 9)


async def test_an_up_that_raises_is_a_problem_until_the_row_is_right_again(db: Any, items: Any) -> None:
    await db.execute("UPDATE items SET code = 'x1' WHERE id = 2")
    assert await items(2) == ("paid", 1, "x1", None, None)
    [(key, direction, reason)] = await problems(db)
    assert (key, direction) == ("2", "old")
    assert "invalid input syntax" in reason
    await db.execute("UPDATE items SET note = 'still wrong' WHERE id = 2")
    assert len(await problems(db)) == 1
    await db.execute("UPDATE items SET code = '3' WHERE id = 2")
    assert await items(2) == ("paid", 1, "3", 3, 1)
    assert await problems(db) == []


async def test_an_up_that_raises_where_the_new_value_is_null_anyway_is_noticed(db: Any, items: Any) -> None:
    await db.execute("UPDATE items SET code = 'x' WHERE id = 3")
    assert await items(3) == ("new", 0, "x", None, None)
    assert len(await problems(db)) == 1


async def test_an_old_speakers_rewritten_write_whose_up_fails_becomes_a_problem(db: Any, items: Any) -> None:
    """The sidecar writes NULL for the value and for the mark."""
    await db.execute(f'UPDATE items SET code = \'y\', "{NUMBER}" = NULL, "{MARK}" = NULL WHERE id = 1')
    assert await items(1) == ("new", 0, "y", None, None)
    assert [p[1] for p in await problems(db)] == ["old"]
    await db.execute(
        f"INSERT INTO items (id, status, code, \"{STATE}\", \"{NUMBER}\") VALUES (40, 'new', 'q', 0, NULL)"
    )
    assert (await items(40))[4] is None
    assert len(await problems(db)) == 2


async def test_an_unsynced_row_is_carried_over_by_a_write_of_another_column(
    db: Any, migrator: Migrator
) -> None:
    await db.execute(TABLES)
    await migrator.start(migrator.file("0001_items", MIGRATION), "expanded")
    assert await db.fetchval(f'SELECT "{MARK}" FROM items WHERE id = 1') is None
    await db.execute("UPDATE items SET note = 'n' WHERE id = 1")
    row = await db.fetchrow(f'SELECT "{STATE}", "{NUMBER}", "{MARK}" FROM items WHERE id = 1')
    assert tuple(row) == (0, 10, 1)


async def test_an_upsert_and_a_function_are_carried_over(db: Any, items: Any) -> None:
    await db.execute(
        "INSERT INTO items VALUES (1, 'paid') ON CONFLICT (id) DO UPDATE SET status = excluded.status"
    )
    assert (await items(1))[:2] == ("paid", 1)
    await db.execute(
        "CREATE FUNCTION pay() RETURNS void LANGUAGE sql AS $$ UPDATE items SET status = 'paid' $$; SELECT pay()"
    )
    assert (await items(3))[:2] == ("paid", 1)


async def test_replica_role_does_not_switch_the_guard_off(db: Any, items: Any) -> None:
    await db.execute("SET session_replication_role = 'replica'")
    await db.execute("UPDATE items SET status = 'paid' WHERE id = 1")
    await db.execute("SET session_replication_role = 'origin'")
    assert (await items(1))[:2] == ("paid", 1)


async def test_a_new_speakers_null_in_a_not_null_column_is_the_native_error(db: Any, items: Any) -> None:
    with pytest.raises(asyncpg.NotNullViolationError) as caught:
        await db.execute(f'UPDATE items SET status = \'other\', "{STATE}" = NULL, "{MARK}" = 3 WHERE id = 1')
    assert caught.value.column_name == "state"
    assert caught.value.table_name == "items"
    with pytest.raises(asyncpg.NotNullViolationError):
        await db.execute(
            f'INSERT INTO items (id, status, "{STATE}", "{MARK}") VALUES (50, \'other\', NULL, 3)'
        )
    assert await items(1) == ("new", 0, "10", 10, 1)


async def test_writers_without_rights_on_the_control_schema_are_guarded_too(
    db: Any, items: Any, database: Any
) -> None:
    dsn = database.role(f"app_{database.name}")
    app = await asyncpg.connect(dsn)
    try:
        await app.execute("UPDATE items SET status = 'paid', code = 'bad' WHERE id = 1")
    finally:
        await app.close()
    assert await items(1) == ("paid", 1, "bad", None, None)
    assert len(await problems(db)) == 1


async def test_a_new_speakers_insert_that_gives_only_its_own_shape_meets_the_old_not_null(
    db: Any, items: Any
) -> None:
    # What a sidecar sends for an INSERT that it leaves to the guard: the new columns and the mark. `status`
    # is NOT NULL without a default, which is checked before an AFTER trigger could repair the row.
    await db.execute(
        f'INSERT INTO items (id, "{STATE}", note, "{NUMBER}", "{MARK}") VALUES (7, 1, $1, 70, 3)',
        "left to the guard",
    )
    row = await items(7)
    assert row[:4] == ("paid", 1, "70", 70)
    assert row[4] in (3, 4)
    assert await problems(db) == []
    with pytest.raises(asyncpg.NotNullViolationError):
        await db.execute("INSERT INTO items (id, note) VALUES (8, 'an old speaker is still held to it')")
