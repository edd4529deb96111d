"""A replaced table through real sidecars: clients of both versions at once, on either table, through flip and swap."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from tests.conftest import Database, Sidecar, SidecarFactory
from tests.migrator.conftest import Migrator
from tests.migrator.replacing import BIGINT, PARTITIONED, TABLES, problems, same

OLD, NEW = "base", "0001_replace"


@pytest.fixture
async def shop(db: Any, migrator: Migrator) -> Migrator:
    await db.execute(TABLES)
    return migrator


@pytest.fixture
def front(shop: Migrator, sidecar: SidecarFactory) -> Sidecar:
    return sidecar()


async def speak(front: Sidecar, version: str) -> Any:
    return await front.connect(version=version, statement_cache_size=0)


def nobody_speaks_old(database: Database) -> bool:
    """Whether the sidecars have reported so."""
    text = "SELECT coalesce(sum((stats->'clients'->>'old')::int), 0) FROM dualwire.sidecar"
    return database.sql(text).strip() == "0"


async def exercise(conn: Any, wide: bool, start: int) -> None:
    """What an app does, and what it sees: ids have its version's type."""
    kind = "bigint" if wide else "integer"
    attributes = (await conn.prepare("SELECT id, code FROM items WHERE id = $1")).get_attributes()
    assert attributes[0].type.name == ("int8" if wide else "int4")
    row = await conn.fetchrow(
        "INSERT INTO items (code, qty) VALUES ($1, $2) RETURNING id, pg_typeof(id)::text AS kind, total",
        f"new{start}",
        3,
    )
    assert (row["kind"], row["total"]) == (kind, 6)
    key = row["id"]
    await conn.execute("INSERT INTO items (id, code) VALUES ($1, 'given')", start)
    with pytest.raises(asyncpg.UniqueViolationError) as caught:
        await conn.execute("INSERT INTO items (id, code) VALUES ($1, 'twice')", start)
    assert caught.value.sqlstate == "23505"
    assert await conn.execute("UPDATE items SET qty = qty + 1 WHERE id = $1", key) == "UPDATE 1"
    assert await conn.fetchval("SELECT qty FROM items WHERE id = $1", key) == 4
    assert await conn.execute("UPDATE items SET id = id + 1 WHERE id = $1", start) == "UPDATE 1"
    got = await conn.fetchrow(
        "INSERT INTO items (id, code) VALUES ($1, 'upsert') ON CONFLICT (id) DO UPDATE"
        " SET code = excluded.code || items.id RETURNING *",
        start + 1,
    )
    assert dict(got)["code"] == f"upsert{start + 1}"
    assert list(dict(got)) == ["id", "customer", "code", "qty", "total", "created_at", "data"]
    joined = await conn.fetch(
        "SELECT i.id, c.name FROM items i JOIN customers c ON c.id = i.customer WHERE i.id IN (1, 2) ORDER BY i.id"
    )
    assert [tuple(r) for r in joined] == [(1, "c2"), (2, "c3")]
    grouped = await conn.fetch("SELECT id, code FROM items WHERE id < 3 GROUP BY items.id ORDER BY id")
    assert [r["id"] for r in grouped] == [1, 2]
    await conn.execute("DELETE FROM items WHERE id = ANY ($1)", [key, start + 1])


async def test_both_versions_work_on_either_table(
    front: Sidecar, shop: Migrator, db: Any, database: Database, eventually: Callable[..., None]
) -> None:
    path = shop.file(NEW, BIGINT)
    await shop.start(path, "verified")
    old, new = await speak(front, OLD), await speak(front, NEW)
    try:
        for step in (None, 30, 100, 0, 100):
            if step is not None:
                await shop.cutover(step)
            await exercise(old, False, 1000)
            assert await same(db), f"old at {step}"
            await exercise(new, True, 2000)
            assert await same(db), f"new at {step}"
        assert await problems(db) == []
        assert (await shop.verify()).clean
        await new.execute("INSERT INTO items (id, code) VALUES (5000000000, 'big')")
        assert await new.fetchval("SELECT code FROM items WHERE id = 5000000000") == "big"
        await new.execute("DELETE FROM items WHERE id = 5000000000")
        await old.close()
        await exercise(new, True, 3000)
        eventually(lambda: nobody_speaks_old(database))
        await shop.complete()
        await exercise(new, True, 4000)
        assert await new.fetchval("SELECT count(*) FROM items") == 500
    finally:
        await old.close()
        await new.close()


async def test_old_clients_go_on_after_contract(
    front: Sidecar, shop: Migrator, db: Any, database: Database, eventually: Callable[..., None]
) -> None:
    """A small code's identity is GENERATED ALWAYS, and the old app knows 32 bits of it."""
    await db.execute(
        "CREATE TABLE small (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code varchar(5));"
        "INSERT INTO small (code) VALUES ('a'), ('b')"
    )
    text = (
        BIGINT
        + """\
  - replace_table:
      table: small
      columns: [{name: id, type: bigint}, {name: code, type: text}]
      down: {code: "left(code, 5)"}
"""
    )
    shop.options = replace(shop.options, compat=True)
    await shop.start(shop.file(NEW, text), "verified")
    old, new = await speak(front, OLD), await speak(front, NEW)
    try:
        for step in ("verified", "cutover", "completed"):
            if step == "cutover":
                await shop.cutover()
            elif step == "completed":
                await shop.complete()
            await exercise(old, False, 1000)
            await exercise(new, True, 2000)
            made = [
                await conn.fetchval("INSERT INTO small (code) VALUES ($1) RETURNING id", "old")
                for conn in (old, new)
            ]
            assert made[1] == made[0] + 1, step
            assert await old.execute("UPDATE small SET code = 'upd' WHERE id = $1", made[1]) == "UPDATE 1"
            assert await new.fetchval("SELECT code FROM small WHERE id = $1", made[1]) == "upd"
            with pytest.raises(asyncpg.StringDataRightTruncationError):
                await old.execute("UPDATE small SET code = 'much too long' WHERE id = $1", made[1])
        assert await db.fetchval("SELECT id FROM small WHERE code = 'upd' ORDER BY id DESC LIMIT 1") == 8
        assert (await shop.routing())["state"]["phase"] == "completed"
        await old.close()
        eventually(lambda: nobody_speaks_old(database))
        await shop.end_compat()
        await exercise(new, True, 2000)
        left = await db.fetchval(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'dualwire'::regnamespace AND relname ~ 'compat'"
        )
        assert left == 0
    finally:
        await old.close()
        await new.close()


async def test_clients_work_through_flip_and_swap(
    front: Sidecar, shop: Migrator, db: Any, database: Database, eventually: Callable[..., None]
) -> None:
    """No statement fails, and none is lost, while auto clients go over and the tables change places."""
    await db.execute("CREATE TABLE done (code text)")
    failures: list[str] = []
    stop = False

    async def client(number: int) -> int:
        conn = await front.connect(statement_cache_size=0)
        count = 0
        while not stop:
            code = f"w{number}_{count}"
            try:
                await conn.execute("INSERT INTO items (code) VALUES ($1)", code)
                await conn.execute("UPDATE items SET qty = qty + 1 WHERE code = $1", code)
            except asyncpg.PostgresError as error:
                failures.append(f"{type(error).__name__}: {error}")
                break
            count += 1
            await asyncio.sleep(0.005)
        await conn.close()
        return count

    tasks = [asyncio.create_task(client(i)) for i in range(4)]
    path = shop.file(NEW, BIGINT)
    await shop.start(path, "verified")
    await shop.cutover(50)
    await shop.cutover()
    await asyncio.sleep(0.2)
    assert await same(db)
    await shop.cutover(0)
    await shop.cutover()
    # Sessions in session mode keep their version until their client comes anew, so old ones have to go first.
    stop = True
    counts = await asyncio.gather(*tasks)
    assert failures == []
    assert await same(db)
    eventually(lambda: nobody_speaks_old(database))
    await shop.complete()
    assert await db.fetchval("SELECT count(*) FROM items WHERE code LIKE 'w%' AND qty = 2") == sum(counts)


async def test_both_versions_use_a_table_that_becomes_partitioned(
    front: Sidecar, shop: Migrator, db: Any, database: Database, eventually: Callable[..., None]
) -> None:
    await db.execute("DROP TABLE notes; ALTER TABLE items DROP CONSTRAINT items_code")
    path = shop.file(NEW, PARTITIONED)
    await shop.start(path, "verified")
    old, new = await speak(front, OLD), await speak(front, NEW)
    try:
        for step in (None, 100, 0, 100):
            if step is not None:
                await shop.cutover(step)
            for number, conn in enumerate((old, new)):
                await conn.execute(
                    "INSERT INTO items (id, code, created_at) VALUES ($1, 'a', '2026-01-05')", 900
                )
                assert (
                    await conn.execute("UPDATE items SET created_at = '2026-08-01' WHERE id = 900")
                    == "UPDATE 1"
                )
                assert await same(db), (step, number)
                assert (
                    await conn.fetchval("SELECT created_at::date::text FROM items WHERE id = 900")
                    == "2026-08-01"
                )
                await conn.execute("DELETE FROM items WHERE id = 900")
        await old.close()
        eventually(lambda: nobody_speaks_old(database))
        await shop.complete()
        assert await new.fetchval("SELECT count(*) FROM items_q1") == 247
    finally:
        await old.close()
        await new.close()
