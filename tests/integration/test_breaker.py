"""Rewritten writes that fail where the client's own would not: after a few the guard takes the table over."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import asyncpg
import pytest

from migrator import engine
from migrator import status as status_module
from tests.conftest import Database, Sidecar, SidecarFactory
from tests.migrator.conftest import Migrator

SETUP = """
CREATE TABLE items (id integer PRIMARY KEY, status text NOT NULL);
GRANT ALL ON items TO {role};
"""
MIGRATION = """
operations:
  - alter_column:
      table: items
      column: status
      type: smallint
      up: CASE status WHEN 'new' THEN 0 ELSE 9 END
      down: CASE status WHEN 0 THEN 'new' ELSE 'other' END
"""


@pytest.fixture
def role(database: Database) -> Any:
    name = f"app_{database.name}"
    database.sql(f"CREATE ROLE {name} LOGIN")
    yield name
    database.sql(f"DROP OWNED BY {name}; DROP ROLE {name}")


def mirrored(proxy: Sidecar) -> float:
    """How many statements wrote both shapes."""
    found = re.search(
        r'dualwire_mirrored_statements_total\{database="shop"\} (\S+)', proxy.get("/metrics")[1]
    )
    assert found is not None
    return float(found[1])


async def test_the_clients_own_mistakes_beside_a_rewritten_write_do_not_count(
    database: Database, sidecar: SidecarFactory, role: str, tmp_path: Any
) -> None:
    migrator = Migrator(database.dsn, tmp_path)
    await migrator.init()
    database.sql(SETUP.format(role=role))
    await migrator.start(migrator.file("0001_items", MIGRATION), "backfilled")
    proxy = sidecar()
    client = await proxy.connect(version="base")
    for key in range(4):
        with pytest.raises(asyncpg.UndefinedColumnError):
            await client.execute(f"INSERT INTO items VALUES ({key}, 'new'); SELECT nothing FROM items")
    assert 'dualwire_mirror_failures_total{database="shop"} 0.0' in proxy.get("/metrics")[1]


async def test_a_table_whose_rewritten_writes_fail_is_handed_to_the_guard_until_the_next_epoch(
    database: Database, sidecar: SidecarFactory, role: str, tmp_path: Any
) -> None:
    migrator = Migrator(database.dsn, tmp_path)
    await migrator.init()
    database.sql(SETUP.format(role=role))
    path = migrator.file("0001_items", MIGRATION)
    await migrator.start(path, "backfilled")
    proxy = sidecar()
    client = await proxy.connect(version="base")
    await client.execute("INSERT INTO items VALUES (1, 'new')")
    await client.execute(f"SET ROLE {role}")
    # What a rewritten write needs beyond the client's own is taken away.
    database.sql("REVOKE EXECUTE ON FUNCTION dualwire.up_1_1 FROM PUBLIC")
    for key in (2, 3, 4):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await client.execute(f"INSERT INTO items VALUES ({key}, 'new')")
    for key in (5, 6):
        await client.execute(f"INSERT INTO items VALUES ({key}, 'new')")
    # Who lacks nothing goes on as before.
    other = await proxy.connect(version="base")
    before = mirrored(proxy)
    await other.execute("DELETE FROM items WHERE id = 1")
    await other.execute("INSERT INTO items VALUES (1, 'new')")
    assert mirrored(proxy) == before + 1
    async with database.connection() as direct:
        rows = await direct.fetch("SELECT id, _dualwire_new_status FROM items ORDER BY id")
    assert [tuple(row) for row in rows] == [(1, 0), (5, 0), (6, 0)]
    _, metrics = proxy.get("/metrics")
    assert 'dualwire_tables_handed_to_guard{database="shop"} 1.0' in metrics
    assert 'dualwire_mirror_failures_total{database="shop"} 3.0' in metrics

    async def told() -> list[str]:
        async with engine.reading(database.dsn) as conn:
            found = await status_module.status(conn)
        assert "left to the guard" in status_module.text(found) or not found["sidecars"][0]["handed_to_guard"]
        return list(found["sidecars"][0]["handed_to_guard"])

    async with asyncio.timeout(20):
        while await told() != ["public.items"]:
            await asyncio.sleep(0.1)
    database.sql("GRANT EXECUTE ON FUNCTION dualwire.up_1_1 TO PUBLIC")
    await migrator.start(path, "verified")
    await client.execute("INSERT INTO items VALUES (7, 'new')")
    _, metrics = proxy.get("/metrics")
    assert 'dualwire_tables_handed_to_guard{database="shop"} 0.0' in metrics
