"""A table that is replaced by another one: through the phases to the new shape, and the way back from each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from proxy.control.routing import Phase
from tests.conftest import Database
from tests.migrator.conftest import Migrator
from tests.migrator.replacing import BIGINT, PARTITIONED, TABLES, rows, same

PHASES = ["prepared", "expanded", "backfilled", "verified", "cutover"]


@pytest.fixture
async def shop(db: Any, migrator: Migrator) -> Migrator:
    await db.execute(TABLES)
    return migrator


async def test_a_wider_primary_key_comes_by_another_table(shop: Migrator, db: Any) -> None:
    before = await rows(db, "items")
    path = shop.file("0001_bigint", BIGINT)
    assert (await shop.start(path)).phase == "verified"
    assert await same(db)
    await shop.cutover()
    assert await same(db)
    assert (await shop.complete()).phase == "completed"
    columns = await db.fetch(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum)"
        " FROM pg_attribute WHERE attrelid = 'items'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert [tuple(c) for c in columns] == [
        ("id", "bigint", True, None),
        ("customer", "integer", False, None),
        ("code", "character varying(20)", True, None),
        ("qty", "integer", True, "how many"),
        ("total", "numeric", False, None),
        ("created_at", "timestamp with time zone", True, None),
        ("data", "jsonb", False, None),
    ]
    assert await rows(db, "items") == before
    constraints = await db.fetch(
        "SELECT conrelid::regclass::text, conname, contype::text, convalidated FROM pg_constraint"
        " WHERE contype <> 'n' AND (conrelid = 'items'::regclass OR confrelid = 'items'::regclass) ORDER BY 2"
    )
    assert [tuple(c) for c in constraints] == [
        ("items", "items_code", "u", True),
        ("items", "items_customer_fkey", "f", True),
        ("items", "items_pkey", "p", True),
        ("notes", "notes_item", "f", True),
        ("items", "qty_positive", "c", True),
    ]
    index = await db.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = 'items_customer'")
    assert "(customer DESC) WHERE (qty > 1)" in index
    assert await db.fetchval("SELECT pg_get_serial_sequence('items', 'id')") == "public.items_id_seq"
    assert (
        await db.fetchval("SELECT data_type FROM pg_sequences WHERE sequencename = 'items_id_seq'")
        == ("bigint")
        or await db.fetchval(
            "SELECT format_type(seqtypid, NULL) FROM pg_sequence WHERE seqrelid = 'items_id_seq'::regclass"
        )
        == "bigint"
    )
    assert await db.fetchval("INSERT INTO items (code) VALUES ('after') RETURNING id") == 501
    await db.execute("DELETE FROM items WHERE id = 3")
    assert not await db.fetchval("SELECT EXISTS (SELECT FROM notes WHERE item = 3)")
    assert await db.fetchval("SELECT obj_description('items'::regclass)") == "what we sell"
    left = await db.fetchval(
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'dualwire'::regnamespace AND proname ~ '_1_1'"
    )
    assert left == 0
    names = await db.fetchval(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname LIKE '%dualwire%'"
    )
    assert names == 0
    state = (await shop.routing())["state"]
    assert (state["old"], state["migration"], state["tables"]) == ("0001_bigint", None, [])


async def test_a_table_is_partitioned(shop: Migrator, db: Any) -> None:
    await db.execute("DROP TABLE notes; ALTER TABLE items DROP CONSTRAINT items_code")
    before = await rows(db, "items")
    path = shop.file("0001_parts", PARTITIONED)
    await shop.start(path)
    assert await same(db)
    await shop.cutover()
    await db.execute("UPDATE items_q1 SET qty = 90 WHERE id = 4")
    await db.execute("INSERT INTO items_rest (id, code, created_at) VALUES (900, 'direct', '2027-01-01')")
    assert await same(db)
    await db.execute("DELETE FROM items WHERE id = 900")
    await db.execute("UPDATE items SET qty = 5 WHERE id = 4")
    assert await same(db)
    await shop.complete()
    assert await rows(db, "items") == before
    parts = await db.fetch("SELECT relid::regclass::text FROM pg_partition_tree('items') ORDER BY 1")
    assert [p[0] for p in parts] == ["items", "items_q1", "items_rest"]
    assert await db.fetchval("SELECT count(*) FROM items_q1") == 247
    assert await db.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'items_pkey'"
    ) == ("PRIMARY KEY (id, created_at)")


@pytest.mark.parametrize("phase", PHASES)
async def test_a_rollback_leaves_catalog_and_rows_as_they_were(
    shop: Migrator, db: Any, catalog: Callable[[], str], phase: Phase
) -> None:
    before, kept = catalog(), await rows(db, "items")
    routing = (await shop.routing())["state"]
    await shop.start(shop.file("0001_bigint", BIGINT), phase)
    await db.execute("UPDATE items SET qty = qty + 1 WHERE id = 1")
    await db.execute("UPDATE items SET qty = qty - 1 WHERE id = 1")
    assert await shop.rollback() == {"lost": []}
    assert catalog() == before
    assert await rows(db, "items") == kept
    assert (await shop.routing())["state"] == routing
    assert (await shop.start(shop.file("0001_bigint", BIGINT), "verified")).phase == "verified"


async def test_a_migrator_that_is_no_superuser_and_an_app_with_few_privileges(
    database: Database, tmp_path: Path
) -> None:
    owner, app = f"owner_{database.name}", f"app_{database.name}"
    dsn, app_dsn = database.role(owner), database.role(app)
    database.sql(
        f'ALTER DATABASE "{database.name}" OWNER TO "{owner}"; ALTER SCHEMA public OWNER TO "{owner}";'
        f'ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM "{app}"'
    )
    made = Migrator(dsn, tmp_path)
    await made.init()
    conn = await asyncpg.connect(dsn, statement_cache_size=0)
    client = await asyncpg.connect(app_dsn, statement_cache_size=0)
    try:
        await conn.execute(TABLES)
        await conn.execute(
            f'GRANT SELECT, INSERT, UPDATE, DELETE ON items TO "{app}";'
            f'GRANT USAGE ON SEQUENCE items_id_seq TO "{app}"'
        )
        path = made.file("0001_bigint", BIGINT)
        for phase in ("verified", "cutover"):
            await made.start(path, phase)  # type: ignore[arg-type]
            await client.execute("INSERT INTO items (code) VALUES ($1)", phase)
            await client.execute("UPDATE items SET qty = 5 WHERE id < 4")
            await client.execute("DELETE FROM items WHERE id = 9 OR code = $1", phase)
            assert await same(conn)
            assert await conn.fetchval("SELECT count(*) FROM dualwire.problem") == 0
        await client.execute("""INSERT INTO "_dualwire_new_items" (code) VALUES ('through a sidecar')""")
        assert await same(conn)
        await made.complete()
        await client.execute("INSERT INTO items (code) VALUES ('after')")
    finally:
        await client.close()
        await conn.close()
        database.sql(f'ALTER DATABASE "{database.name}" OWNER TO CURRENT_USER')
