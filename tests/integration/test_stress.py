"""Concurrent writers of both versions, and past the sidecars, on the same rows through a whole migration.

No write fails that would not fail without it, no acknowledged update is lost, and the shapes never diverge. The normal
run has one round of each kind; ``-m slow`` has forty (``DUALWIRE_STRESS_ROUNDS``).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from migrator.errors import Refused
from tests.conftest import Database, SidecarFactory
from tests.integration.stress import COUNTED, OTHER_TABLE, SAME_TABLE, SETUP, Crowd, Kind
from tests.migrator.conftest import Migrator

ROUNDS = int(os.environ.get("DUALWIRE_STRESS_ROUNDS", "40"))


@pytest.fixture
async def migrator(database: Database, tmp_path: Any) -> Migrator:
    made = Migrator(database.dsn, tmp_path)
    await made.init()
    return made


async def _counts(database: Database, column: str) -> dict[int, Any]:
    async with database.connection() as direct:
        rows = await direct.fetch(f"SELECT id, {column} FROM accounts WHERE id <= {COUNTED}")
    return {row[0]: row[1] for row in rows}


async def _complete(migrator: Migrator) -> None:
    """Complete, as soon as the sidecars have told that the last client of the old version is gone."""
    async with asyncio.timeout(30):
        while True:
            try:
                await migrator.complete()
                return
            except Refused as refused:
                if "still speak the old version" not in refused.message:
                    raise
                await asyncio.sleep(0.2)


async def _round(
    database: Database, migrator: Migrator, sidecars: SidecarFactory, kind: Kind, number: int, ending: str
) -> Crowd:
    """One migration from start to its end, under load from everywhere."""
    name = f"{number:04}_state"
    path = migrator.file(name, kind.migration)
    async with database.connection() as direct:
        await direct.execute("DROP TABLE IF EXISTS accounts; " + SETUP)
    if not sidecars.started:
        sidecars(), sidecars()
    first, second = sidecars.started[:2]
    old = (await migrator.routing())["state"]["old"]
    crowd = Crowd(kind)
    crowd.add(lambda: first.connect(version=old), "old")
    crowd.add(lambda: second.connect(version=old), "old", "repeatable_read")
    crowd.add(lambda: first.connect(version=old, statement_cache_size=0), "old")
    crowd.add(database.connect, "old")
    crowd.add(database.connect, "old", "repeatable_read")
    await crowd.work(5)
    await migrator.start(path, "verified")
    await crowd.work(5)
    crowd.add(lambda: second.connect(version=name), "new")
    crowd.add(lambda: first.connect(version=name), "new", "repeatable_read")
    await crowd.work(20)
    await migrator.cutover(50)
    await crowd.work(5)
    result = await migrator.verify()
    assert result.clean, result.as_dict()
    if ending == "rollback":
        await crowd.leave("new")
        await migrator.rollback()
        await crowd.work(5)
        await crowd.leave()
        column, one = kind.old[1:3]
    else:
        await migrator.cutover(100)
        await crowd.work(5)
        await crowd.leave("old")
        await _complete(migrator)
        await crowd.work(10)
        await crowd.leave()
        column, one = kind.new[1:3]
    found = await _counts(database, column)
    assert {k: v for k, v in found.items() if v} == {k: n * one for k, n in crowd.counted.items()}
    return crowd


@pytest.mark.parametrize("kind", [SAME_TABLE, OTHER_TABLE], ids=["same_table", "other_table"])
@pytest.mark.parametrize("ending", ["rollback", "complete"])
async def test_no_write_is_lost_or_fails_and_the_shapes_agree_while_everybody_writes_the_same_rows(
    database: Database, migrator: Migrator, sidecar: SidecarFactory, ending: str, kind: Kind
) -> None:
    crowd = await _round(database, migrator, sidecar, kind, 1, ending)
    assert all(writer.done for writer in crowd.writers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [SAME_TABLE, OTHER_TABLE], ids=["same_table", "other_table"])
@pytest.mark.parametrize("ending", ["rollback", "complete"])
async def test_many_rounds_of_everybody_writing_the_same_rows(
    database: Database, migrator: Migrator, sidecar: SidecarFactory, ending: str, kind: Kind
) -> None:
    for number in range(1, ROUNDS + 1):
        await _round(database, migrator, sidecar, kind, number, ending)


async def test_the_stress_finds_writers_whose_writes_nobody_carries_over(
    database: Database, migrator: Migrator
) -> None:
    async with database.connection() as direct:
        await direct.execute(SETUP)
    await migrator.start(migrator.file("0001_state", SAME_TABLE.migration), "verified")
    async with database.connection() as direct:
        await direct.execute("DROP TRIGGER zzz_dualwire_guard ON accounts")
    crowd = Crowd(SAME_TABLE)
    crowd.add(database.connect, "old")
    crowd.add(database.connect, "old")
    await crowd.work(20)
    await crowd.leave()
    result = await migrator.verify()
    assert not result.clean
