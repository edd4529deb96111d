"""Statements that SQL's PREPARE made while a migration was under way, executed when it is not."""

from __future__ import annotations

from typing import Any

from tests.conftest import Database, SidecarFactory
from tests.migrator.conftest import Migrator

NAME = "0001_items"
MIGRATION = """
operations:
  - alter_column:
      table: items
      column: status
      type: smallint
      up: CASE status WHEN 'new' THEN 0 ELSE 1 END
      down: CASE status WHEN 0 THEN 'new' ELSE 'paid' END
"""


async def test_what_was_prepared_writes_both_shapes_and_outlives_a_rollback(
    database: Database, sidecar: SidecarFactory, tmp_path: Any
) -> None:
    migrator = Migrator(database.dsn, tmp_path)
    await migrator.init()
    database.sql("CREATE TABLE items (id integer PRIMARY KEY, status text NOT NULL)")
    await migrator.start(migrator.file(NAME, MIGRATION), "verified")
    client = await sidecar().connect(version="base", statement_cache_size=0)
    await client.execute("PREPARE added AS INSERT INTO items VALUES ($1, $2) RETURNING *")
    await client.execute("PREPARE changed AS UPDATE items SET status = $2 WHERE id = $1")
    await client.execute("EXECUTE added (1, 'new')")
    await client.execute("EXECUTE added (2, 'new')")
    await client.execute("EXECUTE changed (2, 'paid')")
    found = database.sql("SELECT id, status, _dualwire_new_status FROM items ORDER BY id")
    assert found.split() == ["1|new|0", "2|paid|1"]
    assert (await migrator.verify()).clean
    await migrator.rollback()
    await client.execute("EXECUTE added (3, 'new')")
    await client.execute("EXECUTE changed (1, 'paid')")
    assert database.sql("SELECT id, status FROM items ORDER BY id").split() == ["1|paid", "2|paid", "3|new"]
