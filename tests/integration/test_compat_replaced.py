"""Compat where the table itself was replaced: an app that knows integer keys goes on on bigint ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from migrator import compat
from migrator.errors import Refused
from tests.conftest import Database, SidecarFactory
from tests.migrator.conftest import Migrator
from tests.migrator.replacing import BIGINT, PARTITIONED, TABLES


async def use(conn: Any, number: int) -> list[Any]:
    """What an app does, and what it gets."""
    found: list[Any] = []
    made = await conn.fetchrow(
        "INSERT INTO items (customer, code, qty) VALUES ($1, $2, 3) RETURNING id, total", 1, f"new{number}"
    )
    found.append(tuple(made))
    found.append(await conn.execute("UPDATE items SET qty = qty + 1, id = id WHERE id = $1", made["id"]))
    row = await conn.fetchrow("SELECT * FROM items WHERE id = $1", made["id"])
    found.append([type(value).__name__ for value in row.values()])
    statement = await conn.prepare("SELECT id, code FROM items WHERE id = ANY ($1) ORDER BY id")
    found.append([p.name for p in statement.get_parameters()])
    found.append([a.type.name for a in statement.get_attributes()])
    found.append([tuple(r) for r in await statement.fetch([1, 2, 499])])
    for wrong in ("SELECT nothing FROM items", "INSERT INTO items (id, code) VALUES (3000000000, 'x')"):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await conn.execute(wrong)
        found.append((caught.value.sqlstate, str(caught.value)))
    found.append(await conn.execute("DELETE FROM items WHERE code = $1", f"new{number}"))
    return found


@pytest.mark.parametrize("migration", [BIGINT, PARTITIONED], ids=["bigint", "partitioned"])
async def test_an_app_of_the_old_version_goes_on_on_the_new_table(
    database: Database,
    sidecar: SidecarFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    migration: str,
) -> None:
    async def stop(ctx: Any) -> None:
        raise Refused("stopped by the test")

    database.sql(TABLES)
    if migration is PARTITIONED:
        database.sql("DROP TABLE notes; ALTER TABLE items DROP CONSTRAINT items_code")
    direct = await database.connect()
    expected = await use(direct, 0)
    migrator = Migrator(database.dsn, tmp_path)
    await migrator.init()
    await migrator.start(migrator.file("0001_items", "compat: true" + migration), "cutover")
    old = await asyncpg.connect(sidecar(schema_version="base").dsn())
    ids = []
    for phase in ("cutover", "closed", "completed"):
        if phase == "closed":
            with monkeypatch.context() as patch:
                patch.setattr("migrator.phases.swap.run", stop)
                with pytest.raises(Refused, match="stopped by the test"):
                    await migrator.complete()
        elif phase == "completed":
            assert (await migrator.complete()).details == {"compat": "base"}
        got = await use(old, len(ids) + 1)
        ids.append(got[0][0])
        assert got[1:] == expected[1:], phase
    assert ids == [expected[0][0] + n for n in (1, 2, 3)]
    assert await direct.fetchval("SELECT count(*) FROM items") == 500
    assert [one for one in await compat.left(direct) if one.startswith("TABLE")] == [
        "TABLE dualwire.compat_twin_1_r1"
    ]
    await old.close()
    await direct.close()
