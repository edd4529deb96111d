"""The backfill: it can die anywhere, rest, and meet locks and writers; in the end every row is right."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from migrator.phases.context import BackfillOptions
from tests.conftest import Cli
from tests.migrator.conftest import Migrator

BIG = """
CREATE TABLE big (id int PRIMARY KEY, amount int NOT NULL, note text);
INSERT INTO big SELECT i, i % 1000, 'n' FROM generate_series(1, 30000) i;
ANALYZE big;
"""
CENTS = """
operations:
  - alter_column:
      table: big
      column: amount
      type: bigint
      name: cents
      up: amount::bigint
      down: CASE WHEN cents BETWEEN -2147483648 AND 2147483647 THEN cents::int ELSE 0 END
"""


async def test_a_killed_backfill_goes_on_from_its_checkpoint(
    db: Any, migrator: Migrator, migrator_cli: Cli
) -> None:
    await db.execute(BIG)
    path = migrator.file("0001_cents", CENTS)
    process = migrator_cli.popen("start", path, "--batch-size", "500", "--max-rate", "10000")
    deadline = time.monotonic() + 30
    while not await db.fetchval(
        "SELECT to_regclass('dualwire.backfill') IS NOT NULL"
        " AND EXISTS (SELECT FROM dualwire.backfill WHERE rows_done > 2000)"
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    await asyncio.sleep(0.2)
    stopped = await db.fetchrow("SELECT rows_done, position FROM dualwire.backfill")
    assert 2000 < stopped["rows_done"] < 30000
    marked = await db.fetchval('SELECT count(*) FROM big WHERE "_dualwire_mark" IS NOT NULL')
    assert marked == stopped["rows_done"] == int(stopped["position"][0])
    again = migrator_cli("start", path)
    assert again.returncode == 0, again.stderr
    assert f"goes on after key {stopped['position'][0]}" in again.stderr
    wrong = await db.fetchval('SELECT count(*) FROM big WHERE "_dualwire_new_cents" IS DISTINCT FROM amount')
    assert wrong == 0
    assert await db.fetchval("SELECT rows_done FROM dualwire.backfill") == 30000


async def test_a_second_migrator_is_told_who_is_at_work(
    db: Any, migrator: Migrator, migrator_cli: Cli
) -> None:
    await db.execute(BIG)
    path = migrator.file("0001_cents", CENTS)
    first = migrator_cli.popen("start", path, "--batch-size", "200", "--max-rate", "2000")
    deadline = time.monotonic() + 30
    while not await db.fetchval("SELECT EXISTS (SELECT FROM dualwire.backfill WHERE rows_done > 0)"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    second = migrator_cli("start", path, "--lock-wait", "0.2", "--format", "json")
    assert second.returncode == 6
    error = json.loads(second.stdout)["error"]
    assert "another migrator is at work: server process" in error["message"]
    assert "dualwire migrator" in error["message"]
    assert first.poll() is None
    status = migrator_cli("status", "--format", "json")
    [table] = json.loads(status.stdout)["migration"]["backfill"]
    assert table["rows_done"] > 0
    assert table["rate"] > 0
    assert table["throttle"] == "at most 2000 rows/s"
    assert migrator_cli("pause").returncode == 0
    await asyncio.sleep(2.5)
    rested = await db.fetchval("SELECT rows_done FROM dualwire.backfill")
    await asyncio.sleep(1.0)
    assert await db.fetchval("SELECT rows_done FROM dualwire.backfill") == rested
    assert (
        "paused"
        in json.loads(migrator_cli("status", "--format", "json").stdout)["migration"]["backfill"][0][
            "throttle"
        ]
    )
    assert migrator_cli("resume").returncode == 0
    deadline = time.monotonic() + 30
    while await db.fetchval("SELECT rows_done FROM dualwire.backfill") == rested:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_fenced_migrator_can_commit_nothing_more(db: Any, migrator: Migrator) -> None:
    from migrator import engine
    from migrator.errors import NotObtained

    async with engine.working(migrator.dsn, 1) as session:
        await db.execute("UPDATE dualwire.fence SET token = token + 1")
        with pytest.raises(NotObtained, match="another migrator has taken over"):
            async with session.transaction():
                pass


async def test_composite_keys_of_several_types_are_walked_completely(db: Any, migrator: Migrator) -> None:
    await db.execute(
        """
        CREATE TABLE readings (
            place text COLLATE "C", at timestamptz, kind uuid DEFAULT gen_random_uuid(), v int,
            PRIMARY KEY (place, at, kind));
        INSERT INTO readings (place, at, v) SELECT 'p' || i % 7, timestamptz '2026-01-01' + i * interval '1.5 s', i
        FROM generate_series(1, 3000) i;
        """
    )
    small = replace(migrator.options, backfill=BackfillOptions(batch_rows=97))
    migrator.options = small
    path = migrator.file(
        "0001_readings",
        "operations: [{alter_column: {table: readings, column: v, type: bigint, up: 'v', down: 'v::int'}}]",
    )
    await migrator.start(path)
    assert await db.fetchval('SELECT count(*) FROM readings WHERE "_dualwire_new_v" = v') == 3000


async def test_a_row_lock_is_waited_for_without_blocking_others(
    db: Any, migrator: Migrator, database: Any
) -> None:
    await db.execute(BIG)
    path = migrator.file("0001_cents", CENTS)
    await migrator.start(path, "expanded")
    other = await database.connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE big SET note = 'held' WHERE id = 15000")
    work = asyncio.create_task(migrator.start(path))
    await asyncio.sleep(2.0)
    assert not work.done()
    await asyncio.wait_for(db.execute("UPDATE big SET note = 'free' WHERE id = 14999"), 2)
    await transaction.commit()
    await other.close()
    assert (await work).phase == "verified"
    assert await db.fetchval('SELECT count(*) FROM big WHERE "_dualwire_new_cents" = amount') == 30000


async def test_user_triggers_do_not_fire_during_backfill_and_repair(db: Any, migrator: Migrator) -> None:
    await db.execute(BIG)
    await db.execute(
        "CREATE TABLE log (id int); CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log VALUES (NEW.id); RETURN NEW; END $$;"
        " CREATE TRIGGER log AFTER UPDATE ON big FOR EACH ROW EXECUTE FUNCTION log()"
    )
    await migrator.start(migrator.file("0001_cents", CENTS))
    assert await db.fetchval("SELECT count(*) FROM log") == 0
    await db.execute("UPDATE big SET amount = 5000 WHERE id = 1")
    assert await db.fetchval("SELECT count(*) FROM log") == 1
    assert await db.fetchval('SELECT "_dualwire_new_cents" FROM big WHERE id = 1') == 5000


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read"])
async def test_writers_that_come_past_the_sidecars_lose_nothing_in_any_phase(
    db: Any, migrator: Migrator, database: Any, isolation: str
) -> None:
    """Every acknowledged write must be what the row holds in the end, in both shapes."""
    await db.execute(BIG.replace("30000", "6000"))
    migrator.options = replace(migrator.options, backfill=BackfillOptions(batch_rows=200, max_rate=5000))
    path = migrator.file("0001_cents", CENTS)
    expected: dict[int, int] = {i: i % 1000 for i in range(1, 6001)}
    stop = asyncio.Event()

    async def writer(number: int) -> None:
        conn = await database.connect()
        rng = random.Random(number)
        serial = 0
        while not stop.is_set():
            serial += 1
            key = 4 * rng.randrange(1, 1500) + number  # no two writers share a row
            value = rng.randrange(10**6)
            try:
                async with conn.transaction(isolation=isolation):
                    if rng.random() < 0.2:
                        fresh = 1_000_000 * (number + 1) + serial
                        done = fresh
                        await conn.execute("INSERT INTO big VALUES ($1, $2)", fresh, value)
                    else:
                        await conn.execute("UPDATE big SET amount = $2 WHERE id = $1", key, value)
                        done = key
                expected[done] = value
            except asyncpg.SerializationError:
                # The waiver that `plan` prints: only such transactions, and only where a batch touched the row.
                assert isolation == "repeatable_read"
        await conn.close()

    writers = [asyncio.create_task(writer(n)) for n in range(4)]
    try:
        for phase in ("prepared", "expanded", "backfilled", "verified", "cutover"):
            await migrator.start(path, phase)  # type: ignore[arg-type]
            await asyncio.sleep(0.2)
        result = await migrator.verify()
        assert result.clean, result.as_dict()
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*writers)
    rows = await db.fetch('SELECT id, amount, "_dualwire_new_cents" AS cents FROM big')
    assert {r["id"]: r["amount"] for r in rows} == expected
    assert all(r["amount"] == r["cents"] for r in rows)
    assert len(expected) > 6000
    await migrator.complete()
    rows = await db.fetch("SELECT id, cents FROM big")
    assert {r["id"]: r["cents"] for r in rows} == expected


async def test_a_row_that_the_new_version_forbids_becomes_a_problem_beside_columns_that_it_allows(
    db: Any, migrator: Migrator
) -> None:
    await db.execute("CREATE TABLE items (id int PRIMARY KEY, size int, amount int)")
    await db.execute("INSERT INTO items VALUES (1, 2, 3), (2, NULL, 3)")
    text = """
operations:
  - alter_column: {table: items, column: size, nullable: false, up: size, down: size}
  - alter_column: {table: items, column: amount, type: bigint, up: amount, down: amount}
"""
    path = migrator.file("0001_items", text)
    assert (await migrator.start(path, "backfilled")).phase == "backfilled"
    listed = "SELECT key->>'id', direction FROM dualwire.problem"
    assert [tuple(r) for r in await db.fetch(listed)] == [("2", "old")]
    await db.execute("UPDATE items SET amount = 4 WHERE id = 2")
    assert [tuple(r) for r in await db.fetch(listed)] == [("2", "old")]
    assert await db.fetchval("SELECT _dualwire_new_amount FROM items WHERE id = 2") == 4
    await db.execute("UPDATE items SET size = 4 WHERE id = 2")
    assert [tuple(r) for r in await db.fetch(listed)] == []
