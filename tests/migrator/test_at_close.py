"""``enforce: at_close``: constraints of the new version bind once the old one is over, and closing checks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from migrator.errors import Refused
from migrator.report import document
from tests.migrator.conftest import Migrator

TABLES = """
CREATE TABLE kinds (name text PRIMARY KEY);
INSERT INTO kinds VALUES ('a'), ('b');
CREATE TABLE things (id int PRIMARY KEY, code text, kind text, size int, label text);
INSERT INTO things VALUES (1, 'x', 'a', 1, 'one'), (2, 'y', 'b', 2, 'two');
"""
MIGRATION = """
operations:
  - alter_column: {table: things, column: code, unique: {name: things_code_once, enforce: at_close}}
  - alter_column:
      table: things
      column: kind
      references: {name: things_kind, table: kinds, column: name}
  - alter_column:
      table: things
      column: size
      nullable: false
      enforce: at_close
      check: {name: size_positive, constraint: size > 0, enforce: at_close}
      up: size
      down: size
  - add_column:
      table: things
      up: upper(label)
      column: {name: title, type: text, nullable: true, unique: true}
"""


async def test_plan_lists_them(db: Any, migrator: Migrator) -> None:
    await db.execute(TABLES)
    plan = document(await migrator.design(migrator.file("0001_late", MIGRATION)))
    assert plan["ok"]
    assert [(c["column"], c["kind"], c["name"]) for t in plan["tables"] for c in t["at_close"]] == [
        ("code", "unique", "things_code_once"),
        ("kind", "foreign_key", "things_kind"),
        ("size", "check", "size_positive"),
        ("size", "not_null", "_dualwire_an_size"),
        ("title", "unique", "things_title_key"),
    ]
    assert [f["code"] for f in plan["findings"] if f["code"] == "at_close"] == ["at_close"] * 5


async def test_old_clients_may_break_them_until_closed(
    db: Any, migrator: Migrator, catalog: Callable[[], str]
) -> None:
    await db.execute(TABLES)
    path = migrator.file("0001_late", MIGRATION)
    await migrator.start(path, "cutover")
    wrong = [
        ("INSERT INTO things VALUES (3, 'x', 'a', 1, 'three')", "things_code_once"),
        ("INSERT INTO things VALUES (3, 'z', 'none', 1, 'three')", "things_kind"),
        ("INSERT INTO things VALUES (3, 'z', 'a', -1, 'three')", "size_positive"),
        ("INSERT INTO things VALUES (3, 'z', 'a', NULL, 'three')", "_dualwire_an_size"),
        ("INSERT INTO things VALUES (3, 'z', 'a', 1, 'ONE')", "things_title_key"),
    ]
    for statement, name in wrong:
        await db.execute(statement)
        with pytest.raises(Refused, match=f"rows break the constraint {name}"):
            await migrator.complete()
        await db.execute("DELETE FROM things WHERE id = 3")
    await migrator.complete()
    found = await db.fetch(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'things'::regclass"
        " AND contype <> 'n' AND convalidated ORDER BY 1"
    )
    assert [tuple(r) for r in found] == [
        ("size_positive", "CHECK ((size > 0))"),
        ("things_code_once", "UNIQUE (code)"),
        ("things_kind", "FOREIGN KEY (kind) REFERENCES kinds(name)"),
        ("things_pkey", "PRIMARY KEY (id)"),
        ("things_title_key", "UNIQUE (title)"),
    ]
    with pytest.raises(asyncpg.NotNullViolationError):
        await db.execute("UPDATE things SET size = NULL")


async def test_a_rollback_after_a_refused_close_leaves_nothing(
    db: Any, migrator: Migrator, catalog: Callable[[], str]
) -> None:
    await db.execute(TABLES)
    before = catalog()
    await migrator.start(migrator.file("0001_late", MIGRATION), "cutover")
    await db.execute("INSERT INTO things VALUES (3, 'z', 'a', -1, 'three')")
    with pytest.raises(Refused, match="size_positive"):
        await migrator.complete()
    await db.execute("DELETE FROM things WHERE id = 3")
    await migrator.rollback()
    assert catalog() == before


async def test_lint_says_what_could_never_be_made(db: Any, migrator: Migrator) -> None:
    await db.execute(TABLES + "CREATE TABLE docs (id int PRIMARY KEY, body json, kind text UNIQUE)")
    for body, words in (
        ("{table: docs, column: body, unique: {name: u}}", "no default operator class"),
        ("{table: docs, column: kind, references: {name: r, table: things, column: code}}", "is not unique"),
        ("{table: docs, column: kind, references: {name: r, table: nowhere}}", "does not exist"),
        ("{table: docs, column: kind, unique: {name: docs_kind_key}}", "already exists"),
    ):
        design = await migrator.design(migrator.file("0001_late", f"operations: [{{alter_column: {body}}}]"))
        assert any(words in f.message for f in design.errors()), (body, design.findings)
