"""COPY through the view of a version: every format, defaults, identity, constraints, privileges, both directions."""

from __future__ import annotations

import io
from typing import Any

import asyncpg
import pytest

from migrator import engine
from migrator.phases import close
from tests.conftest import Database
from tests.migrator.conftest import Migrator

TABLES = """
CREATE TYPE mood AS ENUM ('fine', 'bad');
CREATE TABLE people (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    size text NOT NULL DEFAULT 'small',
    name varchar(5) NOT NULL,
    mood mood DEFAULT 'fine',
    serial serial,
    twice int GENERATED ALWAYS AS (length(name) * 2) STORED,
    note text CHECK (note <> 'bad'),
    born timestamptz DEFAULT now()
);
"""
MIGRATION = """
operations:
  - alter_column:
      table: people
      column: size
      type: int
      up: CASE size WHEN 'big' THEN 2 ELSE 1 END
      down: CASE size WHEN 2 THEN 'big' ELSE 'small' END
      default: "2"
      check: {name: size_small, constraint: size < 10}
  - rename_column: {table: people, from: name, to: label}
"""
NAMES = "id, label, mood, size, note"


@pytest.fixture
async def people(db: Any, migrator: Migrator) -> str:
    """The view, in phase verified."""
    await db.execute(TABLES)
    await migrator.start(migrator.file("0001_people", MIGRATION))
    return await view(migrator, "new")


async def view(migrator: Migrator, side: str) -> str:
    [table] = (await migrator.routing())["state"]["tables"]
    return ".".join(table[f"copy_{side}"])


async def copy(db: Any, name: str, data: bytes, columns: Any = None, **options: Any) -> str:
    schema, _, table = name.partition(".")
    tag: str = await db.copy_to_table(
        table, source=io.BytesIO(data), schema_name=schema, columns=columns, **options
    )
    return tag


async def rows(db: Any) -> list[tuple[Any, ...]]:
    found = await db.fetch(
        'SELECT id, size, "_dualwire_new_size", "_dualwire_mark", name, mood::text, serial, twice, note'
        " FROM people ORDER BY id"
    )
    return [tuple(r) for r in found]


async def test_the_view_has_the_columns_of_the_version_in_its_order(db: Any, people: str) -> None:
    columns = await db.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1::regclass"
        " AND attnum > 0 ORDER BY attnum",
        people,
    )
    assert [tuple(c) for c in columns] == [
        ("id", "integer"),
        ("size", "integer"),
        ("label", "character varying(5)"),
        ("mood", "mood"),
        ("serial", "integer"),
        ("note", "text"),
        ("born", "timestamp with time zone"),
    ]


async def test_text_csv_and_binary_give_both_shapes(db: Any, people: str, migrator: Migrator) -> None:
    assert await copy(db, people, b"ann\t2\nbob\t1\n", ["label", "size"]) == "COPY 2"
    data = b"label,size,mood\ncarl,7,bad\n"
    statement = f"COPY {people} (label, size, mood) FROM STDIN (FORMAT csv, HEADER MATCH)"
    result = await db._copy_in(statement, io.BytesIO(data), None)
    assert result == "COPY 1"
    await db.copy_records_to_table(
        people.partition(".")[2],
        schema_name="dualwire",
        records=[("dora", 2, "x")],
        columns=["label", "size", "note"],
    )
    assert await rows(db) == [
        (1, "big", 2, 3, "ann", "fine", 1, 6, None),
        (2, "small", 1, 3, "bob", "fine", 2, 6, None),
        (3, "small", 7, 3, "carl", "bad", 3, 8, None),
        (4, "big", 2, 3, "dora", "fine", 4, 8, "x"),
    ]
    assert await db.fetchval("SELECT last_value FROM dualwire.guard_repairs_1") == 1
    assert not await db.fetchval("SELECT is_called FROM dualwire.guard_repairs_1")
    assert (await migrator.verify()).clean


async def test_omitted_and_given_values(db: Any, people: str) -> None:
    await copy(db, people, b"eve\n", ["label"])
    await copy(db, people, b"77\tfay\n", ["id", "label"])
    found = await rows(db)
    assert [(r[0], r[1], r[2], r[6]) for r in found] == [(1, "big", 2, 1), (77, "big", 2, 2)]
    assert await db.fetchval("SELECT count(*) FROM people WHERE born IS NOT NULL") == 2


async def test_errors_are_those_of_the_table(db: Any, people: str) -> None:
    for data, columns, error, constraint in (
        (b"\\N\n", ["label"], asyncpg.NotNullViolationError, None),
        (b"abcdefg\n", ["label"], asyncpg.StringDataRightTruncationError, None),
        (b"a\tbad\n", ["label", "note"], asyncpg.CheckViolationError, "people_note_check"),
        (b"50\ta\t1\n", ["id", "label", "size"], None, None),
        (b"50\tb\n", ["id", "label"], asyncpg.UniqueViolationError, "people_pkey"),
        (b"x\n", ["mood"], asyncpg.InvalidTextRepresentationError, None),
        (b"a\t99\n", ["label", "size"], asyncpg.CheckViolationError, "size_small"),
        (b"1\n", ["twice"], asyncpg.UndefinedColumnError, None),
    ):
        if error is None:
            await copy(db, people, data, columns)
            continue
        with pytest.raises(error) as caught:
            await copy(db, people, data, columns)
        if constraint is not None:
            assert caught.value.constraint_name == constraint
            assert caught.value.table_name == "people"
    assert len(await rows(db)) == 1


async def test_whoever_may_insert_may_copy_and_nobody_else(
    db: Any, people: str, database: Database, migrator: Migrator
) -> None:
    await db.execute("CREATE ROLE copier; CREATE ROLE other; GRANT INSERT ON people TO copier")
    await db.execute("GRANT USAGE ON SEQUENCE people_serial_seq TO copier")
    try:
        await db.execute("SET ROLE copier")
        await copy(db, people, b"gus\n", ["label"])
        await db.execute("SET ROLE other")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="people"):
            await copy(db, people, b"gus\n", ["label"])
        await db.execute("RESET ROLE")
        assert len(await rows(db)) == 1
    finally:
        await db.execute("RESET ROLE; DROP OWNED BY copier, other; DROP ROLE copier, other")


async def test_a_before_trigger_sees_the_callers_path_and_the_guard_repairs_what_it_changes(
    db: Any, migrator: Migrator
) -> None:
    await db.execute(
        TABLES + "CREATE TABLE seen (name text); CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO seen VALUES (NEW.name); NEW.size := 'big'; RETURN NEW; END $$;"
        " CREATE TRIGGER see BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION see()"
    )
    await migrator.start(migrator.file("0001_people", MIGRATION))
    await copy(db, await view(migrator, "new"), b"hal\t5\n", ["label", "size"])
    assert [r[:3] for r in await rows(db)] == [(1, "big", 2)]
    assert await db.fetchval("SELECT count(*) FROM seen") == 1
    assert (await migrator.verify()).clean


async def test_old_speakers_have_a_view_where_no_guard_carries_over(db: Any, migrator: Migrator) -> None:
    await db.execute(TABLES)
    await migrator.start(migrator.file("0001_people", f"guard: check\n{MIGRATION}"))
    await copy(db, await view(migrator, "old"), b"ida\tbig\nmax\tsmall\n", ["name", "size"])
    assert [r[1:4] for r in await rows(db)] == [("big", 2, 1), ("small", 1, 1)]
    await copy(db, await view(migrator, "new"), b"joe\t2\n", ["label", "size"])
    assert (await migrator.verify()).clean


async def test_the_views_go_with_the_old_version_and_with_a_rollback(db: Any, migrator: Migrator) -> None:
    await db.execute(TABLES)
    path = migrator.file("0001_people", MIGRATION)
    await migrator.start(path, "cutover")
    name = await view(migrator, "new")
    async with engine.working(migrator.dsn, 5) as session:
        ctx = await engine.active_context(session, migrator.progress, migrator.options)
        await close.run(ctx, outlives=False)
    [table] = (await migrator.routing())["state"]["tables"]
    assert table.get("copy_new") is None
    await copy(db, name, b"kim\n", ["label"])  # a sidecar that has not heard of it yet
    await migrator.run(path)
    assert await db.fetchval("SELECT to_regclass($1)", name) is None
    assert await db.fetchval("SELECT count(*) FROM pg_proc WHERE proname ~ '^copy_'") == 0
    assert await db.fetchval("SELECT size FROM people") == 2
    back = migrator.file(
        "0002_back",
        "operations: [{add_column: {table: people, up: label, column: {name: again, type: text, nullable: true}}}]",
    )
    await migrator.start(back, "expanded")
    assert await view(migrator, "new") == "dualwire.copy_2_1_new"
    await migrator.rollback()
    assert await db.fetchval("SELECT count(*) FROM pg_proc WHERE proname ~ '^copy_'") == 0
