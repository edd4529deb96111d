"""What lint and pre-flight refuse, warn of and explain, each before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from migrator import report
from migrator.design import Design
from migrator.errors import Refused
from tests.conftest import Database
from tests.migrator.conftest import Migrator

TABLES = """
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE things (
    id int PRIMARY KEY, name text NOT NULL, size int, parent int REFERENCES parents, code text UNIQUE,
    doc json, spot point, double int GENERATED ALWAYS AS (size * 2) STORED, at timestamptz DEFAULT now(),
    price numeric(10,2), CONSTRAINT small CHECK (size < 100), CONSTRAINT pair CHECK (size < length(name)));
CREATE INDEX things_lower ON things (lower(name));
CREATE TABLE keyless (a int, b int);
CREATE TABLE parted (id int PRIMARY KEY, a int) PARTITION BY RANGE (id);
CREATE TABLE seen (id int PRIMARY KEY, a int, b int);
CREATE VIEW seen_view AS SELECT a FROM seen;
CREATE TABLE ruled (id int PRIMARY KEY, a int);
CREATE RULE r AS ON DELETE TO ruled DO INSTEAD NOTHING;
CREATE TABLE mood (id int PRIMARY KEY, word text COLLATE "C", email text NOT NULL);
"""


@pytest.fixture
async def lint(db: Any, migrator: Migrator) -> Callable[[str], Any]:
    """``await lint(operations)``: the design."""
    await db.execute(TABLES)

    async def judge(operations: str) -> Design:
        return await migrator.design(migrator.file("0001_lint", f"operations: [{operations}]"))

    return judge


def retype(table: str, column: str, up: str, down: str, kind: str = "text") -> str:
    return (
        f'{{alter_column: {{table: {table}, column: {column}, type: "{kind}", up: "{up}", down: "{down}"}}}}'
    )


@pytest.mark.parametrize(
    ("operations", "code", "words"),
    [
        (retype("keyless", "a", "a::text", "a::int"), "no_primary_key", "no primary key"),
        (retype("parted", "id", "id::text", "id::int"), "partition_key", "in the partition key"),
        (retype("things", "id", "id::text", "id::int"), "primary_key", "changing a primary-key column"),
        (
            retype("things", "code", "code", "code", "varchar"),
            "index",
            "unique or constraint index things_code_key",
        ),
        (
            retype("things", "parent", "parent::text", "parent::int"),
            "foreign_key",
            "foreign key things_parent_fkey",
        ),
        (
            retype("things", "name", "name", "name", "varchar"),
            "index",
            "expression or partial index things_lower",
        ),
        (retype("things", "size", "size", "size::int", "bigint"), "dependents", "used by generated column"),
        (retype("things", "size", "size", "size::int", "bigint"), "check", "check pair over several columns"),
        (retype("things", "doc", "doc::text", "doc::json"), "no_equality", "type json has no equality"),
        (retype("things", "spot", "spot::text", "spot::point"), "no_equality", "type point has no equality"),
        (
            retype("things", "double", "double::text", "double::int"),
            "generated",
            "changing a generated column",
        ),
        (
            retype("things", "at", "at::text", "at::timestamptz"),
            "default",
            "old default now() cannot be carried",
        ),
        (retype("seen", "a", "a::text", "a::int"), "dependents", "view"),
        ("{drop_column: {table: seen, column: a}}", "dependents", "view public.seen_view"),
        ("{drop_column: {table: mood, column: email}}", "drop_not_null", "drop_column has no down"),
        (retype("ruled", "a", "a::text", "a::int"), "rules", "has INSTEAD rules"),
        (
            "{add_column: {table: seen, column: {name: t, type: uuid, default: gen_random_uuid()}}}",
            "volatile_default",
            "a volatile default needs `up`",
        ),
        (
            "{alter_column: {table: seen, column: b, nullable: false, up: 'coalesce(b, 0)',"
            " check: {name: c, constraint: 'b > random()'}}}",
            "volatile_check",
            "must not be volatile",
        ),
        ("{sql: {up: CREATE INDEX CONCURRENTLY i ON seen (a)}}", "sql", "CONCURRENTLY is not supported"),
        ("{sql: {up: COMMIT}}", "sql", "transaction control"),
        ("{sql: {up: SELEC 1}}", "sql", "cannot be parsed"),
    ],
)
async def test_errors(lint: Any, operations: str, code: str, words: str) -> None:
    design = await lint(operations)
    errors = [f for f in design.errors() if f.code == code]
    assert errors, [f.message for f in design.findings]
    assert any(words in f.message for f in errors), [f.message for f in errors]


@pytest.mark.parametrize(
    ("operations", "words", "sqlstate"),
    [
        (retype("nowhere", "a", "a", "a"), 'table "public.nowhere" does not exist', "42P01"),
        (retype("seen", "nope", "a", "a"), 'table "seen" has no column "nope"', "42703"),
        (retype("seen", "a", "nope::text", "a::int"), 'old version of "seen" has no column "nope"', "42703"),
        (retype("seen", "a", "a::text", "nope::int"), 'new version of "seen" has no column "nope"', "42703"),
        (retype("seen", "a", "a +", "a::int"), "cannot be parsed as one expression", "42601"),
        (retype("seen", "a", "(SELECT 1)", "a::int"), "a subquery", ""),
        (
            retype("seen", "a", "frobnicate(a)", "a::int"),
            "function frobnicate(integer) does not exist",
            "42883",
        ),
        (retype("seen", "a", "a", "a", "colour"), 'type "colour" does not exist', "42704"),
        (retype("seen", "a", "a", "a", "int); DROP TABLE seen; --"), "is not a type", "42601"),
        (
            retype("seen", "a", "a::text", "a"),
            'column "a" is of type integer but expression is of type text',
            "42804",
        ),
        ("{alter_column: {table: seen, column: a, type: text, up: a}}", "a change of type needs down", ""),
        ("{alter_column: {table: seen, column: a, nullable: false}}", "nullable: false needs up", ""),
        ("{alter_column: {table: seen, column: a}}", "changes nothing", ""),
        (
            "{add_column: {table: seen, column: {name: a, type: int, nullable: true}}}",
            'already has a column "a"',
            "",
        ),
        ("{add_column: {table: seen, column: {name: z, type: int}}}", "NOT NULL without `up`", ""),
        ("{rename_column: {table: seen, from: a, to: b}}", 'already has a column "b"', "42701"),
        ("{create_table: {name: seen, columns: [{name: a, type: int}]}}", "already exists", "42P07"),
    ],
)
async def test_refusals(lint: Any, operations: str, words: str, sqlstate: str) -> None:
    with pytest.raises(Refused) as caught:
        await lint(operations)
    assert words in caught.value.message
    assert caught.value.exit_code == 3
    if sqlstate:
        assert caught.value.sqlstate == sqlstate


async def test_warnings_and_waivers_are_told(lint: Any, db: Any) -> None:
    await db.execute("CREATE PUBLICATION everything FOR TABLE mood")
    design = await lint(
        "{alter_column: {table: mood, column: word, type: int, up: word::int, down: word::text}},"
        "{alter_column: {table: mood, column: email, nullable: true}}"
    )
    assert not design.errors()
    codes = {f.code for f in design.findings}
    assert {"partial_up", "down_null", "repeatable_read", "publications"} <= codes
    text = report.text(design)
    assert "statements that may fail during this migration" in text
    assert "then a new speaker's write fails with 23502" in text
    assert report.document(design)["ok"] is True
    assert len(report.document(design)["waivers"]) == 2


async def test_a_role_that_does_not_own_the_table_is_refused(
    lint: Any, database: Database, db: Any, tmp_path: Path
) -> None:
    role = f"plain_{database.name}"
    dsn = database.role(role)
    await db.execute(
        f'GRANT USAGE ON SCHEMA dualwire TO "{role}"; GRANT ALL ON ALL TABLES IN SCHEMA dualwire TO "{role}"'
    )
    other = Migrator(dsn, tmp_path)
    path = other.file("0001_owner", f"operations: [{retype('seen', 'b', 'b::text', 'b::int')}]")
    design = await other.design(path)
    assert "owner" in {f.code for f in design.errors()}
    assert not any(t.suppress_triggers for t in design.tables)


async def test_planning_leaves_nothing_behind(lint: Any, catalog: Callable[[], str], db: Any) -> None:
    before = catalog()
    await lint(retype("seen", "b", "b::text", "b::int"))
    assert catalog() == before
    assert (
        await db.fetchval(
            "SELECT count(*) FROM pg_proc WHERE pronamespace = 'dualwire'::regnamespace AND proname LIKE 'up%'"
        )
        == 0
    )
    assert await db.fetchval("SELECT count(*) FROM dualwire.migration") == 0


async def test_what_plan_prints_is_what_is_run(lint: Any, migrator: Migrator, db: Any) -> None:
    path = migrator.file(
        "0001_lint", f"operations: [{retype('mood', 'email', 'upper(email)', 'lower(email)', 'varchar')}]"
    )
    planned = {p["phase"]: p for p in report.phases(await migrator.design(path))}
    await migrator.start(path, "expanded")
    stored = await db.fetchval("SELECT statements FROM dualwire.step WHERE name = 'expand'")
    assert stored == planned["expanded"]["forward"]
    await migrator.rollback()
    stored = await db.fetchval("SELECT statements FROM dualwire.step WHERE name = 'shrink'")
    assert stored == planned["expanded"]["backward"]


async def test_quoted_and_long_names_work(db: Any, migrator: Migrator) -> None:
    long = "a" * 60
    await db.execute(
        f'CREATE TABLE "We ird""t" ("The ID" int PRIMARY KEY, "{long}" text, "{long}bbb" text, "Sel ect" int);'
        f" INSERT INTO \"We ird\"\"t\" VALUES (1, 'x', 'y', 3)"
    )
    text = f"""
operations:
  - alter_column: {{table: 'We ird"t', column: {long}, type: int, up: 'length("{long}")', down: '"{long}"::text'}}
  - alter_column: {{table: 'We ird"t', column: {long}bbb, type: int, up: 'length({long}bbb)', down: '{long}bbb::text'}}
  - alter_column:
      {{table: 'We ird"t', column: Sel ect, type: bigint, name: "q'q", up: '"Sel ect"', down: '"q''q"::int'}}
"""
    await migrator.run(migrator.file("0001_weird", text))
    row = await db.fetchrow('SELECT * FROM "We ird""t"')
    assert dict(row) == {"The ID": 1, long: 1, f"{long}bbb": 1, "q'q": 3}


async def test_column_grants_reach_the_new_column(db: Any, migrator: Migrator, database: Database) -> None:
    await db.execute(
        "CREATE TABLE secretive (id int PRIMARY KEY, a text, b text); INSERT INTO secretive VALUES (1, 'x')"
    )
    role = f"narrow_{database.name}"
    await db.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'narrow'; GRANT SELECT (id, a), UPDATE (a) ON secretive TO {role}"
    )
    path = migrator.file("0001_s", f"operations: [{retype('secretive', 'a', 'length(a)', 'a::text', 'int')}]")
    await migrator.start(path, "expanded")
    cluster = database.cluster
    cluster.create_role(role, "narrow")
    app = await asyncpg.connect(cluster.primary.dsn(user=role, database=database.name))
    await app.execute(
        "UPDATE secretive SET a = 'four', \"_dualwire_new_a\" = dualwire.up_1_1('four'), \"_dualwire_mark\" = 1"
        " WHERE id = 1"
    )
    await app.execute("UPDATE secretive SET a = 'guarded' WHERE id = 1")
    await app.close()
    assert await db.fetchval('SELECT "_dualwire_new_a" FROM secretive') == 7


async def test_triggers_that_would_fire_without_a_search_path_of_their_own_are_refused(
    lint: Any, database: Database, db: Any, tmp_path: Path
) -> None:
    """The role may not suppress triggers: backfill and repairs would run them under a pinned search_path."""
    role = f"owner_{database.name}"
    dsn = database.role(role)
    await db.execute(
        f"""CREATE TABLE logged (id int PRIMARY KEY, b int); ALTER TABLE logged OWNER TO "{role}";
        CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER log_it BEFORE UPDATE ON logged FOR EACH ROW EXECUTE FUNCTION log_it();
        GRANT ALL ON SCHEMA dualwire TO "{role}"; GRANT ALL ON ALL TABLES IN SCHEMA dualwire TO "{role}" """
    )
    other = Migrator(dsn, tmp_path)
    path = other.file("0001_log", f"operations: [{retype('logged', 'b', 'b::text', 'b::int')}]")
    assert "triggers_fire_unpinned" in {f.code for f in (await other.design(path)).errors()}
    await db.execute("ALTER FUNCTION log_it() SET search_path = public")
    codes = {f.severity for f in (await other.design(path)).findings if f.code.startswith("triggers_fire")}
    assert codes == {"warning"}
