"""Large and hostile texts through a real sidecar: they are answered, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cli, Database, SidecarFactory

MIGRATION = """
operations:
  - alter_column:
      table: orders
      column: amount
      type: bigint
      up: amount * 100
      down: amount / 100
"""
HOSTILE = {
    "terms": "SELECT " + "+".join(["1"] * 50_000),
    "parentheses": "SELECT " + "(" * 200_000,
    "nested": "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
    "cases": "SELECT " + "CASE WHEN true THEN " * 3_000 + "1" + " END" * 3_000,
    "comments": "/*" * 10_000,
    "quotes": "SELECT " + "'" * 200_001,
    "orders": "SELECT 'orders' WHERE " + " AND ".join(["1 = 1"] * 20_000),
    "lists": "SELECT 1 WHERE 1 IN (" + ", ".join(map(str, range(30_000))) + ")",
}


@pytest.fixture
async def migrating(database: Database, migrator_cli: Cli, sidecar: SidecarFactory, tmp_path: Path) -> Any:
    """A sidecar in the middle of a migration of ``orders``."""
    database.sql("CREATE TABLE orders (id int PRIMARY KEY, amount int NOT NULL)")
    path = tmp_path / "amounts.yaml"
    path.write_text(MIGRATION)
    assert migrator_cli("init").returncode == 0
    proxy = sidecar()
    started = migrator_cli("start", path, "--until", "verified")
    assert started.returncode == 0, started.stdout + started.stderr
    return proxy


def _insert(first: int, rows: int) -> str:
    return "INSERT INTO orders VALUES " + ", ".join(f"({n}, {n})" for n in range(first, first + rows))


async def test_others_are_answered_while_a_large_text_is_planned(migrating: Any, database: Database) -> None:
    """By counting: what a second client gets done before the large statement is answered."""
    busy, other = await migrating.connect(), await migrating.connect()
    await busy.execute(_insert(0, 2_000))  # the planning process is up
    await other.fetchval("SELECT 0")
    large = asyncio.ensure_future(busy.execute(_insert(10_000, 40_000)))
    done = 0
    while not large.done():
        await other.fetchval(f"SELECT amount FROM orders WHERE id = {done % 2_000}")
        done += 1
    assert await large == "INSERT 0 40000"
    assert done > 20
    assert database.sql("SELECT count(*) FROM orders WHERE _dualwire_new_amount = amount * 100") is not None
    async with database.connection() as direct:
        wrong = await direct.fetchval(
            "SELECT count(*) FROM orders WHERE _dualwire_new_amount IS DISTINCT FROM amount * 100"
        )
    assert wrong == 0
    _, metrics = await asyncio.to_thread(migrating.get, "/metrics")
    assert 'dualwire_large_plans_total{database="shop"} 2.0' in metrics
    assert 'dualwire_guarded_statements_total{database="shop"} 0.0' in metrics


async def test_a_large_statement_that_waits_can_be_cancelled(migrating: Any) -> None:
    client = await migrating.connect()
    with pytest.raises(asyncio.TimeoutError):
        # asyncpg sends a cancel request when it gives up, and waits for what comes of it.
        await client.execute(_insert(0, 60_000), timeout=0.3)
    assert await client.fetchval("SELECT count(*) FROM orders") in (0, 60_000)


async def test_hostile_texts_are_answered_and_so_are_others_meanwhile(migrating: Any) -> None:
    busy, other = await migrating.connect(), await migrating.connect()
    for text in HOSTILE.values():
        answer = asyncio.ensure_future(busy.fetch(text))
        for number in range(10):
            assert await other.fetchval(f"SELECT {number}") == number
        with contextlib.suppress(asyncpg.PostgresError):
            await answer
        assert await busy.fetchval("SELECT 1") == 1
    assert migrating.process.poll() is None


def _kill_planner(sidecar: int) -> bool:
    """Kill the process that plans, if there is one."""
    children = [task.read_text() for task in Path(f"/proc/{sidecar}/task").glob("*/children")]
    for child in map(int, " ".join(children).split()):
        if b"planning_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
            return True
    return False


async def test_a_statement_survives_the_death_of_the_process_that_plans_it(
    migrating: Any, database: Database
) -> None:
    client = await migrating.connect(version="amounts")
    large = asyncio.ensure_future(client.execute(_insert(0, 40_000)))
    while not large.done() and not _kill_planner(migrating.process.pid):
        await asyncio.sleep(0.01)
    assert not large.done()
    assert await large == "INSERT 0 40000"
    assert database.sql("SELECT count(*) FROM orders WHERE _dualwire_new_amount = id") == "40000"
