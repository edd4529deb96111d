"""What the replacement of a table refuses, warns of and carries along; and that every step may be run again."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from migrator import report, status
from migrator.errors import Refused
from migrator.replace import flip, steps, swap
from tests.migrator.conftest import Migrator
from tests.migrator.replacing import BIGINT, TABLES, problems, rows, same


@pytest.fixture
async def shop(db: Any, migrator: Migrator) -> Migrator:
    await db.execute(TABLES)
    return migrator


def replaced(body: str) -> str:
    return (
        "operations:\n  - replace_table:\n      table: items\n      " + body.replace("\n", "\n      ") + "\n"
    )


REFUSED = {
    "no such column": (
        replaced("columns: [{name: extra, type: int}]"),
        "",
        "could not hold a value before the flip",
    ),
    "changes nothing": (replaced("columns: []"), "", "changes nothing"),
    "statement": (
        replaced("columns: [{name: id, type: bigint}]\nmirror: statement"),
        "",
        "statement is not supported yet",
    ),
    "no way over": (replaced("columns: [{name: code, type: int}]"), "", "does not become integer by itself"),
    "key expression": (
        replaced("columns: [{name: id, type: bigint}]\nup: {id: id + 1}\ndown: {id: (id - 1)::int4}"),
        "",
        "rows could not be told to belong together",
    ),
    "volatile": (
        replaced('up: {code: "code || random()"}\ndown: {code: code}'),
        "",
        "up is volatile",
    ),
    "view": (
        BIGINT,
        "CREATE VIEW v AS SELECT id FROM items",
        "used by view public.v",
    ),
    "rules": (BIGINT, "CREATE RULE r AS ON DELETE TO items DO ALSO NOTIFY gone", "has rules"),
    "policies": (BIGINT, "ALTER TABLE items ENABLE ROW LEVEL SECURITY", "row-level security"),
    "inheritance": (BIGINT, "CREATE TABLE child () INHERITS (items)", "inheritance"),
    "deferrable": (
        BIGINT,
        "ALTER TABLE items DROP CONSTRAINT items_code, ADD CONSTRAINT items_code UNIQUE (code) DEFERRABLE",
        "deferrable keys",
    ),
    "referenced": (
        replaced(
            "primary_key: [id, created_at]\npartition_by: RANGE (created_at)\n"
            "partitions: [{name: rest, default: true}]"
        ),
        "ALTER TABLE items DROP CONSTRAINT items_code",
        "not unique in the new table",
    ),
    "unique without the partition key": (
        replaced('partition_by: HASH (id)\npartitions: [{name: p, values: "WITH (MODULUS 1, REMAINDER 0)"}]'),
        "",
        "unique constraint on partitioned table must include all partitioning columns",
    ),
    "bad partition": (
        replaced("partition_by: RANGE (id)\npartitions: [{name: p, values: nonsense}]"),
        "ALTER TABLE items DROP CONSTRAINT items_code",
        "syntax error",
    ),
    "nullable key": (
        replaced("primary_key: [id, customer]"),
        "ALTER TABLE notes DROP CONSTRAINT notes_item",
        "may be NULL",
    ),
    "row type": (
        BIGINT,
        "CREATE FUNCTION f(items) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "used by function public.f(public.items)",
    ),
}


async def test_what_cannot_be_carried_over_is_refused(shop: Migrator, db: Any) -> None:
    for case, (text, setup, said) in REFUSED.items():
        await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public;" + TABLES + setup)
        with pytest.raises(Refused) as caught:
            await shop.start(shop.file("0001_replace", text))
        assert said in caught.value.message, case
    assert await db.fetchval("SELECT to_regclass('\"_dualwire_new_items\"')") is None
    assert await db.fetchval("SELECT count(*) FROM dualwire.migration") == 0


async def test_the_plan_prints_both_ways_of_every_step(shop: Migrator) -> None:
    plan = report.document(await shop.design(shop.file("0001_replace", BIGINT)))
    phase = {p["phase"]: p for p in plan["phases"]}
    assert any(
        s.startswith('CREATE TABLE "public"."_dualwire_new_items"') for s in phase["expanded"]["forward"]
    )
    assert 'DROP TABLE IF EXISTS "public"."_dualwire_new_items"' in phase["expanded"]["backward"]
    assert phase["backfilled"]["forward"][0].startswith('UPDATE "public"."items" AS t SET')
    sequence = 'ALTER SEQUENCE "public"."items_id_seq" AS'
    assert f"{sequence} bigint" in phase["cutover"]["forward"]
    assert any(f"{sequence} integer" in s for s in phase["cutover"]["backward"])
    assert 'DROP TABLE "public"."items"' in phase["completed"]["forward"]
    assert any("40001" in w for w in plan["waivers"])
    assert plan["ok"]
    assert [t["table"] for t in plan["tables"]] == ["public.items"]
    assert phase["closed"]["forward"][0].startswith("ALTER TABLE")
    served = report.document(await shop.design(shop.file("0001_replace", "compat: true\n" + BIGINT)))
    [closed] = [p["forward"] for p in served["phases"] if p["phase"] == "closed"]
    assert any('CREATE TABLE "dualwire"."compat_twin_1_r1"' in s for s in closed)


async def test_two_tables_that_reference_each_other_are_replaced_one_after_the_other(shop: Migrator) -> None:
    text = BIGINT + "  - replace_table: {table: notes, columns: [{name: item, type: bigint}]}\n"
    with pytest.raises(Refused, match="which is replaced as well"):
        await shop.start(shop.file("0001_replace", text))


async def test_the_guards_check_and_off_are_refused(shop: Migrator) -> None:
    with pytest.raises(Refused, match="guard off is not possible"):
        await shop.start(shop.file("0001_replace", "guard: off\n" + BIGINT))


async def test_status_tells_which_table_holds_the_rows(shop: Migrator, db: Any) -> None:
    path = shop.file("0001_replace", BIGINT)
    seen = []
    for step in ("verified", "cutover"):
        await shop.start(path, step)  # type: ignore[arg-type]
        document = await status.status(db)
        seen.append(document["migration"]["authoritative"])
        assert "both versions use" in status.text(document)
    assert seen == [{"public.items": "items"}, {"public.items": "_dualwire_new_items"}]


async def test_a_file_with_another_operation_beside_it_is_refused(shop: Migrator) -> None:
    text = BIGINT + "  - rename_column: {table: items, from: qty, to: quantity}\n"
    with pytest.raises(Refused, match="cannot stand together"):
        await shop.start(shop.file("0001_replace", text))


RICH = """
CREATE ROLE "replace reader";
CREATE ROLE "replace writer";
CREATE SCHEMA other;
CREATE TABLE other.parents (id int PRIMARY KEY);
INSERT INTO other.parents VALUES (1);
CREATE TABLE rich (
    id int GENERATED ALWAYS AS IDENTITY (START 10 INCREMENT 5) PRIMARY KEY,
    parent int CONSTRAINT rich_self REFERENCES rich,
    owner int CONSTRAINT rich_owner REFERENCES other.parents,
    doc json,
    "odd name" text COLLATE "C" DEFAULT 'x',
    big text
) WITH (fillfactor = 70);
ALTER TABLE rich ALTER COLUMN big SET STORAGE EXTERNAL, ALTER COLUMN big SET STATISTICS 300;
CREATE UNIQUE INDEX rich_odd ON rich (lower("odd name")) INCLUDE (owner);
ALTER TABLE rich REPLICA IDENTITY FULL;
GRANT SELECT ON rich TO "replace reader";
GRANT INSERT, SELECT ON rich TO "replace writer" WITH GRANT OPTION;
GRANT UPDATE (big) ON rich TO "replace reader";
INSERT INTO rich (parent, owner, doc, "odd name") VALUES (NULL, 1, '{"a": 1}', 'one'), (10, 1, NULL, 'two');
CREATE PUBLICATION rich_pub FOR TABLE rich WHERE (id > 5);
"""
RICH_BIGINT = """
operations:
  - replace_table:
      table: rich
      columns:
        - {name: id, type: bigint}
        - {name: parent, type: bigint, comment: above}
"""


async def test_everything_that_belongs_to_the_table_comes_along(
    shop: Migrator, db: Any, catalog: Any
) -> None:
    for role in ("replace reader", "replace writer"):
        await db.execute(f"""DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}')
                             THEN EXECUTE 'DROP ROLE "{role}"'; END IF; END $$""")
    await db.execute(RICH)
    try:
        before = catalog()
        path = shop.file("0001_rich", RICH_BIGINT)
        await shop.start(path, "cutover")
        await shop.rollback()
        assert catalog() == before
        await shop.start(path, "cutover")
        new = '"_dualwire_new_rich"'
        assert await db.fetchval(f"INSERT INTO {new} (\"odd name\") VALUES ('three') RETURNING id") == 20
        await db.execute("INSERT INTO rich (parent, \"odd name\") VALUES (15, 'five')")
        await db.execute(f"UPDATE {new} SET doc = '[1]' WHERE id = 25")
        assert await db.fetchval("SELECT doc::text FROM rich WHERE id = 25") == "[1]"
        assert (await shop.verify()).clean
        async with db.transaction():
            await db.execute('SET LOCAL ROLE "replace writer"')
            await db.execute(f"INSERT INTO {new} (big, \"odd name\") VALUES ('b', 'four')")
        await shop.complete()
        after = catalog()
        moved = [
            line
            for line in sorted(set(after.splitlines()) ^ set(before.splitlines()))
            if line and not line.startswith("--")
        ]
        assert moved == [
            "    id bigint NOT NULL,",
            "    parent bigint,",
            "    parent integer,",
            "COMMENT ON COLUMN public.rich.parent IS 'above';",
        ]
        assert await db.fetchval("INSERT INTO rich (big) VALUES ('c') RETURNING id") == 35
        with pytest.raises(asyncpg.GeneratedAlwaysError):
            await db.execute("INSERT INTO rich (id) VALUES (1)")
    finally:
        await db.execute('DROP TABLE rich CASCADE; DROP OWNED BY "replace reader", "replace writer"')
        await db.execute('DROP ROLE "replace reader"; DROP ROLE "replace writer"')


async def test_a_partitioned_table_is_partitioned_anew(shop: Migrator, db: Any) -> None:
    await db.execute(
        """
        CREATE TABLE events (id int, day date, what text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE events_a PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-06-01');
        CREATE TABLE events_b PARTITION OF events DEFAULT;
        CREATE INDEX events_what ON events (what);
        INSERT INTO events SELECT i, date '2026-01-01' + i, 'e' || i FROM generate_series(1, 300) i;
        """
    )
    text = """
operations:
  - replace_table:
      table: events
      columns: [{name: id, type: bigint}]
      partition_by: HASH (id)
      partitions:
        - {name: events_0, values: "WITH (MODULUS 2, REMAINDER 0)"}
        - {name: events_1, values: "WITH (MODULUS 2, REMAINDER 1)"}
"""
    agree = (
        'SELECT NOT EXISTS ((TABLE events EXCEPT TABLE "_dualwire_new_events") UNION ALL'
        ' (TABLE "_dualwire_new_events" EXCEPT TABLE events))'
    )
    await shop.start(shop.file("0001_events", text), "verified")
    for statement in (
        "UPDATE events SET day = '2027-01-01' WHERE id = 5",
        "UPDATE events_a SET what = 'direct' WHERE id = 6",
        "DELETE FROM events_b WHERE id = 290",
        "INSERT INTO events VALUES (400, '2026-02-02', 'new')",
        "TRUNCATE events_b",
    ):
        await db.execute(statement)
        assert await db.fetchval(agree), statement
    await shop.cutover()
    await db.execute("UPDATE events_1 SET what = 'other' WHERE id = 7; DELETE FROM events_0 WHERE id = 8")
    assert await db.fetchval(agree)
    await db.execute("TRUNCATE events_0")
    assert await db.fetchval(agree)
    await shop.cutover(0)
    await db.execute("UPDATE events SET what = 'back' WHERE id = 9")
    assert await db.fetchval(agree)
    await shop.cutover()
    await shop.complete()
    parts = await db.fetch("SELECT relid::regclass::text FROM pg_partition_tree('events') ORDER BY 1")
    assert [p[0] for p in parts] == ["events", "events_0", "events_1"]
    assert await db.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname = 'events_what'") == 1


class Killed(Exception):
    """Stands for the end of the process."""


STEPS: dict[str, tuple[Any, str, bool, int]] = {
    "expand": (steps, "both", True, 2),
    "indexes": (steps, "_build_indexes", True, 2),
    "step": (steps, "_step", False, 2),
    "flip": (flip, "flip", True, 1),
    "swap": (swap, "forward_of", False, 2),
}
"""Where it dies: module, function, whether after the function has done its work, and how often."""


@pytest.mark.parametrize("where", STEPS)
async def test_a_migrator_that_dies_goes_on_with_the_same_command(
    shop: Migrator, db: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    module, name, late, deaths = STEPS[where]
    original = getattr(module, name)
    left = [2]

    def dying(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0 and not late:
            raise Killed
        result = original(*args, **kwargs)
        if left[0] < 0 or not late:
            return result
        if not hasattr(result, "__await__"):
            raise Killed

        async def and_die() -> None:
            await result
            raise Killed

        return and_die()

    monkeypatch.setattr(module, name, dying)
    before = await rows(db, "items")
    path = shop.file("0001_bigint", BIGINT)
    died = 0
    for _ in range(6):
        try:
            outcome = await shop.run(path)
            break
        except Killed:
            died += 1
    assert died == deaths
    assert outcome.phase == "completed"
    assert await rows(db, "items") == before
    assert await problems(db) == []


async def test_a_rollback_that_dies_goes_on(shop: Migrator, db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.start(shop.file("0001_bigint", BIGINT), "cutover")
    original = steps.frozen
    with monkeypatch.context() as patch:

        async def dying(*args: Any) -> Any:
            await original(*args)
            raise Killed

        patch.setattr(steps, "frozen", dying)
        with pytest.raises(Killed):
            await shop.rollback()
    await db.execute("UPDATE items SET qty = 3 WHERE id = 1")
    assert await same(db)
    assert await shop.rollback() == {"lost": []}


async def test_somebody_elses_ddl_on_either_table_stops_the_migration(shop: Migrator, db: Any) -> None:
    path = shop.file("0001_bigint", BIGINT)
    await shop.start(path, "verified")
    await db.execute('ALTER TABLE "_dualwire_new_items" ADD COLUMN stray int')
    with pytest.raises(Refused, match="stray"):
        await shop.start(path, "cutover")


ODD = """
CREATE UNLOGGED TABLE r (
    id int PRIMARY KEY, code int NOT NULL, v int GENERATED ALWAYS AS (code * 2) STORED,
    during daterange, CONSTRAINT apart EXCLUDE USING gist (during WITH &&)
);
CREATE UNIQUE INDEX r_code ON r (code);
ALTER TABLE r REPLICA IDENTITY USING INDEX r_code;
INSERT INTO r SELECT i, i FROM generate_series(1, 50) i;
CREATE TABLE "Odd ""T" (
    "I d" int PRIMARY KEY, "select" text DEFAULT 'it''s', CONSTRAINT "c k" CHECK ("select" <> 'no')
);
CREATE TRIGGER "t r" BEFORE UPDATE ON "Odd ""T" FOR EACH ROW
    EXECUTE FUNCTION suppress_redundant_updates_trigger();
INSERT INTO "Odd ""T" SELECT i FROM generate_series(1, 50) i;
CREATE TABLE kids (
    t int CONSTRAINT "f k" REFERENCES "Odd ""T" ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO kids VALUES (1);
"""
ODD_BIGINT = """
operations:
  - replace_table: {table: r, columns: [{name: id, type: bigint}, {name: code, type: bigint}]}
  - replace_table:
      table: 'Odd "T'
      columns: [{name: I d, type: bigint}]
      partition_by: HASH ("I d")
      partitions: [{name: 'p "0', values: "WITH (MODULUS 1, REMAINDER 0)"}]
"""


async def test_odd_names_and_rare_properties_come_along(shop: Migrator, db: Any) -> None:
    await db.execute(ODD)
    await shop.start(shop.file("0001_odd", ODD_BIGINT), "cutover")
    await db.execute("UPDATE r SET code = code + 1000")
    await db.execute("""UPDATE "Odd ""T" SET "select" = 'x' WHERE "I d" < 9""")
    await db.execute("""DELETE FROM "Odd ""T" WHERE "I d" = 1""")
    assert (await shop.verify()).clean
    await shop.complete()
    assert await db.fetchval("SELECT t FROM kids") is None
    found = await db.fetchrow(
        "SELECT relreplident::text, relpersistence::text FROM pg_class WHERE relname = 'r'"
    )
    assert tuple(found) == ("i", "u")
    indexes = await db.fetch(
        "SELECT indexname FROM pg_indexes WHERE tablename IN ('r', 'Odd \"T') ORDER BY 1"
    )
    assert [i[0] for i in indexes] == ['Odd "T_pkey', "apart", "r_code", "r_pkey"]
    key = await db.fetchval("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'f k'")
    assert key.endswith("ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED")
    assert await db.fetchval("SELECT sum(v) FROM r") == 2 * sum(1000 + i for i in range(1, 51))
