"""Kind A on partitioned tables: two levels, a partition with another order of columns, one that comes later.

`events` is partitioned by `at`; `e2` again by `id`; `e3` was attached and has its columns in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from migrator import engine, partitions
from migrator.errors import Differences, Refused
from tests.migrator.conftest import Migrator

TABLES = """
CREATE TABLE events (
    id int, at int, size text NOT NULL DEFAULT 'small', note text, PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);
CREATE TABLE e1 PARTITION OF events FOR VALUES FROM (0) TO (10);
CREATE TABLE e2 PARTITION OF events FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE TABLE e21 PARTITION OF e2 FOR VALUES FROM (0) TO (100);
CREATE TABLE e22 PARTITION OF e2 DEFAULT;
CREATE TABLE e3 (note text, gone int, size text NOT NULL DEFAULT 'small', at int NOT NULL, id int NOT NULL);
ALTER TABLE e3 DROP COLUMN gone;
ALTER TABLE events ATTACH PARTITION e3 FOR VALUES FROM (20) TO (30);
CREATE INDEX events_size ON events (size DESC, at);
INSERT INTO events SELECT i, i % 30, CASE WHEN i % 2 = 0 THEN 'big' ELSE 'small' END, 'n' || i
FROM generate_series(1, 120) i;
"""
MIGRATION = """
operations:
  - alter_column:
      table: events
      column: size
      type: int
      name: weight
      up: CASE size WHEN 'big' THEN 2 ELSE 1 END
      down: CASE weight WHEN 2 THEN 'big' ELSE 'small' END
"""
NEW, MARK = "_dualwire_new_weight", "_dualwire_mark"


@pytest.fixture
async def path(db: Any, migrator: Migrator) -> Any:
    await db.execute(TABLES)
    return migrator.file("0001_events", MIGRATION)


async def row(db: Any, key: int) -> tuple[Any, ...]:
    return tuple(
        await db.fetchrow(
            f'SELECT tableoid::regclass::text, size, "{NEW}", "{MARK}" FROM events WHERE id = $1', key
        )
    )


async def models(migrator: Migrator) -> dict[str, Any]:
    return {t["name"]: t for t in (await migrator.routing())["state"]["tables"]}


async def test_every_partition_is_published_in_every_phase(db: Any, migrator: Migrator, path: Any) -> None:
    everyone = {"events", "e1", "e2", "e21", "e22", "e3"}
    await migrator.start(path, "prepared")
    tables = await models(migrator)
    assert tables.keys() == everyone
    assert [c[0] for c in tables["e3"]["old"]] == ["note", "size", "at", "id"]
    await migrator.start(path, "verified")
    tables = await models(migrator)
    assert tables.keys() == everyone
    assert [c[0] for c in tables["events"]["new"]] == ["id", "at", "weight", "note"]
    assert [tuple(c) for c in tables["e3"]["new"]] == [
        ("note", "note"),
        ("weight", NEW),
        ("at", "at"),
        ("id", "id"),
    ]
    assert all(t["mark"] == MARK and t["up"] == tables["events"]["up"] for t in tables.values())
    assert tables["e3"]["oid"] == await db.fetchval("SELECT 'e3'::regclass::oid::int")
    await migrator.cutover()
    await migrator.complete()
    tables = await models(migrator)
    assert tables.keys() == everyone
    assert [tuple(c) for c in tables["e1"]["old"]] == [(n, n) for n in ("id", "at", "weight", "note")]
    assert [c[0] for c in tables["e3"]["old"]] == ["note", "weight", "at", "id"]
    second = migrator.file(
        "0002_more",
        "operations: [{add_column: {table: events, column: {name: x, type: int, nullable: true}}}]",
    )
    await migrator.run(second)
    assert [c[0] for c in (await models(migrator))["e3"]["old"]] == ["note", "weight", "at", "id", "x"]


async def test_the_guard_is_on_every_partition_and_always(db: Any, migrator: Migrator, path: Any) -> None:
    await migrator.start(path, "expanded")
    await db.execute("CREATE TABLE e4 PARTITION OF events FOR VALUES FROM (30) TO (40)")
    enabled = await db.fetch(
        "SELECT tgrelid::regclass::text, tgenabled::text FROM pg_trigger"
        " WHERE tgname = 'zzz_dualwire_guard' ORDER BY 1"
    )
    assert [tuple(r) for r in enabled] == [(n, "A") for n in ("e1", "e2", "e21", "e22", "e3", "e4", "events")]
    await db.execute("INSERT INTO e4 VALUES (500, 35, 'big')")
    assert await row(db, 500) == ("e4", "big", 2, 1)
    await migrator.start(path, "verified")
    assert "e4" not in await models(migrator)
    await migrator.cutover()
    await migrator.complete()
    assert await db.fetchval("SELECT weight FROM e4") == 2


async def test_a_partition_whose_trigger_fires_otherwise_is_put_right(
    db: Any, migrator: Migrator, path: Any
) -> None:
    """As a server would leave it that does not hand the state of a trigger on to partitions."""
    await migrator.start(path, "expanded")
    await db.execute("ALTER TABLE e2 ENABLE TRIGGER zzz_dualwire_guard")
    async with engine.working(migrator.dsn, 5) as session:
        ctx = await engine.active_context(session, migrator.progress, migrator.options)
        await partitions.fire_alike(db, ctx.design.tables)
    enabled = "SELECT DISTINCT tgenabled::text FROM pg_trigger WHERE tgname = 'zzz_dualwire_guard'"
    assert [r[0] for r in await db.fetch(enabled)] == ["A"]


async def test_writes_past_the_sidecars_are_carried_over(db: Any, migrator: Migrator, path: Any) -> None:
    await migrator.start(path, "backfilled")
    await db.execute("UPDATE e1 SET size = 'big' WHERE id = 1")
    assert await row(db, 1) == ("e1", "big", 2, 2)
    await db.copy_records_to_table("e3", records=[(700, 25, "big")], columns=["id", "at", "size"])
    assert await row(db, 700) == ("e3", "big", 2, 1)
    await db.execute("SET session_replication_role = replica; UPDATE e22 SET size = 'big' WHERE id = 105")
    await db.execute("RESET session_replication_role")
    assert (await row(db, 105))[:3] == ("e22", "big", 2)
    await db.execute(
        "MERGE INTO events e USING (VALUES (3)) v(id) ON e.id = v.id WHEN MATCHED THEN UPDATE SET size = 'big'"
    )
    assert (await row(db, 3))[1:3] == ("big", 2)
    assert (await migrator.verify()).clean


async def test_rows_that_move_to_another_partition(db: Any, migrator: Migrator, path: Any) -> None:
    await migrator.start(path, "verified")
    await db.execute("UPDATE events SET at = 25 WHERE id = 1")
    assert await row(db, 1) == ("e3", "small", 1, 1)
    await db.execute("UPDATE events SET at = 15, size = 'big' WHERE id = 1")
    assert (await row(db, 1))[:3] == ("e21", "big", 2)
    await db.execute(f'UPDATE events SET size = \'small\', "{NEW}" = 7, "{MARK}" = 3 WHERE id = 2')
    await db.execute("UPDATE events SET at = 25 WHERE id = 2")
    assert await row(db, 2) == ("e3", "small", 7, 3)
    await db.execute("UPDATE events SET at = 5, size = 'big' WHERE id = 2")
    assert (await row(db, 2))[:3] == ("e1", "big", 2)
    await db.execute(f'UPDATE events SET at = 15, size = \'small\', "{NEW}" = 9, "{MARK}" = 3 WHERE id = 2')
    assert await row(db, 2) == ("e21", "small", 9, 3)
    assert (await migrator.verify()).clean


async def test_indexes_are_built_on_each_partition_and_keep_their_names(
    db: Any, migrator: Migrator, path: Any
) -> None:
    listed = (
        "SELECT tablename, indexname, replace(indexdef, 'weight', 'size') AS def FROM pg_indexes"
        " WHERE schemaname = 'public' ORDER BY 1, 2"
    )
    before = [tuple(r) for r in await db.fetch(listed)]
    await migrator.start(path, "backfilled")
    valid = await db.fetchval(
        "SELECT bool_and(indisvalid) FROM pg_index WHERE indexrelid::regclass::text ~ '_dualwire_index'"
    )
    assert valid
    await migrator.run(path)
    assert [tuple(r) for r in await db.fetch(listed)] == before
    inherited = await db.fetchval("SELECT count(*) FROM pg_partition_tree('events_size') WHERE level > 0")
    assert inherited == 5


@pytest.mark.parametrize("guard", ["sync", "check", "off"])
async def test_a_rollback_leaves_the_catalog_as_it_was(
    db: Any, migrator: Migrator, catalog: Callable[[], str], guard: str
) -> None:
    await db.execute(TABLES)
    before = catalog()
    await migrator.start(migrator.file("0001_events", f"guard: {guard}\n{MIGRATION}"), "cutover")
    await migrator.rollback()
    assert catalog() == before
    tables = await models(migrator)
    assert tables == {}


async def test_check_and_off_hold_on_partitions_that_are_named(db: Any, migrator: Migrator) -> None:
    await db.execute(TABLES)
    await migrator.start(migrator.file("0001_events", f"guard: check\n{MIGRATION}"), "backfilled")
    await db.execute("CREATE TABLE e4 PARTITION OF events FOR VALUES FROM (30) TO (40)")
    for statement in ("UPDATE e1 SET size = 'big' WHERE id = 1", "INSERT INTO e4 VALUES (500, 35, 'big')"):
        with pytest.raises(asyncpg.CheckViolationError, match="_dualwire_guard"):
            await db.execute(statement)
    await migrator.rollback()
    await migrator.start(migrator.file("0001_events", f"guard: off\n{MIGRATION}"), "backfilled")
    for statement in ("UPDATE e1 SET size = 'big' WHERE id = 1", "INSERT INTO e4 VALUES (500, 35, 'big')"):
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="through a sidecar only"):
            await db.execute(statement)


async def test_a_row_that_was_attached_is_found_by_verify(db: Any, migrator: Migrator, path: Any) -> None:
    await migrator.start(path, "backfilled")
    await db.execute(
        "CREATE TABLE e5 (LIKE events); INSERT INTO e5 VALUES (900, 45, 'big');"
        " ALTER TABLE events ATTACH PARTITION e5 FOR VALUES FROM (40) TO (50)"
    )
    with pytest.raises(Differences, match="1 of them never carried over"):
        await migrator.start(path)
    assert (await migrator.verify(repair=True)).clean


async def test_a_detached_partition_is_drift(db: Any, migrator: Migrator, path: Any) -> None:
    await migrator.start(path, "expanded")
    await db.execute("ALTER TABLE e1 DISABLE TRIGGER zzz_dualwire_guard")
    with pytest.raises(Refused, match=r"partition public\.e1 changed"):
        await migrator.start(path)
    await db.execute("ALTER TABLE e1 ENABLE ALWAYS TRIGGER zzz_dualwire_guard")
    await db.execute("ALTER TABLE events DETACH PARTITION e3")
    with pytest.raises(Refused, match=r"partition public\.e3 is gone"):
        await migrator.start(path)


async def test_lint_refuses_what_cannot_work(db: Any, migrator: Migrator) -> None:
    await db.execute(TABLES)
    await db.execute(
        "CREATE INDEX alone ON e1 (size); ALTER TABLE e21 ADD CONSTRAINT own CHECK (size <> 'x');"
        " CREATE TABLE base (id int PRIMARY KEY, a int); CREATE TABLE child () INHERITS (base)"
    )
    codes = [f.code for f in (await migrator.design(migrator.file("0001_events", MIGRATION))).errors()]
    assert codes == ["partition_index", "partition_constraint"]
    for table, column, up, down, code in (
        ("events", "at", "at::bigint", "at::int", "partition_key"),
        ("base", "a", "a::bigint", "a::int", "inheritance"),
        ("e1", "note", "length(note)", "note::text", "inheritance"),
    ):
        change = f"table: {table}, column: {column}, type: bigint, up: {up}, down: {down}"
        text = f"operations: [{{alter_column: {{{change}}}}}]"
        found = await migrator.design(migrator.file("0001_refused", text))
        assert code in {f.code for f in found.errors()}


async def test_a_partitions_own_trigger_leaves_the_whole_table_to_the_guard(
    db: Any, migrator: Migrator, path: Any
) -> None:
    await db.execute(
        "CREATE FUNCTION grow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.size := 'big'; RETURN NEW; END $$;"
        " CREATE TRIGGER grow BEFORE INSERT ON e21 FOR EACH ROW EXECUTE FUNCTION grow()"
    )
    await migrator.start(path, "backfilled")
    assert not any(t["inline"] for t in (await models(migrator)).values())
    await db.execute("INSERT INTO events VALUES (50, 15, 'small')")
    assert (await db.fetchrow("SELECT * FROM e21 WHERE id = 50"))[NEW] == 2
    assert (await migrator.verify()).clean
