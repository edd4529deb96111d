"""Texts that the parser would misread: in another encoding, or with backslashes that escape."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.conftest import Database, SidecarFactory
from tests.migrator.conftest import Migrator

NAME = "0001_items"
MIGRATION = """
operations:
  - alter_column:
      table: items
      column: status
      type: smallint
      up: CASE status WHEN 'new' THEN 0 ELSE 9 END
      down: CASE status WHEN 0 THEN 'new' ELSE 'paid' END
"""


TEXTS = [
    ("client_encoding TO latin1", "UPDATE items SET status = {}, note = 'é' WHERE id = 1", "é"),
    (
        "standard_conforming_strings TO off",
        r"UPDATE items SET status = {}, note = 'it\'s' WHERE id = 1",
        "it's",
    ),
    (
        "standard_conforming_strings TO off",
        r"UPDATE items SET status = {}, note = '\' WHERE id = 2 --' WHERE id = 1",
        "' WHERE id = 2 --",
    ),
]


async def test_what_would_be_misread_is_left_to_the_guard_or_refused(
    database: Database, sidecar: SidecarFactory, tmp_path: Any
) -> None:
    migrator = Migrator(database.dsn, tmp_path)
    await migrator.init()
    database.sql("CREATE TABLE items (id integer PRIMARY KEY, status text NOT NULL, note text)")
    database.sql("INSERT INTO items VALUES (1, 'new'), (2, 'new')")
    await migrator.start(migrator.file(NAME, MIGRATION), "verified")
    proxy = sidecar()
    with (
        psycopg.connect(proxy.dsn(), options="-c dualwire.version=base", autocommit=True) as old,
        psycopg.connect(proxy.dsn(), options=f"-c dualwire.version={NAME}", autocommit=True) as new,
    ):
        for number, (setting, text, note) in enumerate(TEXTS):
            for client in (old, new):
                client.execute("RESET ALL")
                client.execute(f"SET {setting}")
            status = "abc"[number]
            old.execute(text.format(f"'{status}'"))
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                new.execute(text.format("7"))
            assert database.sql("SELECT * FROM items WHERE id = 1").split("|")[:4] == ["1", status, note, "9"]
            # What cannot be misread is translated.
            new.execute("UPDATE items SET status = 7, note = 'x' WHERE id = 1")
            assert database.sql("SELECT _dualwire_new_status FROM items WHERE id = 1") == "7"
    assert database.sql("SELECT status, note, _dualwire_new_status FROM items WHERE id = 2") == "new||0"
    assert (await migrator.verify()).clean
