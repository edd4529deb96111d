"""The command as scripts and people use it: exit codes, one JSON document on stdout, errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, Database, SidecarFactory

SETUP = (
    "CREATE TABLE items (id int PRIMARY KEY, size text); INSERT INTO items VALUES (1, 'big'), (2, 'small')"
)
SIZES = """
operations:
  - alter_column:
      table: items
      column: size
      type: int
      name: inches
      up: CASE size WHEN 'big' THEN 2 ELSE 1 END
      down: CASE size WHEN 2 THEN 'big' ELSE 'small' END
"""


@pytest.fixture
def file(database: Database, tmp_path: Path) -> Path:
    database.sql(SETUP)
    path = tmp_path / "0001_sizes.yaml"
    path.write_text(SIZES)
    return path


def answer(cli: Cli, *args: str | Path, code: int = 0) -> Any:
    """The JSON document of a command."""
    done = cli(*args, "--format", "json")
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_a_migration_by_commands_alone(migrator_cli: Cli, file: Path, database: Database) -> None:
    cli = migrator_cli
    assert answer(cli, "init") == {"installed": True, "version": 1}
    assert answer(cli, "init")["installed"] is False
    plan = answer(cli, "plan", file)
    assert [p["phase"] for p in plan["phases"]] == [
        "prepared", "expanded", "backfilled", "verified", "cutover", "closed", "completed",
    ]  # fmt: skip
    assert answer(cli, "lint", file)["ok"] is True
    assert answer(cli, "start", file, "--until", "backfilled")["phase"] == "backfilled"
    early = answer(cli, "complete", code=3)["error"]
    assert "phase backfilled" in early["message"]
    assert "dualwire verify" in early["hint"]
    assert answer(cli, "cutover", code=3)["error"]["hint"] == "Run `dualwire verify` first."
    assert answer(cli, "verify")["phase"] == "verified"
    assert answer(cli, "cutover", "--percent", "25")["percent"] == 25
    assert answer(cli, "status")["routing"]["percent"] == 25
    assert answer(cli, "cutover")["phase"] == "cutover"
    waiting = answer(cli, "complete", code=3)["error"]
    assert waiting["remaining_seconds"] > 86000
    assert answer(cli, "complete", "--retention", "0")["phase"] == "completed"
    assert database.sql("SELECT inches FROM items ORDER BY id").split() == ["2", "1"]
    [entry] = answer(cli, "history")["migrations"]
    assert (entry["name"], entry["phase"]) == ("0001_sizes", "completed")
    assert {s["name"] for s in entry["steps"]} >= {"prepare", "expand", "close", "swap"}
    assert answer(cli, "start", file)["note"] == "already completed"
    assert answer(cli, "rollback", code=3)["error"]["message"] == "no migration is under way"


def test_run_does_it_all_and_rollback_undoes_it(migrator_cli: Cli, file: Path, database: Database) -> None:
    cli = migrator_cli
    answer(cli, "init")
    assert answer(cli, "run", file, "--until", "cutover")["phase"] == "cutover"
    assert answer(cli, "rollback") == {"migration": "0001_sizes", "phase": "rolled_back", "lost": []}
    stopped = answer(cli, "run", file, code=3)["error"]
    assert "retention" in stopped["message"]
    assert answer(cli, "run", file, "--retention", "0")["phase"] == "completed"


def test_texts_say_what_to_do(migrator_cli: Cli, file: Path, tmp_path: Path) -> None:
    cli = migrator_cli
    done = cli("start", file)
    assert done.returncode == 3
    assert "hint: Run `dualwire init` first." in done.stderr
    assert done.stdout == ""
    cli("init")
    bad = tmp_path / "0002_bad.yaml"
    bad.write_text("operations: [{alter_column: {table: items, column: size, kind: int}}]")
    done = cli("plan", bad)
    assert done.returncode == 3
    assert "0002_bad.yaml: operations[0].alter_column.kind: unknown key" in done.stderr
    missing = tmp_path / "0003_missing.yaml"
    missing.write_text("operations: [{rename_column: {table: nowhere, from: a, to: b}}]")
    done = cli("start", missing)
    assert done.returncode == 3
    assert 'table "public.nowhere" does not exist' in done.stderr
    assert "SQLSTATE: 42P01" in done.stderr
    assert "no migration yet" in cli("status").stdout
    done = cli("plan", file)
    assert 'ADD COLUMN "_dualwire_new_inches" integer' in done.stdout
    assert "backward:" in done.stdout
    done = cli("status")
    assert "versions served: base" in done.stdout


def test_rows_that_cannot_be_carried_over_give_exit_code_4(
    migrator_cli: Cli, database: Database, tmp_path: Path
) -> None:
    database.sql("CREATE TABLE r (id int PRIMARY KEY, v text); INSERT INTO r VALUES (1, '1'), (2, 'many')")
    path = tmp_path / "0001_r.yaml"
    path.write_text(
        "operations: [{alter_column: {table: r, column: v, type: int, up: 'v::int', down: 'v::text'}}]"
    )
    migrator_cli("init")
    done = migrator_cli("start", path)
    assert done.returncode == 4
    assert 'public.r {"id": 2}: invalid input syntax for type integer: "many"' in done.stderr
    found = answer(migrator_cli, "verify", code=4)["error"]["verify"]
    assert found["problems"] == 1
    assert found["problem_list"][0]["key"] == {"id": 2}
    assert "problems: 1" in migrator_cli("status").stdout
    assert database.sql("SELECT v FROM r ORDER BY id").split() == ["1", "many"]
    assert migrator_cli("rollback").returncode == 0


def test_usage_errors_have_exit_code_2(migrator_cli: Cli, file: Path) -> None:
    assert migrator_cli("frobnicate").returncode == 2
    assert migrator_cli("start").returncode == 2
    assert migrator_cli("start", file, "--until", "completed").returncode == 2
    assert (
        migrator_cli("start", "nowhere.yaml").returncode == 2
        or migrator_cli("start", "nowhere.yaml").returncode == 3
    )
    assert migrator_cli("complete", "--retention", "soon").returncode == 2
    assert migrator_cli("status", dsn="nonsense").returncode == 2


def test_a_server_that_is_not_there_or_is_a_standby_is_told(migrator_cli: Cli, database: Database) -> None:
    gone = migrator_cli("status", dsn="postgresql://nobody@127.0.0.1:1/none")
    assert gone.returncode == 6
    assert "cannot connect" in gone.stderr
    standby = migrator_cli("init", dsn=database.replica_dsn)
    assert standby.returncode == 3
    assert "standby" in standby.stderr


def test_drift_is_shown_and_accepted(migrator_cli: Cli, file: Path, database: Database) -> None:
    cli = migrator_cli
    cli("init")
    answer(cli, "start", file, "--until", "expanded")
    assert answer(cli, "drift")["drift"] == []
    database.sql("CREATE INDEX by_size ON items (size)")
    assert answer(cli, "drift", code=3)["drift"] == ["public.items: index by_size is new"]
    assert "somebody else" in answer(cli, "start", file, code=3)["error"]["message"]
    answer(cli, "drift", "--accept")
    assert answer(cli, "start", file)["phase"] == "verified"


def test_explain_shows_the_text_that_would_be_sent(migrator_cli: Cli, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("proxy.rewrite.planner")
    cli = migrator_cli
    cli("init")
    answer(cli, "start", file)
    old = answer(cli, "explain", "UPDATE items SET size = 'big' WHERE id = 1")
    assert old["mirrored"] is True
    assert "_dualwire_new_inches" in old["text"]
    new = answer(cli, "explain", "SELECT inches FROM items", "--version", "0001_sizes")
    assert "_dualwire_new_inches" in new["text"]
    assert new["version"] == "0001_sizes"
    statement = tmp_path / "statement.sql"
    statement.write_text("SELECT 1")
    assert answer(cli, "explain", "--file", statement)["rewritten"] is None
    assert (
        "unknown schema version"
        in answer(cli, "explain", "SELECT 1", "--version", "x", code=3)["error"]["message"]
    )


def test_help_shows_all_commands(migrator_cli: Cli) -> None:
    done = migrator_cli("--help")
    for command in [
        "proxy",
        "demo",
        "init",
        "lint",
        "plan",
        "start",
        "status",
        "pause",
        "resume",
        "verify",
        "cutover",
        "rollback",
        "complete",
        "run",
        "history",
        "drift",
        "explain",
    ]:
        assert f" {command} " in done.stdout, command


def test_a_dsn_that_goes_through_a_sidecar_is_refused(
    migrator_cli: Cli, file: Path, sidecar: SidecarFactory
) -> None:
    migrator_cli("init")
    through = sidecar().dsn()
    refused = answer(migrator_cli, "start", file, "--dsn", through, code=3)["error"]
    assert "connection pooler or a sidecar" in refused["message"]
    assert "Name the primary server itself" in refused["hint"]
