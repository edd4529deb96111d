"""The mirror of a replaced table: whatever way a write comes, both tables have it, or the row is a listed problem."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from migrator.errors import Differences, Refused
from proxy.control.routing import Phase
from tests.migrator.conftest import Migrator
from tests.migrator.replacing import BIGINT, PARTITIONED, TABLES, problems, rows, same

WAYS = {
    "insert": "INSERT INTO items (code, qty) VALUES ('new', 3), ('newer', 4)",
    "insert select": "INSERT INTO items (code) SELECT 'gen' || i FROM generate_series(1, 5) i",
    "upsert": "INSERT INTO items (id, code) VALUES (5, 'five'), (700, 'fresh')"
    " ON CONFLICT (id) DO UPDATE SET code = excluded.code, qty = items.qty + 1",
    "update": "UPDATE items SET qty = qty + 1 WHERE id % 3 = 0",
    "update nothing": "UPDATE items SET qty = qty + 1 WHERE false",
    "key change": "UPDATE items SET id = id + 1000 WHERE id > 490",
    "keys moved": "UPDATE items SET id = id + 100 WHERE id >= 1000",
    "update from": "UPDATE items i SET qty = 9 FROM customers c WHERE c.id = i.customer AND c.name = 'c3'",
    "delete": "DELETE FROM items WHERE id BETWEEN 100 AND 120",
    "merge": "MERGE INTO items i USING (VALUES (7, 'm7'), (8, 'm8'), (800, 'm800')) v(id, code) ON i.id = v.id"
    " WHEN MATCHED AND v.id = 7 THEN DELETE WHEN MATCHED THEN UPDATE SET code = v.code"
    " WHEN NOT MATCHED THEN INSERT (id, code) VALUES (v.id, v.code)",
    "cte": "WITH gone AS (DELETE FROM items WHERE id < 5 RETURNING *), more AS (UPDATE items SET qty = 6"
    " WHERE id = 50) INSERT INTO items (id, code, qty) SELECT id + 2000, 'cte' || id, qty FROM gone",
    "cascade": "DELETE FROM customers WHERE id = 6",
    "cascaded key": "UPDATE customers SET id = 66 WHERE id = 7",
    "function": "SELECT busy()",
    "block": "DO $$ BEGIN UPDATE items SET qty = 8 WHERE id = 60; DELETE FROM items WHERE id = 61; END $$",
    "view": "UPDATE few SET qty = 4 WHERE id = 70",
}

FUNCTION = """
CREATE FUNCTION busy() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE items SET qty = 2 WHERE id = 31;
    BEGIN
        UPDATE items SET qty = 3 WHERE id = 32;
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
        DELETE FROM items WHERE id = 33;
    END;
END $$;
"""


@pytest.fixture
async def shop(db: Any, migrator: Migrator) -> Migrator:
    await db.execute(TABLES + FUNCTION)
    return migrator


@pytest.mark.parametrize("phase", ["expanded", "verified", "cutover"])
@pytest.mark.parametrize("kind", ["bigint", "partitioned"])
async def test_writes_by_every_way_are_mirrored(shop: Migrator, db: Any, phase: Phase, kind: str) -> None:
    if kind == "partitioned":
        await db.execute("DROP TABLE notes; ALTER TABLE items DROP CONSTRAINT items_code")
    text = BIGINT if kind == "bigint" else PARTITIONED
    await shop.start(shop.file("0001_replace", text), phase)
    if phase == "expanded":
        await db.execute("UPDATE items SET qty = qty")
    # The view is made later than lint could refuse it; it goes before the swap would miss it.
    await db.execute("CREATE VIEW few AS SELECT * FROM items WHERE qty < 5")
    for way, statement in WAYS.items():
        await db.execute(statement)
        assert await same(db), way
    columns = ["code", "qty", "created_at"]
    records = [("c" + str(i), i + 1, None) for i in range(20)]
    copied = [(c, q, await db.fetchval("SELECT timestamptz '2026-05-01'")) for c, q, _ in records]
    await db.copy_records_to_table("items", records=copied, columns=columns)
    assert await same(db), "copy"
    async with db.transaction():
        await db.execute("SAVEPOINT a; UPDATE items SET qty = 77 WHERE id = 31; ROLLBACK TO a")
        await db.execute("DECLARE c CURSOR FOR SELECT * FROM items WHERE id = 41 FOR UPDATE")
        await db.execute("FETCH c; UPDATE items SET qty = 78 WHERE CURRENT OF c")
    assert await same(db), "cursor"
    async with db.transaction():
        await db.execute(
            "SET LOCAL session_replication_role = 'replica'; UPDATE items SET qty = 12 WHERE id = 42"
        )
    assert await same(db), "replica"
    await db.execute("TRUNCATE items CASCADE")
    assert await same(db), "truncate"
    assert await rows(db, "items") == []
    await db.execute("INSERT INTO items (code, customer) VALUES ('again', 1)")
    assert await same(db)
    await db.execute("TRUNCATE customers CASCADE")
    assert await same(db), "truncate cascade"
    assert await rows(db, "items") == []
    assert await problems(db) == []


@pytest.mark.parametrize("phase", ["verified", "cutover"])
async def test_writes_to_the_other_table_come_back(shop: Migrator, db: Any, phase: Phase) -> None:
    """Nobody has business there before the flip, and after it everybody who knows the old name only."""
    await shop.start(shop.file("0001_bigint", BIGINT), phase)
    new = '"_dualwire_new_items"'
    for statement in (
        f"UPDATE {new} SET qty = qty + 1 WHERE id < 9",
        f"INSERT INTO {new} (code) VALUES ('direct') ON CONFLICT DO NOTHING",
        f"UPDATE {new} SET id = id + 3000 WHERE id BETWEEN 20 AND 22 AND false",
        f"UPDATE {new} SET id = id + 3000 WHERE id BETWEEN 200 AND 202",
        f"DELETE FROM {new} WHERE id = 9",
        "UPDATE items SET qty = qty + 1 WHERE id < 9",
        "DELETE FROM items WHERE id = 10",
    ):
        await db.execute(statement)
        assert await same(db), statement
    await db.execute(f"TRUNCATE {new}")
    assert await same(db)
    assert await db.fetchval("SELECT count(*) FROM items") == 0


async def test_a_users_triggers_fire_once_and_where_the_rows_are(shop: Migrator, db: Any) -> None:
    await db.execute(
        """
        CREATE TABLE log (id serial, item bigint, what text);
        CREATE FUNCTION logged() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.data := jsonb_build_object('seen', NEW.qty);
            INSERT INTO log (item, what) VALUES (NEW.id, TG_OP);
            RETURN NEW;
        END $$;
        CREATE TRIGGER logged BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION logged();
        CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.qty = 40 THEN UPDATE items SET qty = 41 WHERE id = NEW.id; END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER again AFTER UPDATE ON items FOR EACH ROW EXECUTE FUNCTION again();
        """
    )
    path = shop.file("0001_bigint", BIGINT)
    await shop.start(path, "verified")
    assert await db.fetchval("SELECT count(*) FROM log") == 0
    await db.execute("UPDATE items SET qty = 40 WHERE id = 5")
    assert await same(db)
    assert await db.fetchval("SELECT count(*) FROM log") == 2
    await shop.cutover()
    assert await db.fetchval("SELECT count(*) FROM log") == 2
    for table in ("items", '"_dualwire_new_items"'):
        await db.execute("TRUNCATE log")
        await db.execute(f"UPDATE {table} SET qty = 13 WHERE id = 6")
        assert await same(db), table
        assert await db.fetchval("SELECT count(*) FROM log") == 1
        assert json.loads(await db.fetchval(f"SELECT data FROM {table} WHERE id = 6")) == {"seen": 13}
    await shop.cutover(0)
    await db.execute("TRUNCATE log; UPDATE items SET qty = 14 WHERE id = 6")
    assert await same(db)
    assert await db.fetchval("SELECT count(*) FROM log") == 1
    await shop.cutover()
    await shop.complete()
    triggers = await db.fetch(
        "SELECT tgname, tgenabled::text FROM pg_trigger WHERE tgrelid = 'items'::regclass AND NOT tgisinternal"
        " ORDER BY 1"
    )
    assert [tuple(t) for t in triggers] == [("again", "O"), ("logged", "O")]


CODES = """
operations:
  - replace_table:
      table: items
      columns:
        - {name: id, type: bigint}
        - {name: code, type: int}
      up: {code: "substr(code, 2)::int"}
      down: {id: "id::int4", code: "'i' || code"}
"""


async def test_a_row_whose_up_raises_is_a_problem_and_no_error(shop: Migrator, db: Any) -> None:
    await db.execute("UPDATE items SET code = 'broken' WHERE id = 17")
    path = shop.file("0001_codes", CODES)
    with pytest.raises(Differences):
        await shop.start(path)
    [(key, direction, reason)] = await problems(db)
    assert (json.loads(key), direction) == ({"id": 17}, "old")
    assert "invalid input syntax" in reason
    assert await db.execute("UPDATE items SET code = code || 'x' WHERE id IN (18, 19)") == "UPDATE 2"
    assert [json.loads(p[0])["id"] for p in await problems(db)] == [17, 18, 19]
    await db.execute("INSERT INTO items (code) VALUES ('i9001'), ('nonsense'), ('i9003')")
    found = await db.fetch('SELECT id, code FROM "_dualwire_new_items" WHERE id > 500 ORDER BY 1')
    assert [tuple(r) for r in found] == [(501, 9001), (503, 9003)]
    result = await shop.verify(repair=True)
    assert not result.clean
    assert result.problems == 4
    await db.execute("UPDATE items SET code = 'i' || (5000 + id) WHERE id IN (17, 18, 19, 502)")
    assert await problems(db) == []
    assert (await shop.start(path)).phase == "verified"
    await db.execute("UPDATE items SET code = 'worse' WHERE id = 20")
    with pytest.raises(Refused, match="1 unresolved problems"):
        await shop.cutover()
    await db.execute("DELETE FROM items WHERE id = 20")
    await shop.cutover()
    await db.execute('UPDATE "_dualwire_new_items" SET code = 4711 WHERE id = 30')
    assert await db.fetchval("SELECT code FROM items WHERE id = 30") == "i4711"
    await shop.complete()


async def test_what_only_the_new_table_can_hold_is_lost_only_on_demand(shop: Migrator, db: Any) -> None:
    path = shop.file("0001_bigint", BIGINT)
    await shop.start(path, "cutover")
    big = 5_000_000_000
    new = '"_dualwire_new_items"'
    await db.execute(f"INSERT INTO {new} (id, code) VALUES ({big}, 'big')")
    [(key, direction, _)] = await problems(db)
    assert (json.loads(key), direction) == ({"id": big}, "new")
    assert (await shop.verify()).clean
    await shop.cutover(50)
    await shop.cutover()
    with pytest.raises(Refused, match="would be lost") as caught:
        await shop.rollback()
    assert caught.value.data["lost"] == [{"table": "public.items", "rows": 1, "keys": [{"id": big}]}]
    await shop.cutover(0)
    assert (await shop.verify()).clean
    with pytest.raises(Refused, match="would be lost"):
        await shop.rollback()
    await shop.cutover()
    assert await db.fetchval(f"SELECT code FROM {new} WHERE id = {big}") == "big"
    assert (await shop.complete()).phase == "completed"
    assert await db.fetchval(f"SELECT code FROM items WHERE id = {big}") == "big"


async def test_loss_is_accepted_on_demand(shop: Migrator, db: Any) -> None:
    await shop.start(shop.file("0001_bigint", BIGINT), "cutover")
    await db.execute("""INSERT INTO "_dualwire_new_items" (id, code) VALUES (5000000000, 'big')""")
    assert (await shop.rollback(accept_loss=True))["lost"][0]["rows"] == 1
    assert await db.fetchval("SELECT count(*) FROM items") == 500


async def test_verify_finds_and_repairs_what_was_written_behind_the_mirror(shop: Migrator, db: Any) -> None:
    path = shop.file("0001_bigint", BIGINT)
    await shop.start(path, "backfilled")
    async with db.transaction():
        names = [
            r[0]
            for r in await db.fetch(
                "SELECT tgname FROM pg_trigger WHERE tgrelid = 'items'::regclass AND NOT tgisinternal"
            )
        ]
        for name in names:
            await db.execute(f"ALTER TABLE items DISABLE TRIGGER {name}")
        await db.execute("UPDATE items SET qty = 6 WHERE id = 1; DELETE FROM items WHERE id = 2")
        await db.execute("INSERT INTO items (code) VALUES ('x')")
        for name in names:
            await db.execute(f"ALTER TABLE items ENABLE ALWAYS TRIGGER {name}")
    result = await shop.verify()
    [table] = result.tables
    assert (table.rows, table.differing, table.unmarked) == (501, 3, 1)
    said = {json.dumps(k["key"]): k["what"] for k in table.keys}
    assert said == {
        '{"id": 1}': "the tables differ",
        '{"id": 2}': "not in the old table",
        '{"id": 501}': "never carried over",
    }
    assert (await shop.verify(repair=True)).clean
    assert await same(db)


async def test_errors_of_the_moment_and_foreign_keys_are_the_writers_own(shop: Migrator, db: Any) -> None:
    await db.execute(
        "ALTER TABLE notes DROP CONSTRAINT notes_item, ADD CONSTRAINT notes_item"
        " FOREIGN KEY (item) REFERENCES items"
    )
    await shop.start(shop.file("0001_bigint", BIGINT), "cutover")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await db.execute('DELETE FROM "_dualwire_new_items" WHERE id = 4')
    assert await same(db)
    assert await problems(db) == []
