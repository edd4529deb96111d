"""Guards ``check`` and ``off``, and partitions that clients name, through sidecars of both versions."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import asyncpg
import pytest

from migrator.errors import Refused
from tests.conftest import Database, SidecarFactory
from tests.migrator.conftest import Migrator

NAME = "0001_events"
TABLES = """
CREATE TABLE events (id int, at int, size text NOT NULL DEFAULT 'small', note text, PRIMARY KEY (id, at))
    PARTITION BY RANGE (at);
CREATE TABLE e1 PARTITION OF events FOR VALUES FROM (0) TO (10);
CREATE TABLE e2 (note text, size text NOT NULL DEFAULT 'small', at int NOT NULL, id int NOT NULL);
ALTER TABLE events ATTACH PARTITION e2 FOR VALUES FROM (10) TO (20);
INSERT INTO events VALUES (1, 1, 'big', 'a'), (2, 12, 'small', 'b');
"""
SIZES = """
operations:
  - alter_column:
      table: events
      column: size
      type: int
      up: CASE size WHEN 'big' THEN 2 ELSE 1 END
      down: CASE size WHEN 2 THEN 'big' ELSE 'small' END
"""


@pytest.fixture
async def migrator(database: Database, tmp_path: Any) -> Migrator:
    made = Migrator(database.dsn, tmp_path)
    await made.init()
    return made


async def completed(migrator: Migrator) -> None:
    """Complete as soon as the sidecars have reported that the old version's clients are gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                await migrator.complete()
                return
            except Refused as refused:
                if "still speak" not in str(refused):
                    raise
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("guard", ["sync", "check", "off"])
async def test_both_versions_write_the_table_and_its_partitions(
    database: Database, migrator: Migrator, sidecar: SidecarFactory, guard: str
) -> None:
    database.sql(TABLES)
    proxy = sidecar()
    early = await proxy.connect(version="base")
    await early.execute("INSERT INTO e1 VALUES (3, 3, 'big', 'early')")
    await migrator.start(migrator.file(NAME, f"guard: {guard}\n{SIZES}"))
    old, new = await proxy.connect(version="base"), await proxy.connect(version=NAME)
    direct = await database.connect()

    async def both(key: int) -> tuple[Any, ...]:
        return tuple(
            await direct.fetchrow(
                'SELECT tableoid::regclass::text, size, "_dualwire_new_size" FROM events WHERE id = $1', key
            )
        )

    for client in (early, old):
        await client.execute("UPDATE e1 SET size = 'small' WHERE id = 3")
        assert await both(3) == ("e1", "small", 1)
        await client.execute("UPDATE events SET size = 'big' WHERE id = 3")
        assert await both(3) == ("e1", "big", 2)
    [first] = await old.fetch("SELECT * FROM e2")
    assert list(first.keys()) == ["note", "size", "at", "id"]
    await old.execute("INSERT INTO e2 VALUES ('listless', 'big', 13, 4)")
    assert await both(4) == ("e2", "big", 2)
    await new.execute("INSERT INTO e2 VALUES ('listless', 1, 14, 5)")
    assert await both(5) == ("e2", "small", 1)
    await new.execute("UPDATE e1 SET size = 7, note = 'n' WHERE id = 1")
    assert await both(1) == ("e1", "small", 7)
    await old.execute("UPDATE events SET at = 15 WHERE id = 1")
    assert await both(1) == ("e2", "small", 7)
    assert await new.fetchval("SELECT size FROM e2 WHERE id = 1") == 7
    errors = {"check": asyncpg.CheckViolationError, "off": asyncpg.ObjectNotInPrerequisiteStateError}
    if guard in errors:
        with pytest.raises(errors[guard]):
            await direct.execute("UPDATE e1 SET size = 'small' WHERE id = 3")
    assert (await migrator.verify()).clean
    await migrator.cutover()
    await old.close()
    await early.close()
    await completed(migrator)
    row = await new.fetchrow("SELECT * FROM e2 WHERE id = 1")
    assert dict(row) == {"note": "n", "size": 7, "at": 15, "id": 1}
    assert list(row.keys()) == ["note", "size", "at", "id"]
    await new.execute("INSERT INTO e2 VALUES ('after', 8, 16, 6)")
    assert await new.fetchval("SELECT size FROM events WHERE id = 6") == 8
    for client in (new, direct):
        await client.close()


async def test_copy_of_both_versions_under_guard_check(
    database: Database, migrator: Migrator, sidecar: SidecarFactory
) -> None:
    database.sql(TABLES)
    await migrator.start(migrator.file(NAME, f"guard: check\n{SIZES}"))
    proxy = sidecar()
    old, new = await proxy.connect(version="base"), await proxy.connect(version=NAME)
    await old.copy_to_table("events", source=io.BytesIO(b"7\t7\tbig\tc\n"))
    await new.copy_to_table("events", source=io.BytesIO(b"8\t8\t2\tc\n"))
    found = await new.fetch("SELECT id, size FROM events WHERE id IN (7, 8) ORDER BY id")
    assert [tuple(r) for r in found] == [(7, 2), (8, 2)]
    assert await old.fetchval("SELECT size FROM events WHERE id = 8") == "big"
    assert (await migrator.verify()).clean
    await old.close()
    await new.close()
