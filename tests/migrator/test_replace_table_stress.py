"""Writers of every kind against the mirror of a replaced table, through backfill, flip, flip back and the end.

Every writer checks nothing: what counts is that the two tables hold the same rows whenever somebody looks, and that
no write fails for another reason than its own. The same harness must find a mirror that is known to be wrong.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from migrator.phases.context import BackfillOptions, Options
from tests.conftest import Database
from tests.migrator.conftest import Migrator

SEED_ROWS = 60
SETUP = f"""
CREATE TABLE items (id int PRIMARY KEY, qty int NOT NULL, note text);
INSERT INTO items SELECT i, i, 'n' FROM generate_series(1, {SEED_ROWS}) i;
"""
NEW = '"_dualwire_new_items"'
BIGINT = """
operations:
  - replace_table:
      table: items
      columns: [{name: id, type: bigint}]
"""
PARTITIONED = """
operations:
  - replace_table:
      table: items
      columns: [{name: id, type: bigint}]
      partition_by: HASH (id)
      partitions:
        - {name: items_0, values: "WITH (MODULUS 2, REMAINDER 0)"}
        - {name: items_1, values: "WITH (MODULUS 2, REMAINDER 1)"}
"""
ALLOWED = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError)


@dataclass
class Field:
    """What the writers share."""

    dsn: str
    tables: list[str] = field(default_factory=lambda: ["items"])
    """Where they write: the old name, and the new table as sidecars would."""
    stop: bool = False
    writes: int = 0
    conflicts: int = 0


def statement(rng: random.Random, table: str) -> str:
    """One write."""
    key, qty = rng.randint(1, SEED_ROWS), rng.randint(1, 10_000)
    kind = rng.random()
    if kind < 0.35:
        return f"DELETE FROM {table} WHERE id = {key}"
    if kind < 0.65:
        return (
            f"INSERT INTO {table} AS t (id, qty, note) VALUES ({key}, {qty}, 'i')"
            f" ON CONFLICT (id) DO UPDATE SET qty = excluded.qty, note = t.note || 'u'"
        )
    if kind < 0.85:
        return f"UPDATE {table} SET qty = qty + {qty} WHERE id = {key}"
    if kind < 0.95:
        return f"UPDATE {table} SET id = {rng.randint(1, SEED_ROWS)} WHERE id = {key}"
    return f"UPDATE {table} SET qty = qty + 1 WHERE id BETWEEN {key} AND {key + 5}"


async def writer(shared: Field, seed: int, isolation: str) -> None:
    """Short transactions of one to three writes."""
    rng = random.Random(seed)
    # Writers on both tables at once do meet; a second of waiting for each would leave no time for the rest.
    settings = {"deadlock_timeout": "20ms"}
    conn = await asyncpg.connect(shared.dsn, statement_cache_size=0, server_settings=settings)
    try:
        while not shared.stop:
            table = rng.choice(shared.tables)
            try:
                async with conn.transaction(isolation=isolation):
                    if isolation != "read_committed":
                        await conn.execute("SELECT 1")
                    for _ in range(rng.choice((1, 1, 2, 3))):
                        await conn.execute(statement(rng, table))
                shared.writes += 1
            except ALLOWED:
                shared.conflicts += 1
            except asyncpg.UndefinedTableError:
                assert table == NEW
            except asyncpg.ObjectNotInPrerequisiteStateError as error:  # the name moved under a snapshot
                raise AssertionError(str(error)) from error
    finally:
        await conn.close()


async def differing(db: Any, mirror: str = NEW) -> int:
    """Rows that the two tables do not share, in one snapshot."""
    return int(
        await db.fetchval(
            f"SELECT count(*) FROM items o FULL JOIN {mirror} n ON n.id = o.id"
            " WHERE o.id IS NULL OR n.id IS NULL OR (o.qty, o.note) IS DISTINCT FROM (n.qty, n.note)"
        )
    )


async def life(shared: Field, migrator: Migrator, db: Any, text: str, number: int) -> None:
    """One migration through its phases, with a look at the tables wherever they should agree."""
    path = migrator.file(f"{number:04}_stress", text)
    await migrator.start(path, "backfilled")
    assert await differing(db) == 0
    await migrator.start(path, "verified")
    for _ in range(2):
        await migrator.cutover()
        shared.tables = [NEW] * 9 + ["items"]
        await asyncio.sleep(0.1)
        assert await differing(db) == 0
        assert (await migrator.verify()).clean
        await migrator.cutover(0)
        shared.tables = ["items"] * 9 + [NEW]
        assert await differing(db) == 0
    if number % 2:
        await migrator.cutover()
        shared.tables = [NEW] * 9 + ["items"]
        await asyncio.sleep(0.1)
        shared.tables = ["items"]
        await migrator.rollback()
    else:
        await migrator.cutover()
        shared.tables = [NEW] * 9 + ["items"]
        await asyncio.sleep(0.1)
        assert await differing(db) == 0
        shared.tables = ["items"]
        await migrator.complete()
    problems = await db.fetchval("SELECT count(*) FROM dualwire.problem")
    assert problems == 0


async def rounds(database: Database, migrator: Migrator, db: Any, text: str, numbers: range) -> Field:
    """Migrations one after the other while writers work."""
    shared = Field(database.dsn)
    migrator.options = Options(backfill=BackfillOptions(batch_rows=7))
    for number in numbers:
        await db.execute("DROP TABLE IF EXISTS items; " + SETUP)
        shared.stop = False
        isolations = ["read_committed"] * 3 + ["repeatable_read"] * 2 + ["serializable"]
        tasks = [
            asyncio.create_task(writer(shared, number * 100 + i, isolation))
            for i, isolation in enumerate(isolations)
        ]
        try:
            await life(shared, migrator, db, text, number)
        finally:
            shared.stop = True
            await asyncio.gather(*tasks)
    return shared


@pytest.mark.parametrize("text", [BIGINT, PARTITIONED], ids=["bigint", "partitioned"])
async def test_writers_and_a_whole_life_leave_no_difference(
    database: Database, migrator: Migrator, db: Any, text: str
) -> None:
    shared = await rounds(database, migrator, db, text, range(1, 2))
    assert shared.writes > 50


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("text", [BIGINT, PARTITIONED], ids=["bigint", "partitioned"])
async def test_forty_lives_under_writers_leave_no_difference(
    database: Database, migrator: Migrator, db: Any, text: str
) -> None:
    shared = await rounds(database, migrator, db, text, range(1, 41))
    print(f"{shared.writes} transactions, {shared.conflicts} conflicts")
    assert shared.writes > 5000


# -- a mirror that is known to be wrong ----------------------------------------------------------------------


def naive(sql: str) -> str:
    """The same write with its mirror in one statement, as a data-modifying CTE."""
    if sql.startswith("DELETE"):
        return (
            f"WITH w AS ({sql} RETURNING id), m AS (DELETE FROM mirror USING w WHERE mirror.id = w.id)"
            " SELECT count(*) FROM w"
        )
    if sql.startswith("INSERT"):
        return (
            f"WITH w AS ({sql} RETURNING *), m AS (INSERT INTO mirror SELECT * FROM w"
            " ON CONFLICT (id) DO UPDATE SET qty = excluded.qty, note = excluded.note) SELECT count(*) FROM w"
        )
    return (
        f"WITH w AS ({sql} RETURNING *), m AS (UPDATE mirror SET qty = w.qty, note = w.note FROM w"
        " WHERE mirror.id = w.id) SELECT count(*) FROM w"
    )


async def naive_writer(shared: Field, seed: int) -> None:
    rng = random.Random(seed)
    conn = await asyncpg.connect(shared.dsn, statement_cache_size=0)
    try:
        while not shared.stop:
            sql = statement(rng, "items")
            if "SET id" in sql:
                continue
            try:
                async with conn.transaction():
                    await conn.execute(naive(sql))
                    await asyncio.sleep(0.001)
                shared.writes += 1
            except ALLOWED:
                shared.conflicts += 1
    finally:
        await conn.close()


@pytest.mark.slow
async def test_the_harness_finds_the_naive_mirror_wrong(database: Database, db: Any) -> None:
    for number in range(40):
        await db.execute("DROP TABLE IF EXISTS items, mirror; " + SETUP)
        await db.execute("CREATE TABLE mirror (LIKE items INCLUDING ALL)")
        shared = Field(database.dsn)
        tasks = [asyncio.create_task(naive_writer(shared, number * 100 + i)) for i in range(6)]
        for first in range(1, SEED_ROWS, 7):
            await db.execute(
                "INSERT INTO mirror SELECT * FROM (SELECT * FROM items WHERE id >= $1 AND id < $2 FOR SHARE) s"
                " ON CONFLICT DO NOTHING",
                first,
                first + 7,
            )
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        shared.stop = True
        await asyncio.gather(*tasks)
        if await differing(db, "mirror"):
            return
    raise AssertionError("the naive mirror survived")
