"""``dualwire explain``: whose statement, what becomes of it, why; nothing in the database is changed by asking."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from migrator.cli.main import _register, app
from migrator.cluster import Cluster
from migrator.explanation import statements_of
from tests.conftest import Database, SidecarFactory
from tests.replies.conftest import MIGRATION, OLD, REPLACED, fresh, started

Explain = Callable[..., dict[str, Any]]


def run(*args: str | Path, dsn: str, code: int = 0) -> str:
    """The command's output, run in this process: many questions, one start of Python."""
    if not app.registered_commands:
        _register(["explain"])
    done = CliRunner().invoke(app, ["explain", *map(str, args)], env={"DUALWIRE_DSN": dsn, "NO_COLOR": "1"})
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def migrating(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database in phase verified."""
    path = tmp_path_factory.mktemp("explain") / "0001_state.yaml"
    path.write_text(MIGRATION)
    database = fresh(cluster, OLD)
    asyncio.run(started(database.dsn, path))
    yield database
    cluster.drop_database(database.name)


@pytest.fixture
def said(migrating: Database) -> Callable[..., str]:
    """What it says to people."""
    return lambda *args, **more: run(*args, dsn=migrating.dsn, **more)


@pytest.fixture
def document(migrating: Database) -> Explain:
    """What it says to programs."""
    return lambda *args, code=0, dsn=migrating.dsn: json.loads(
        run(*args, "--format", "json", dsn=dsn, code=code)
    )


def test_every_edit_is_told_with_its_place_and_recipe(document: Explain, said: Callable[..., str]) -> None:
    sql = "/* ä */ UPDATE orders SET status = 1, code = $1 WHERE id = $2"
    told = document(sql)
    text, at = "", 0
    for edit in told["edits"]:
        assert sql[edit["start"] : edit["end"]] == edit["original"]
        text += sql[at : edit["start"]] + edit["text"]
        at = edit["end"]
    assert text + sql[at:] == told["rewritten"]
    assert "mirror_set" in told["recipes"]
    assert told["fallback"] == {"text": sql, "reason": told["reason"], "guarded": True}
    assert told["guards"] == [
        {"table": "public.orders", "mode": "sync", "trigger": "zzz_dualwire_guard", "writes": True}
    ]
    shown = said(sql)
    assert "{+, " in shown
    assert "guard: sync (trigger zzz_dualwire_guard on public.orders)" in shown
    assert "if the server rejects that: sent as it is" in shown
    assert "\x1b" not in shown


def test_each_statement_of_a_file_is_explained(
    document: Explain, said: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "statements.sql"
    path.write_text(
        "-- the first\nSELECT state FROM orders;\nDELETE FROM orders WHERE sku = 'a;b'; SELECT 1;"
    )
    told = document("--file", path, "--version", "new")
    assert [one["reason"] for one in told["statements"]] == ["translated", "translated", "no_rule"]
    assert told["statements"][0]["statement"].startswith("-- the first")
    shown = said("--file", path, "--version", "0001_state")
    assert "statement 3: SELECT 1" in shown
    assert "[-sku-]" in shown
    said("--file", path, "SELECT 1", code=2)
    said("--file", tmp_path / "nowhere.sql", code=2)
    said(";", code=2)


def test_a_text_is_cut_where_its_statements_end() -> None:
    assert statements_of("SELECT 1; -- x\nUPDATE a SET b = 'ä;';") == [
        "SELECT 1",
        "-- x\nUPDATE a SET b = 'ä;'",
    ]
    assert statements_of("-- y\nSELECT 1;\n;; SELEC 'ä;';") == ["-- y\nSELECT 1", "SELEC 'ä;'"]
    assert statements_of("SELECT 'x") == ["SELECT 'x"]
    assert statements_of(" ;") == []


def test_the_server_is_asked_and_nothing_is_executed(
    document: Explain, said: Callable[..., str], migrating: Database
) -> None:
    told = document("--check", "UPDATE orders SET status = $1 WHERE id = $2")["check"]
    assert (told["error"], told["parameters"]) == (None, ["smallint", "integer"])
    assert told["sends"] == "the rewritten text"
    told = document("--check", "UPDATE orders SET colour = 1 WHERE id = 1")["check"]
    assert told["error"]["sqlstate"] == "42703"
    assert document("--check", "TRUNCATE orders")["check"]["sends"] is None
    assert "the server accepts it" in said("--check", "DELETE FROM orders")
    assert migrating.sql("SELECT count(*) FROM orders") == "2"


def test_bodies_of_functions_are_shown_on_request(said: Callable[..., str]) -> None:
    assert "CREATE OR REPLACE FUNCTION dualwire.up_1_1" in said("--verbose", "UPDATE orders SET status = 1")
    assert "FUNCTION dualwire.up_1_1" not in said("UPDATE orders SET status = 1")


def test_a_search_path_is_the_client_s(document: Explain) -> None:
    assert document("SELECT * FROM orders", "--search-path", "pg_catalog")["tables"] == []
    assert document("SELECT * FROM orders", "--search-path", '"$user", public')["tables"] == ["public.orders"]


def test_a_sidecar_says_which_version_speaks(document: Explain, migrating: Database, tmp_path: Path) -> None:
    factory = SidecarFactory(migrating, tmp_path)
    running = factory(schema_version="0001_state")
    try:
        sql = "SELECT state FROM orders"
        told = document(sql, "--sidecar", running.admin_url)
        assert (told["version"], told["notes"]) == ("0001_state", [])
        elsewhere = "postgresql://nobody@127.0.0.1:1/x"
        assert document(sql, "--config", running.config, dsn=elsewhere)["version"] == "0001_state"
        refused = document(sql, "--config", running.config, "--database", "x", code=2)["error"]
        assert "choose a database" in refused["message"]
        assert document(sql, "--sidecar", "127.0.0.1:1", code=6)["error"]["exit_code"] == 6
    finally:
        running.terminate()


def test_a_migration_s_effect_is_seen_before_it_is_started(
    cluster: Cluster, document: Explain, migrating: Database, tmp_path: Path
) -> None:
    """What is foretold equals what is said once it is there."""
    file = tmp_path / "0001_state.yaml"
    file.write_text(MIGRATION)
    database = fresh(cluster, OLD)
    try:
        refused = document("SELECT 1", dsn=database.dsn, code=3)["error"]
        assert "init" in refused["hint"]
        asyncio.run(started(database.dsn, None))
        statements = [
            ("UPDATE orders SET status = 1, code = $1 WHERE id = $2", "old"),
            ("INSERT INTO orders VALUES (7, 1, 'x')", "base"),
            ("SELECT * FROM orders", "new"),
            ("INSERT INTO orders (id, state, sku) VALUES (1, 'new', 'x') RETURNING *", "0001_state"),
        ]
        before = database.sql("SELECT count(*) FROM pg_class; SELECT count(*) FROM pg_proc")
        for sql, version in statements:
            asked = (sql, "--version", version, "--verbose")
            foretold = document(*asked, "--migration", file, dsn=database.dsn)
            real = document(*asked)
            assert "would be" in foretold.pop("state")
            assert foretold.pop("functions").keys() == real.pop("functions").keys()
            real.pop("state")
            assert foretold == real
        assert database.sql("SELECT count(*) FROM pg_class; SELECT count(*) FROM pg_proc") == before
        early = ("SELECT 1", "--version", "new", "--migration", file, "--phase", "expanded")
        assert "not served yet" in document(*early, dsn=database.dsn, code=3)["error"]["message"]
        run("SELECT 1", "--migration", file, "--check", dsn=database.dsn, code=2)
        assert "under way" in document("SELECT 1", "--migration", file, code=3)["error"]["message"]
    finally:
        cluster.drop_database(database.name)


def test_a_table_that_will_be_replaced_is_foretold_too(
    cluster: Cluster, document: Explain, tmp_path: Path
) -> None:
    file = tmp_path / "0001_state.yaml"
    file.write_text(REPLACED.migration)
    database = fresh(cluster, REPLACED.old)
    try:
        asyncio.run(started(database.dsn, None))
        statements = [
            ("UPDATE items SET qty = 2, id = 7 WHERE id = 3", "old"),
            ("SELECT * FROM items", "new"),
        ]
        asked = [(sql, "--version", version) for sql, version in statements]
        foretold = [document(*args, "--migration", file, dsn=database.dsn) for args in asked]
        assert database.sql("SELECT count(*) FROM pg_class WHERE relname ~ '_dualwire'") == "0"
        asyncio.run(started(database.dsn, file))
        for one, args in zip(foretold, asked, strict=True):
            assert {**one, "state": ""} == document(*args, dsn=database.dsn)
    finally:
        cluster.drop_database(database.name)
