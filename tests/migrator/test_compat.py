"""Compat: what closing makes for clients of the old version, what is published, what plan says and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from migrator import compat, engine, report
from migrator.errors import Refused
from migrator.phases import withdraw
from proxy.control.routing import Routing, from_document
from proxy.rewrite.model import LogicalColumn, TableModel
from tests.conftest import Database
from tests.migrator.conftest import Migrator
from tests.migrator.test_sidecars import Peer

SETUP = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN short AS varchar(3);
CREATE TABLE items (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code char(3) NOT NULL DEFAULT 'abc' CONSTRAINT code_once UNIQUE,
    status int NOT NULL DEFAULT 0,
    n int,
    label varchar(5),
    mood mood,
    twice int GENERATED ALWAYS AS (n2 * 2) STORED,
    n2 int,
    gone short DEFAULT 'x',
    kept text COLLATE "C"
);
INSERT INTO items (status, n, label, n2, gone, kept) VALUES (1, 7, 'seven', 3, 'y', 'k');
"""
ITEMS = """
operations:
  - alter_column:
      table: items
      column: status
      type: text
      up: CASE status WHEN 0 THEN 'new' WHEN 1 THEN 'paid' ELSE 'other' END
      down: CASE status WHEN 'new' THEN 0 WHEN 'paid' THEN 1 ELSE 9 END
  - rename_column: {table: items, from: status, to: state}
  - alter_column: {table: items, column: n, type: bigint, up: n, down: n}
  - alter_column: {table: items, column: label, type: text, up: label, down: label}
  - alter_column: {table: items, column: kept, nullable: false, up: kept, down: kept}
  - drop_column: {table: items, column: gone}
  - add_column: {table: items, up: label || '!', column: {name: loud, type: text, nullable: true}}
  - rename_column: {table: items, from: n2, to: half}
"""
MORE = "operations: [{add_column: {table: items, column: {name: more, type: int, nullable: true}}}]"


@pytest.fixture
async def items(db: Any, migrator: Migrator) -> Path:
    """The migration, under way up to cutover."""
    await db.execute(SETUP)
    path = migrator.file("0001_items", ITEMS)
    await migrator.start(path, "cutover")
    return path


async def routing(migrator: Migrator) -> Routing:
    """The state that is published."""
    return from_document(await migrator.routing())


async def complete(migrator: Migrator, wanted: bool | None = True) -> engine.Outcome:
    """``dualwire complete`` with or without ``--compat``."""
    migrator.options = replace(migrator.options, compat=wanted)
    return await migrator.complete()


def model(state: Routing) -> TableModel:
    """The only table's model."""
    [table] = state.tables
    return table


async def test_after_completed_the_old_version_is_served_by_functions_of_the_final_columns(
    db: Any, migrator: Migrator, items: Path
) -> None:
    outcome = await complete(migrator)
    assert (outcome.phase, outcome.details) == ("completed", {"compat": "base"})
    state = await routing(migrator)
    assert (state.migration, state.phase, state.old, state.new) == (None, "completed", "base", "0001_items")
    assert (state.serves_old, state.serves_new, state.auto, state.percent) == (True, True, "new", 100)
    assert state.compat
    assert state.current == "0001_items"
    assert [state.resolve(v, 1) for v in ("base", "0001_items", "auto")] == ["old", "new", "new"]
    table = model(state)
    assert table.old == (
        LogicalColumn("id", "id"),
        LogicalColumn("code", "code"),
        LogicalColumn("status", "_dualwire_virtual_status"),
        LogicalColumn("n", "_dualwire_virtual_n"),
        LogicalColumn("label", "_dualwire_virtual_label"),
        LogicalColumn("mood", "mood"),
        LogicalColumn("twice", "twice"),
        LogicalColumn("n2", "half"),
        LogicalColumn("gone", "_dualwire_virtual_gone"),
        LogicalColumn("kept", "kept"),
    )
    virtual = {v.column.name.removeprefix("_dualwire_virtual_"): v for v in table.virtuals}
    assert {k: (v.sources, v.raw) for k, v in virtual.items()} == {
        "status": (("state",), None),
        "n": (("n",), "n"),
        "label": (("label",), None),
        "gone": ((), None),
    }
    assert [k for k, v in virtual.items() if v.assign] == ["label", "gone"]
    assert (virtual["status"].column.not_null, virtual["status"].column.default) == (True, "0")
    assert {m.target: m.sources for m in table.up.mirrors} == {
        "state": ("_dualwire_virtual_status",),
        "n": ("_dualwire_virtual_n",),
        "label": ("_dualwire_virtual_label",),
        "loud": ("_dualwire_virtual_label",),
    }
    assert (table.mark, table.guard) == (None, "off")
    calls = ", ".join(f"{v.function}({', '.join(v.sources)})" for v in table.virtuals)
    assert tuple(await db.fetchrow(f"SELECT {calls} FROM items")) == (1, 7, "seven", "x")
    described = await db.prepare(f"SELECT {calls} FROM items")
    assert [a.type.name for a in described.get_attributes()] == ["int4", "int4", "varchar", "varchar"]


async def test_between_closed_and_the_swap_it_is_served_under_the_names_of_the_migration(
    db: Any, migrator: Migrator, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(ctx: Any) -> None:
        raise Refused("stopped by the test")

    monkeypatch.setattr("migrator.phases.swap.run", nothing)
    with pytest.raises(Refused, match="stopped by the test"):
        await complete(migrator)
    state = await routing(migrator)
    assert (state.phase, state.migration, state.compat) == ("closed", "0001_items", True)
    table = model(state)
    assert table.virtuals[0].sources == ("_dualwire_new_state",)
    assert table.up.mirrors[0].target == "_dualwire_new_state"
    assert table.virtuals[1].raw == "_dualwire_new_n"
    assert table.old[-1] == LogicalColumn("kept", "_dualwire_new_kept")
    await db.execute("UPDATE dualwire.routing SET state = jsonb_set(state, '{serves_old}', 'false')")
    with pytest.raises(Refused, match="closed without compat") as refused:
        await complete(migrator)
    assert refused.value.exit_code == 3
    await db.execute("UPDATE dualwire.routing SET state = jsonb_set(state, '{serves_old}', 'true')")
    monkeypatch.undo()
    # As wished at closing, whatever the command says nothing about now.
    assert (await complete(migrator, None)).details == {"compat": "base"}


async def test_compat_can_be_ended_between_closed_and_the_swap(
    db: Any, migrator: Migrator, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(ctx: Any) -> None:
        raise Refused("stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr("migrator.phases.swap.run", nothing)
        with pytest.raises(Refused, match="stopped by the test"):
            await complete(migrator)
    assert (await complete(migrator, False)).details == {"compat": None}
    state = await routing(migrator)
    assert (state.old, state.new, state.phase) == ("0001_items", None, None)
    assert await compat.left(db) == []


async def test_what_fails_is_told_and_not_trapped(db: Any, migrator: Migrator, items: Path) -> None:
    await complete(migrator)
    table = model(await routing(migrator))
    label = table.virtuals[2]
    assert label.assign is not None
    assert await db.fetchval(f"SELECT {label.assign}('seven')") == "seven"
    with pytest.raises(
        asyncpg.StringDataRightTruncationError, match=r"too long for type character varying\(5\)"
    ):
        await db.fetchval(f"SELECT {label.assign}('sevens')")
    # The new shape holds what the old type does not: reading it fails as an assignment would.
    await db.execute("UPDATE items SET label = 'longer than five', n = 1::bigint << 40")
    with pytest.raises(asyncpg.StringDataRightTruncationError):
        await db.fetchval(f"SELECT {label.function}(label) FROM items")
    with pytest.raises(asyncpg.NumericValueOutOfRangeError):
        await db.fetchval(f"SELECT {table.virtuals[1].function}(n) FROM items")
    status = table.up.mirrors[0].function
    assert await db.fetchval(f"SELECT {status}(1)") == "paid"
    with pytest.raises(asyncpg.NotNullViolationError) as caught:
        await db.fetchval(f"SELECT {status}(NULL)")
    assert (
        str(caught.value) == 'null value in column "status" of relation "items" violates not-null constraint'
    )
    assert (caught.value.table_name, caught.value.column_name) == ("items", "status")


async def test_reads_of_whole_and_total_columns_are_inlined(db: Any, migrator: Migrator, items: Path) -> None:
    await complete(migrator)
    number = model(await routing(migrator)).virtuals[1]
    plan = await db.fetch(f"EXPLAIN (VERBOSE) SELECT {number.function}(n) FROM items")
    assert "(n)::integer" in plan[1][0]
    status = model(await routing(migrator)).virtuals[0]
    plan = await db.fetch(f"EXPLAIN (VERBOSE) SELECT {status.function}(state) FROM items")
    assert "CASE state" in plan[1][0]


async def test_the_twin_has_what_parsing_needs_and_nothing_else(
    db: Any, migrator: Migrator, items: Path, database: Database
) -> None:
    await complete(migrator)
    table = model(await routing(migrator))
    assert table.twin_old is not None
    twin = ".".join(table.twin_old)
    columns = await db.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) AS kind, attnotnull, attidentity, attgenerated,"
        " atthasdef FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0",
        twin,
    )
    assert [c["attname"] for c in columns] == [c.name for c in table.old]
    assert {
        c["attname"]: c["kind"] for c in columns if c["attname"] in ("code", "label", "gone", "mood")
    } == {
        "code": "character(3)",
        "label": "character varying(5)",
        "gone": "short",
        "mood": "mood",
    }
    assert [c["attname"] for c in columns if c["atthasdef"]] == ["twice"]
    app = await asyncpg.connect(database.role(f"app_{database.name}"))
    for good in (
        f"SELECT label, n2 FROM {twin} GROUP BY id",
        f"INSERT INTO {twin} (code) VALUES ('x') ON CONFLICT ON CONSTRAINT code_once DO NOTHING",
        f"INSERT INTO {twin} DEFAULT VALUES RETURNING *",
    ):
        await app.prepare(good)
    for bad, error in (
        (f"INSERT INTO {twin} (id) VALUES (1)", asyncpg.GeneratedAlwaysError),
        (f"UPDATE {twin} SET twice = 1", asyncpg.GeneratedAlwaysError),
        (f"SELECT state FROM {twin}", asyncpg.UndefinedColumnError),
    ):
        with pytest.raises(error):
            await app.prepare(bad)
    await app.close()
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute(f"INSERT INTO {twin} (code, status) VALUES ('x', 1)")


async def test_rows_of_copy_come_through_a_view_of_the_old_version(
    db: Any, migrator: Migrator, items: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(ctx: Any) -> None:
        raise Refused("stopped by the test")

    async def copy(rows: bytes, **options: Any) -> None:
        table = model(await routing(migrator))
        assert table.copy_old is not None
        schema, view = table.copy_old
        await app.copy_to_table(
            view, source=io.BytesIO(rows), schema_name=schema, format="csv", header=True, **options
        )

    app = await asyncpg.connect(database.role(f"app_{database.name}"))
    with monkeypatch.context() as patch:
        patch.setattr("migrator.phases.swap.run", nothing)
        with pytest.raises(Refused, match="stopped by the test"):
            await complete(migrator)
    columns = ["code", "status", "n", "label", "mood", "n2", "gone", "kept"]
    await copy(b"header\na,1,5,five,ok,8,z,k\n", columns=columns)
    await complete(migrator)
    await copy(b"header\nb,0,6,six,sad,9,z,k\n", columns=columns)
    await db.execute("UPDATE items SET code = 'zzz' WHERE id = 1")
    await copy(b"header\n7,k\n", columns=["n", "kept"])
    rows = await db.fetch("SELECT id, code, state, n, label, loud, half, twice, kept FROM items ORDER BY id")
    assert [tuple(row) for row in rows[1:]] == [
        (2, "a  ", "paid", 5, "five", "five!", 8, 16, "k"),
        (3, "b  ", "new", 6, "six", "six!", 9, 18, "k"),
        (4, "abc", "new", 7, None, None, None, None, "k"),
    ]
    with pytest.raises(asyncpg.StringDataRightTruncationError):
        await copy(b"header\ntoo long,k\n", columns=["label", "kept"])
    with pytest.raises(asyncpg.NotNullViolationError, match='"status" of relation "items"'):
        await copy(b"header\n,k\n", columns=["status", "kept"])
    await app.close()


async def test_plan_says_what_will_be_lost_fail_or_be_refused(
    db: Any, migrator: Migrator, tmp_path: Path
) -> None:
    await db.execute(SETUP)
    await db.execute("ALTER TABLE items ADD CONSTRAINT small CHECK (length(gone) < 9)")
    await db.execute("CREATE UNIQUE INDEX gone_once ON items (gone)")
    text = ITEMS.replace(
        "{table: items, column: kept, nullable: false, up: kept, down: kept}",
        "{table: items, column: kept, type: int, up: kept::int, down: kept::text}",
    )
    plain = await migrator.design(migrator.file("0001_items", text))
    design = await migrator.design(migrator.file("0001_items", "compat: true\n" + text))
    assert design.compat
    said = {(f.code, f.message) for f in design.findings if f.code.startswith("compat_")}
    assert not any(f.code.startswith("compat_") for f in plain.findings)
    assert said == {
        (
            "compat_lossy",
            "compat: old clients read public.items.gone as its default: drop_column has no down",
        ),
        ("compat_lossy", "compat: what old clients write to public.items.gone is lost: no up takes it"),
        ("compat_constraints", "compat: public.items.gone: small binds old clients no more"),
        (
            "compat_refused",
            "compat: public.items.gone: ON CONFLICT by gone_once is refused: the index goes with the column",
        ),
        (
            "compat_raises",
            "compat: public.items.label: down is not proved to work for every row; where it fails, so does an old"
            " client's read",
        ),
        (
            "compat_raises",
            "compat: public.items.kept: up is not proved to work for every row; where it fails, so does an old"
            " client's write",
        ),
    }
    closed = next(p for p in report.phases(design) if p["phase"] == "closed")
    assert "serve old clients" in closed["does"]
    assert any('CREATE TABLE "dualwire"."compat_twin_1_1"' in s for s in closed["forward"])


async def test_the_files_key_must_be_a_truth_value(migrator: Migrator) -> None:
    with pytest.raises(Refused, match="compat: true or false is needed, not 'yes please'"):
        await migrator.design(migrator.file("x", "compat: yes please\n" + ITEMS))


@pytest.fixture
async def peer(database: Database, migrator: Migrator) -> AsyncIterator[Peer]:
    """A sidecar with two old clients."""
    made = Peer(await asyncpg.connect(database.role(f"app_{database.name}")), "one", old_clients=2)
    made.task = asyncio.create_task(made.live())
    await asyncio.sleep(0.1)
    yield made
    made.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await made.task
    made.conn.terminate()


async def test_old_clients_hinder_neither_completing_but_the_next_start(
    db: Any, migrator: Migrator, items: Path, peer: Peer
) -> None:
    with pytest.raises(Refused, match=r"clients still speak the old version: shop \(2\)") as refused:
        await complete(migrator, None)
    assert "--compat" in refused.value.hint
    await complete(migrator)
    following = migrator.file("0002_more", MORE)
    with pytest.raises(
        Refused, match=r"clients still speak version base, which compat serves: shop \(2\)"
    ) as r:
        await migrator.start(following)
    assert (r.value.exit_code, r.value.data["services"][0]["clients"]) == (3, 2)
    assert "0001_items" in r.value.hint
    assert (await routing(migrator)).compat
    peer.old_clients = 0
    await asyncio.sleep(0.1)
    await migrator.start(following, "prepared")
    state = await routing(migrator)
    assert (state.old, state.new, state.phase, state.compat) == ("0001_items", "0002_more", "prepared", False)
    assert not model(state).virtuals
    assert await compat.left(db) == []
    assert (await db.fetchrow("SELECT parent FROM dualwire.migration WHERE name = '0002_more'"))[
        0
    ] == "0001_items"


async def test_an_operator_ends_it_by_hand(db: Any, migrator: Migrator, items: Path, peer: Peer) -> None:
    async def end() -> engine.Outcome:
        async with engine.working(migrator.dsn, 5) as session:
            return await engine.end_compat(session, migrator.progress, migrator.options)

    await complete(migrator)
    with pytest.raises(Refused, match="clients still speak version base"):
        await end()
    peer.old_clients = 0
    await asyncio.sleep(0.1)
    assert (await end()).migration == "0001_items"
    state = await routing(migrator)
    assert (state.old, state.new, state.phase, state.serves_old) == ("0001_items", None, None, True)
    assert await compat.left(db) == []
    assert [
        json.loads(r[0])
        for r in await db.fetch("SELECT details FROM dualwire.event WHERE kind = $1", withdraw.ENDED)
    ] == [{"version": "base"}]
    with pytest.raises(Refused, match="no version is served by compat"):
        await end()


async def test_names_that_are_taken_in_the_schema_dualwire_are_avoided(db: Any, migrator: Migrator) -> None:
    await db.execute("CREATE TABLE event (id int PRIMARY KEY, kind int); INSERT INTO event VALUES (1, 2)")
    text = "compat: true\noperations:\n  - rename_column: {table: event, from: kind, to: sort}\n"
    await migrator.run(migrator.file("0001_event", text))
    table = model(await routing(migrator))
    assert table.twin_old is not None
    assert table.old == (LogicalColumn("id", "id"), LogicalColumn("kind", "sort"))
    await db.prepare(f"SELECT kind FROM {'.'.join(table.twin_old)} GROUP BY id")
