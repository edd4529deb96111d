"""Guards ``check`` and ``off``: what came rewritten passes, what did not fails by a name that speaks or is found.

`items` is the table of ``test_guard``: a partial ``up`` on code, a total one on status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg
import pytest

from migrator import engine
from migrator.errors import Differences, Refused
from migrator.phases import close
from migrator.report import document
from migrator.spec import parse
from migrator.status import status
from tests.conftest import Database
from tests.migrator.conftest import Migrator
from tests.migrator.test_guard import MARK, MIGRATION, NUMBER, STATE, TABLES, problems

REWRITTEN = f'UPDATE items SET status = \'paid\', "{STATE}" = 1, "{MARK}" = 2 WHERE id = 1'


async def started(db: Any, migrator: Migrator, guard: str, until: Any = "backfilled") -> Any:
    await db.execute(TABLES)
    path = migrator.file("0001_items", f"guard: {guard}\n{MIGRATION}")
    await migrator.start(path, until)
    return path


async def row(db: Any, key: int) -> tuple[Any, ...]:
    return tuple(
        await db.fetchrow(
            f'SELECT status, "{STATE}", code, "{NUMBER}", "{MARK}" FROM items WHERE id = $1', key
        )
    )


async def one(db: Any, migrator: Migrator) -> Any:
    [table] = (await migrator.routing())["state"]["tables"]
    return table


def test_the_file_names_the_guard() -> None:
    assert parse("a", "a.yaml", MIGRATION.encode()).guard is None
    assert parse("a", "a.yaml", f"guard: off\n{MIGRATION}".encode()).guard == "off"
    with pytest.raises(Refused, match="guard: unknown value 'often'"):
        parse("a", "a.yaml", f"guard: often\n{MIGRATION}".encode())


async def test_the_command_line_overrules_the_file_and_the_choice_is_kept(
    db: Any, migrator: Migrator
) -> None:
    await db.execute(TABLES)
    path = migrator.file("0001_items", f"guard: check\n{MIGRATION}")
    migrator.options = replace(migrator.options, guard="off")
    await migrator.start(path, "expanded")
    migrator.options = replace(migrator.options, guard=None)
    with pytest.raises(Refused, match="was started with guard off"):
        await migrator.start(path)
    assert (await status(db))["migration"]["guard"] == "off"
    assert (await one(db, migrator))["guard"] == "off"


@pytest.mark.parametrize("guard", ["check", "off"])
async def test_plan_shows_the_guard_and_what_it_costs(db: Any, migrator: Migrator, guard: str) -> None:
    await db.execute(TABLES)
    plan = document(await migrator.design(migrator.file("0001_items", f"guard: {guard}\n{MIGRATION}")))
    assert plan["guard"] == guard
    assert [t["guard"] for t in plan["tables"]] == [guard]
    assert plan["ok"]
    assert any("past a sidecar" in w for w in plan["waivers"])
    forward = " ".join(s for p in plan["phases"] for s in p["forward"])
    assert ("_dualwire_guard" in forward) == (guard == "check")
    assert "zzz_dualwire_guard" not in forward
    assert ("zzz_dualwire_proxied" in forward) == (guard == "off")


PAST_CHECK = [
    "UPDATE items SET status = 'paid' WHERE id = 1",
    "INSERT INTO items VALUES (9, 'paid', 'x', '7')",
    f'UPDATE items SET "{STATE}" = 7 WHERE id = 1',
    "DO $$ BEGIN UPDATE items SET code = '12' WHERE id = 2; END $$",
    "MERGE INTO items i USING (VALUES (1)) v(id) ON i.id = v.id WHEN MATCHED THEN UPDATE SET status = 'x'",
    "SELECT pay()",
    "SET session_replication_role = replica; UPDATE items SET status = 'paid' WHERE id = 1",
    "INSERT INTO items SELECT r.id + 50, 'paid', r.note, r.code FROM items r WHERE id = 1",
    f'INSERT INTO items (id, status, code, "{STATE}", "{NUMBER}", "{MARK}")'
    f' SELECT id + 60, \'paid\', code, "{STATE}", "{NUMBER}", "{MARK}" FROM items WHERE id = 1',
    f'INSERT INTO items (id, status, "{STATE}", "{MARK}") VALUES (9, \'paid\', 1, NULL)',
]


async def test_check_refuses_every_write_that_leaves_the_shapes_apart(db: Any, migrator: Migrator) -> None:
    await started(db, migrator, "check")
    await db.execute(
        "CREATE FUNCTION pay() RETURNS void LANGUAGE sql AS $$ UPDATE items SET status = 'paid' WHERE id = 1 $$"
    )
    for statement in PAST_CHECK:
        with pytest.raises(asyncpg.CheckViolationError) as caught:
            await db.execute(statement)
        assert caught.value.constraint_name == "_dualwire_guard", statement
        await db.execute("RESET session_replication_role")
    with pytest.raises(asyncpg.CheckViolationError, match="_dualwire_guard"):
        await db.copy_records_to_table("items", records=[(11, "paid", "5")], columns=["id", "status", "code"])
    await db.execute(REWRITTEN)
    assert await row(db, 1) == ("paid", 1, "10", 10, 2)
    await db.execute("UPDATE items SET note = 'z', status = status WHERE id = 1")
    await db.execute(
        f'INSERT INTO items (id, status, code, "{STATE}", "{NUMBER}", "{MARK}") VALUES (5, \'new\', \'1\', 0, 1, 1)'
    )
    assert (await one(db, migrator))["guard"] == "check"


async def test_a_rewritten_write_whose_up_fails_is_a_listed_problem_and_no_error(
    db: Any, migrator: Migrator
) -> None:
    path = await started(db, migrator, "check")
    await db.execute(f'UPDATE items SET code = \'y\', "{NUMBER}" = NULL, "{MARK}" = NULL WHERE id = 1')
    await db.execute("UPDATE items SET note = 'touched' WHERE id = 1")
    with pytest.raises(Differences, match="1 problems"):
        await migrator.start(path)
    [(key, direction, reason)] = await problems(db)
    assert (key, direction) == ("1", "old")
    assert "invalid input syntax" in reason
    await db.execute(f'UPDATE items SET code = \'8\', "{NUMBER}" = 8, "{MARK}" = 1 WHERE id = 1')
    assert (await migrator.start(path)).phase == "verified"
    assert await problems(db) == []


async def test_writes_before_the_guard_is_armed_are_carried_over_by_the_backfill(
    db: Any, migrator: Migrator
) -> None:
    """Between expand and the acknowledgements a sidecar may write plainly: that must neither fail nor be lost."""
    path = await started(db, migrator, "check", "expanded")
    await db.execute("UPDATE items SET status = 'paid' WHERE id = 1")
    await db.execute(REWRITTEN.replace("id = 1", "id = 3"))
    await db.execute("UPDATE items SET status = 'what' WHERE id = 3")
    await db.execute("INSERT INTO items VALUES (4, 'paid', 'd', '40')")
    await migrator.start(path, "backfilled")
    assert await row(db, 1) == ("paid", 1, "10", 10, 1)
    assert (await row(db, 3))[:2] == ("what", 9)
    assert await row(db, 4) == ("paid", 1, "40", 40, 1)
    assert (await migrator.verify()).clean


async def test_a_copied_missing_mark_does_not_hide_behind_the_backfill(db: Any, migrator: Migrator) -> None:
    """While check is weak, a row copied with the missing mark of another one passes; the last pass finds it."""
    path = await started(db, migrator, "check", "expanded")
    from migrator.phases import backfill

    async with engine.working(migrator.dsn, 5) as session:
        ctx = await engine.active_context(session, migrator.progress, migrator.options)
        await backfill.ddl_step(ctx, "arm", ctx.design.tables[0].arm)
        [table] = ctx.design.tables
        run = backfill.Backfill(ctx, table, partial(backfill.update_statement, table))
        unsynced = await db.fetchrow("SELECT * FROM items WHERE id = 1")
        await run.run()
        await db.execute(
            f"INSERT INTO items (id, status, code, \"{MARK}\") VALUES (-1, 'paid', '3', $1)", unsynced[MARK]
        )
    assert (await row(db, -1))[4] is None
    await migrator.start(path, "backfilled")
    assert await row(db, -1) == ("paid", 1, "3", 3, 1)
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute(f"INSERT INTO items (id, status, \"{MARK}\") VALUES (-2, 'paid', NULL)")


async def test_an_unsynced_row_may_be_written_until_the_backfill_comes(db: Any, migrator: Migrator) -> None:
    path = await started(db, migrator, "check", "expanded")
    async with engine.working(migrator.dsn, 5) as session:
        ctx = await engine.active_context(session, migrator.progress, migrator.options)
        from migrator.phases import backfill

        await backfill.ddl_step(ctx, "arm", ctx.design.tables[0].arm)
    await db.execute("UPDATE items SET note = 'n', status = 'paid' WHERE id = 1")
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute("INSERT INTO items VALUES (4, 'paid', 'd', '40')")
    await migrator.start(path, "backfilled")
    assert (await row(db, 1))[:2] == ("paid", 1)


async def test_a_new_speakers_own_constraint_binds(db: Any, migrator: Migrator) -> None:
    await started(db, migrator, "check")
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await db.execute(f'UPDATE items SET status = \'other\', "{STATE}" = NULL, "{MARK}" = 3 WHERE id = 1')
    assert caught.value.constraint_name == "_dualwire_nn_state"


@pytest.mark.parametrize(
    ("guard", "phase"), [("check", "expanded"), ("check", "cutover"), ("off", "backfilled")]
)
async def test_a_rollback_leaves_nothing(
    db: Any, migrator: Migrator, catalog: Callable[[], str], guard: str, phase: Any
) -> None:
    await db.execute(TABLES)
    before = catalog()
    await migrator.start(migrator.file("0001_items", f"guard: {guard}\n{MIGRATION}"), phase)
    assert await migrator.rollback() == {"lost": []}
    assert catalog() == before
    assert (
        await db.fetchval("SELECT count(*) FROM pg_proc WHERE proname ~ '^(up|down|proxied|fence|guard)_'")
        == 0
    )


@pytest.mark.parametrize("guard", ["check", "off"])
async def test_a_rollback_that_would_lose_something_keeps_everything(
    db: Any, migrator: Migrator, guard: str
) -> None:
    await started(db, migrator, guard, "cutover")
    await db.execute("SELECT set_config('dualwire.proxied', '1', false)")
    await db.execute(f'UPDATE items SET status = \'other\', "{STATE}" = 5, "{MARK}" = 3 WHERE id = 1')
    with pytest.raises(Refused, match="would be lost"):
        await migrator.rollback()
    assert (await migrator.verify()).clean
    lost = (await migrator.rollback(accept_loss=True))["lost"]
    assert lost[0]["keys"] == [{"id": 1}]


@pytest.mark.parametrize("guard", ["check", "off"])
async def test_a_whole_migration(db: Any, migrator: Migrator, guard: str) -> None:
    path = await started(db, migrator, guard, "cutover")
    async with engine.working(migrator.dsn, 5) as session:
        ctx = await engine.active_context(session, migrator.progress, migrator.options)
        await close.run(ctx, outlives=False)
    await db.execute("SELECT set_config('dualwire.proxied', '1', false)")
    # A sidecar of the new epoch leaves the old shape behind; one that has not heard of it yet writes both.
    await db.execute(f'UPDATE items SET "{STATE}" = 4 WHERE id = 1')
    await db.execute(f'INSERT INTO items (id, "{STATE}") VALUES (7, 3)')
    await db.execute(f'UPDATE items SET status = \'other\', "{STATE}" = 8, "{MARK}" = 3 WHERE id = 2')
    if guard == "check":
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="no longer takes values"):
            await db.execute("UPDATE items SET status = 'paid' WHERE id = 3")
        with pytest.raises(asyncpg.FeatureNotSupportedError):
            await db.execute(f"INSERT INTO items (id, status, \"{STATE}\") VALUES (8, 'paid', 5)")
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute(f'UPDATE items SET "{STATE}" = NULL WHERE id = 3')
    assert (await migrator.run(path)).phase == "completed"
    rows = await db.fetch("SELECT id, state FROM items ORDER BY id")
    assert [tuple(r) for r in rows] == [(1, 4), (2, 8), (3, 0), (7, 3)]
    names = await db.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'items'::regclass AND contype IN ('c', 'p')"
    )
    assert [n[0] for n in names] == ["items_pkey"]
    assert await db.fetchval("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'items'::regclass") == 0


# -- off -----------------------------------------------------------------------------------------------------


PAST_OFF = [
    "UPDATE items SET status = 'paid' WHERE id = 1",
    "INSERT INTO items VALUES (9, 'paid', 'x', '7')",
    "DO $$ BEGIN UPDATE items SET code = '12' WHERE id = 2; END $$",
    "SET session_replication_role = replica; UPDATE items SET status = 'paid' WHERE id = 1",
    "MERGE INTO items i USING (VALUES (1)) v(id) ON i.id = v.id WHEN MATCHED THEN UPDATE SET status = 'x'",
]


async def test_the_fence_refuses_connections_that_are_no_sidecars(db: Any, migrator: Migrator) -> None:
    await started(db, migrator, "off")
    for statement in PAST_OFF:
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="through a sidecar only"):
            await db.execute(statement)
        await db.execute("RESET session_replication_role")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await db.copy_records_to_table("items", records=[(11, "paid", "5")], columns=["id", "status", "code"])
    await db.execute("UPDATE items SET note = 'free' WHERE id = 1")
    await db.execute("DELETE FROM items WHERE id = 3")


async def test_an_apply_worker_meets_the_fence_though_it_fires_no_statement_triggers(
    db: Any, migrator: Migrator
) -> None:
    await started(db, migrator, "off")
    await db.execute("ALTER TABLE items DISABLE TRIGGER zzz_dualwire_proxied")
    await db.execute("SET session_replication_role = replica")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await db.execute("UPDATE items SET status = 'paid' WHERE id = 1")


async def test_a_sidecars_registered_connection_passes_whatever_it_resets(
    db: Any, migrator: Migrator, database: Database
) -> None:
    await started(db, migrator, "off")
    secret = "sixteen characters at least"
    server = await asyncpg.connect(database.dsn, statement_cache_size=0)
    pid = await server.fetchval("SELECT pg_backend_pid()")
    await db.fetchval("SELECT dualwire.sidecar_register('one', $1, 'shop', 'auto', '{}', 60)", secret)
    await db.fetchval("SELECT dualwire.sidecar_enter('one', $1, $2)", secret, [pid])
    for reset in ("SELECT 1", "DISCARD ALL", "RESET ALL", "BEGIN; SAVEPOINT a; ROLLBACK"):
        await server.execute(reset)
        await server.execute(REWRITTEN)
    await server.execute(f'INSERT INTO items (id, status, "{STATE}", "{MARK}") VALUES (5, \'paid\', 1, 1)')
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await db.execute(REWRITTEN)
    await db.fetchval("SELECT dualwire.sidecar_leave('one', $1)", secret)
    await server.execute("DISCARD ALL")
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        await server.execute(REWRITTEN)
    await server.close()


async def test_verify_finds_what_passed_the_fence(db: Any, migrator: Migrator) -> None:
    path = await started(db, migrator, "off")
    await db.execute("SELECT set_config('dualwire.proxied', '1', false)")
    await db.execute("UPDATE items SET status = 'paid' WHERE id = 1")
    await db.execute("INSERT INTO items VALUES (4, 'paid', 'd', '40')")
    with pytest.raises(Differences, match="2 differing rows, 1 of them never carried over"):
        await migrator.start(path)
    assert (await migrator.verify(repair=True)).clean
    assert await row(db, 1) == ("paid", 1, "10", 10, 1)


# -- lint ----------------------------------------------------------------------------------------------------

CASCADE = """
CREATE TABLE kinds (name text PRIMARY KEY);
CREATE TABLE things (id int PRIMARY KEY, kind text REFERENCES kinds ON UPDATE CASCADE, size text);
INSERT INTO kinds VALUES ('a');
INSERT INTO things VALUES (1, 'a', '1');
"""
SIZED = """
operations:
  - add_column: {table: things, up: "kind || '!'", column: {name: loud, type: text, nullable: true}}
"""


async def test_a_cascade_is_a_waiver_of_check_and_an_error_of_off(db: Any, migrator: Migrator) -> None:
    await db.execute(CASCADE)
    off = await migrator.design(migrator.file("0001_loud", f"guard: off\n{SIZED}"))
    assert [f.code for f in off.errors()] == ["guard_cascade"]
    path = migrator.file("0001_loud", f"guard: check\n{SIZED}")
    assert any(f.code == "guard_cascade" and f.waiver for f in (await migrator.design(path)).findings)
    await migrator.start(path, "backfilled")
    with pytest.raises(asyncpg.CheckViolationError, match="_dualwire_guard"):
        await db.execute("UPDATE kinds SET name = 'b'")


async def test_volatile_mirrors_need_the_guard(db: Any, migrator: Migrator) -> None:
    await db.execute(CASCADE)
    text = SIZED.replace("kind || '!'", "kind || random()")
    for guard in ("check", "off"):
        design = await migrator.design(migrator.file("0001_loud", f"guard: {guard}\n{text}"))
        assert "guard_volatile" in {f.code for f in design.errors()}


TRIGGERED = """
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.size := '9'; RETURN NEW; END $$;
CREATE FUNCTION trim_kind() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.kind := trim(NEW.kind); RETURN NEW; END $$;
"""


@pytest.mark.parametrize(
    ("trigger", "inline"),
    [
        ("BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION trim_kind()", False),
        ("BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION stamp()", True),
        ("BEFORE UPDATE OF size ON things FOR EACH ROW EXECUTE FUNCTION trim_kind()", True),
        ("AFTER INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION trim_kind()", True),
        ("BEFORE UPDATE ON things FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()", True),
    ],
)
async def test_triggers_that_may_overrule_a_statement_leave_the_table_to_the_guard(
    db: Any, migrator: Migrator, trigger: str, inline: bool
) -> None:
    await db.execute(f"{CASCADE}{TRIGGERED}CREATE TRIGGER own {trigger}")
    path = migrator.file("0001_loud", SIZED)
    plan = document(await migrator.design(path))
    assert [t["inline"] for t in plan["tables"]] == [inline]
    await migrator.start(path, "backfilled")
    assert (await one(db, migrator))["inline"] is inline
    await db.execute("INSERT INTO kinds VALUES ('c'), (' c '); INSERT INTO things VALUES (2, ' c ', '2')")
    await db.execute("UPDATE things SET kind = 'c' WHERE id = 1")
    assert (await migrator.verify()).clean


async def test_an_also_rule_leaves_the_table_to_the_guard(db: Any, migrator: Migrator) -> None:
    await db.execute(
        f"{CASCADE} CREATE TABLE log (id int, kind text); CREATE RULE also AS ON UPDATE TO things"
        " DO ALSO INSERT INTO log VALUES (NEW.id, NEW.kind)"
    )
    path = migrator.file("0001_loud", SIZED)
    await migrator.start(path, "backfilled")
    assert (await one(db, migrator))["inline"] is False
    await db.execute("INSERT INTO kinds VALUES ('c'); UPDATE things SET kind = 'c' WHERE id = 1")
    assert await db.fetchval('SELECT "_dualwire_new_loud" FROM things WHERE id = 1') == "c!"
    assert await db.fetchval("SELECT count(*) FROM log") == 1
    assert (await migrator.verify()).clean


def test_what_a_trigger_function_may_change_is_told_from_its_text() -> None:
    from migrator.usertriggers import assigned_fields

    assert assigned_fields('BEGIN NEW.a := 1; new."B c" = NEW.d; RETURN NEW; END') == {"a", "B c", "d"}
    assert assigned_fields("BEGIN IF x THEN RETURN NULL; END IF; RETURN NEW; END") == set()
    assert assigned_fields("BEGIN NEW := f(NEW); RETURN NEW; END") is None
    assert assigned_fields("DECLARE n ALIAS FOR NEW; BEGIN n.a := 1; RETURN NEW; END") is None
    assert assigned_fields("BEGIN RETURN OLD; END") is None
    assert assigned_fields("BEGIN RETURN NEW #= hstore('a', '1'); END") is None
